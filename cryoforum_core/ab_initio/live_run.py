"""What a run shows of its progress, and how long each stage took."""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from ..progress import format_duration
from ..report.live_page import write_live
from ..run_directory import RunDirectory

logger = logging.getLogger("cryoforum")

# a page that changes more often is not read
_MIN_SECONDS_BETWEEN = 3.0
# drawing takes a fraction of a second, on a busy machine more: within a stage the page may take this part of the time
_MOST_OF_THE_TIME = 0.03


class LiveRun:
    """Stages of known relative length; writes ``progress.json`` and ``live.html``."""

    def __init__(self, run: RunDirectory, shares: Mapping[str, float]):
        self.run, self.shares = run, dict(shares)
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.monotonic()
        self._seconds_between = _MIN_SECONDS_BETWEEN
        self._stage, self._history = next(iter(self.shares)), []
        self._volume, self._pixel_size_angstrom, self._fsc = None, 1.0, {}
        self._resolution_angstrom: float | None = None

    def go_on_after(self, seconds: Mapping[str, float]) -> None:
        """Continues a stopped run, whose finished stages took ``seconds``. The time left is estimated from all its time."""
        self.seconds, total = dict(seconds), 0.0
        for name, spent in seconds.items():
            total += spent
            self._history.append({"stage": name, "seconds": total})
        if self.run.progress.is_file():
            stopped = json.loads(self.run.progress.read_text())
            total = max(total, stopped["seconds"])
            self._history.append({"stage": stopped["stage"], "seconds": total})
        self._start -= total

    @contextmanager
    def stage(self, name: str):
        """Everything in the block belongs to the stage ``name``."""
        self._stage, start = name, time.monotonic()
        number = list(self.shares).index(name) + 1
        logger.info("stage %d of %d: %s", number, len(self.shares), name)
        self.show(0.0, message=name)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def fraction(self, of_stage: float) -> float:
        """Of the whole run."""
        names = list(self.shares)
        before = sum(self.shares[name] for name in names[:names.index(self._stage)])
        return (before + of_stage * self.shares[self._stage]) / sum(self.shares.values())

    def map(self, volume: Float[Tensor, "d d d"], pixel_size_angstrom: float,
            fsc: Mapping[str, Float[Tensor, " shells"]] | None = None, resolution_angstrom: float | None = None
            ) -> None:
        """The map so far and FSC curves over the shells of its box."""
        self._volume, self._pixel_size_angstrom = volume.detach().cpu().numpy(), pixel_size_angstrom
        self._fsc = {name: curve.cpu().numpy() for name, curve in (fsc or {}).items()}
        self._resolution_angstrom = resolution_angstrom

    def show(self, of_stage: float, message: str = "", score: float | None = None, loss: float | None = None) -> None:
        """Writes the files, not more often than every few seconds. What goes wrong here must not stop a run.

        ``loss``: the part of held-out images that is not explained; every value is kept for the curve.
        """
        now = time.monotonic()
        is_due = not 0 < of_stage < 1 or now - self._last >= self._seconds_between
        progress = self._progress(of_stage, now - self._start, message, score, loss)
        if is_due:
            try:
                write_live(self.run, progress, self._volume, self._pixel_size_angstrom, self._fsc, self._history)
            except Exception:
                logger.exception("The live page could not be written; the run goes on.")
            self._last = time.monotonic()
            self._seconds_between = max(_MIN_SECONDS_BETWEEN, (self._last - now) / _MOST_OF_THE_TIME)
        if is_due or loss is not None:
            self._history.append(progress)

    def _progress(self, of_stage: float, seconds: float, message: str, score: float | None, loss: float | None) -> dict:
        done, names = self.fraction(of_stage), list(self.shares)
        return {"stage": self._stage, "stage_number": names.index(self._stage) + 1, "n_stages": len(names),
                "stages": names, "fraction": done, "seconds": seconds,
                "seconds_left": seconds * (1 - done) / done if done > 0.05 else None,
                "resolution_angstrom": self._resolution_angstrom, "message": message, "score": score, "loss": loss}

    def log_times(self) -> None:
        """A line of the log."""
        logger.info("time: %s", ", ".join(f"{name} {format_duration(seconds)}"
                                          for name, seconds in self.seconds.items()))
