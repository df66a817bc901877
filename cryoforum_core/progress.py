"""Progress of a job: a bar on a terminal, plain lines with the time left in a log."""

import logging
import sys
import time

from tqdm import tqdm

from .interruption import stop_if_asked

logger = logging.getLogger("cryoforum")


def format_duration(seconds: float) -> str:
    """``75`` -> ``1:15``; ``4000`` -> ``1:06:40``."""
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Counts work of a known size. Use as a context manager.

    A log (a file, Scipion's run.stdout) gets at most one flushed line each ``log_interval_seconds``, and a last one.
    ``update`` is where a job stops on Ctrl-C, with KeyboardInterrupt (``interruption``); with ``may_stop`` False the loop
    looks at ``stop_asked`` itself, to save its state first.
    """

    def __init__(self, total: int, label: str, unit: str = "images", initial: int = 0,
                 log_interval_seconds: float = 5.0, may_stop: bool = True):
        self.total, self.label, self.unit = total, label, unit
        self.done, self._initial = initial, initial
        self._interval, self._may_stop = log_interval_seconds, may_stop
        self._start = self._last_line = time.monotonic()
        self._printed_done = -1
        self._figures: dict[str, float] = {}
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=label, unit=f" {unit}", initial=initial, disable=not self._is_terminal)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, exception_type, *_) -> None:
        if exception_type is None and not self._is_terminal and self._printed_done != self.done:
            self._print_line()
        self._bar.close()

    def update(self, n: int = 1, **figures: float) -> None:
        """Counts ``n`` more; ``figures`` (a loss, an error) are shown beside the count."""
        self.done += n
        self._figures = figures or self._figures
        if self._is_terminal:
            if figures:
                self._bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._last_line >= self._interval:
            self._print_line()
        if self._may_stop:
            stop_if_asked()

    def _print_line(self) -> None:
        self._last_line = now = time.monotonic()
        self._printed_done = self.done
        fresh = self.done - self._initial
        left = (now - self._start) * (self.total - self.done) / fresh if fresh else float("nan")
        figures = "".join(f"  {name}={value:.4g}" for name, value in self._figures.items())
        tail = f"  time left {format_duration(left)}" if fresh and self.done < self.total else (
            f"  took {format_duration(now - self._start)}")
        percent = 100 * self.done / max(self.total, 1)
        print(f"{self.label}  {percent:3.0f}%  {self.done}/{self.total} {self.unit}{figures}{tail}", flush=True)
