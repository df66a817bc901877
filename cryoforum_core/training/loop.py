"""The one training loop: what happens in a step, when it ends, and how it goes on after a stop.

Everything random in step s is drawn from generators seeded with (seed, s), so the state to be saved is the weights, the
optimizer, the step and the time spent: a resumed run on a CPU gives the same bits as one that was never stopped.
"""

import csv
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError, Interrupted
from ..interruption import stop_asked, stop_between_steps
from ..progress import Progress
from ..run_directory import atomic_path
from ..saved_state import load_state, save_state

logger = logging.getLogger("cryoforum")

STATE_FORMAT = 1
MAX_EVALUATIONS, MIN_STEPS_BETWEEN_EVALUATIONS, N_METRIC_ROWS = 20, 25, 200
_SHOWN = ("loss", "validation_median_error_deg")
WARM_UP, START_DIVISOR, END_DIVISOR = 0.15, 25.0, 1e4
MAX_GRADIENT_NORM, MAX_BAD_STEPS = 1.0, 25


@dataclass(frozen=True)
class LoopSettings:
    """When to stop and how fast to learn."""

    max_steps: int
    learning_rate: float
    seed: int = 0
    max_minutes: float | None = None
    """The schedule is stretched (or cut) to end after this time; earlier minutes of a resumed run count."""
    patience_evaluations: int = 10
    patience_from_progress: float = 0.0
    """Before this fraction of the training the early stop does not count (the noise is still growing)."""
    weight_decay: float = 0.01
    checkpoint_interval_seconds: float = 60.0
    resume: bool = False


@dataclass
class LoopState:
    """What a resumed run needs beside weights and optimizer."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    evaluations_since_best: int = 0
    bad_steps: int = 0


@dataclass(frozen=True)
class LoopResult:
    """How the training ended; ``reason`` is one of "schedule" and "early stop"."""

    steps: int
    seconds: float
    best_loss: float
    reason: str


def one_cycle(progress: float, peak: float) -> float:
    """The learning rate at a fraction of the training: cosine up for 15 %, cosine down for the rest (Smith 2018)."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < WARM_UP:
        start = peak / START_DIVISOR
        return start + (peak - start) * 0.5 * (1 - math.cos(math.pi * progress / WARM_UP))
    end = peak / END_DIVISOR
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def progress_of(step: int, seconds: float, settings: LoopSettings) -> float:
    """How much of the training is done, in [0, 1]: by steps or by time, whichever is further."""
    by_time = seconds / (60 * settings.max_minutes) if settings.max_minutes else 0.0
    return min(1.0, max(step / settings.max_steps, by_time))


def step_generator(seed: int, step: int, purpose: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of everything random in one step; ``purpose`` separates streams of one step."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) * 16 + purpose)


def make_optimizer(network: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """AdamW; biases, normalisation and slopes (one-dimensional parameters) are not decayed."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), eps=1e-6, fused=True)


def train_network(network: nn.Module, batch_of: Callable[[int, float], object],
                  loss_of: Callable[[nn.Module, object, float], tuple[Tensor, dict[str, float]]],
                  evaluate: Callable[[nn.Module], dict[str, float]], settings: LoopSettings, state_path: Path,
                  metrics_path: Path, clock: Callable[[], float] = time.monotonic,
                  optimizer_of: Callable[[nn.Module, LoopSettings], torch.optim.Optimizer] = make_optimizer,
                  on_evaluate: Callable[[float, dict[str, float]], None] | None = None) -> LoopResult:
    """Trains ``network`` in place; it ends with the weights that had the best held-out loss.

    ``batch_of(step, progress)`` makes a batch, ``loss_of(network, batch, progress)`` its loss and figures to show,
    ``evaluate(network)`` the held-out figures, among them ``validation_loss``. ``clock`` counts seconds; a
    comparison on a shared machine takes those of its own process. A parameter group of the optimizer may have a
    ``relative_rate``, its learning rate over that of the schedule. ``on_evaluate(progress, figures)`` is called after every
    evaluation, to show how far the training is. Raises Interrupted on SIGINT, after saving; InputError where
    ``state_path`` cannot be read.
    """
    optimizer, state = optimizer_of(network, settings), LoopState()
    best = _copy_of_weights(network)
    if settings.resume and state_path.is_file():
        best = _load_state(state_path, network, optimizer, state)
    metrics, spent = MetricsFile(metrics_path, keep_until_step=state.step), _Stopwatch(clock, state.seconds)

    def save() -> None:
        state.seconds = spent.seconds
        _save_state(state_path, network, optimizer, state, best)
        spent.mark_save()

    n_evaluations = max(1, min(MAX_EVALUATIONS, settings.max_steps // MIN_STEPS_BETWEEN_EVALUATIONS))
    progress = progress_of(state.step, spent.seconds, settings)
    total, unit = (round(60 * settings.max_minutes), "s") if settings.max_minutes else (settings.max_steps, "steps")
    with stop_between_steps(), Progress(total, "train", unit, int(total * progress), may_stop=False) as bar:
        while progress < 1 and state.evaluations_since_best < settings.patience_evaluations:
            learning_rate = one_cycle(progress, settings.learning_rate)
            loss, figures = _step(network, optimizer, batch_of, loss_of, learning_rate, settings.seed, state, progress)
            metrics.add(loss, figures)
            previous, progress = progress, progress_of(state.step, spent.seconds, settings)
            if int(progress * n_evaluations) > int(previous * n_evaluations):
                found = evaluate(network)
                best = _judge(network, found["validation_loss"], progress, settings, state, best)
                metrics.write(state.step, progress, spent.seconds, learning_rate, found)
                if on_evaluate is not None:
                    on_evaluate(progress, found)
            elif int(progress * N_METRIC_ROWS) > int(previous * N_METRIC_ROWS):
                metrics.write(state.step, progress, spent.seconds, learning_rate, {})
            bar.update(int(total * progress) - bar.done, **metrics.latest)
            if stop_asked():
                save()
                raise Interrupted(f"Training stopped at step {state.step}; --resume goes on from there.")
            if spent.since_save > settings.checkpoint_interval_seconds:
                save()
    save()
    network.load_state_dict(best)
    return LoopResult(state.step, state.seconds, state.best_loss, "schedule" if progress >= 1 else "early stop")


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, batch_of, loss_of, learning_rate: float, seed: int,
          state: LoopState, progress: float) -> tuple[float, dict[str, float]]:
    """One update of the weights; a step without finite gradients changes nothing."""
    network.train()
    # dropout draws from the global generator: seeded by the step, it needs no place in the saved state
    torch.manual_seed(seed * 1_000_003 + state.step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("relative_rate", 1.0)
    loss, figures = loss_of(network, batch_of(state.step, progress), progress)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
    state.step += 1
    if torch.isfinite(norm):
        optimizer.step()
        state.bad_steps = 0
        return loss.item(), figures
    state.bad_steps += 1
    if state.bad_steps > MAX_BAD_STEPS:
        raise FloatingPointError(f"{state.bad_steps} steps in a row had no finite gradient; lower the learning rate.")
    return math.nan, figures


def _judge(network: nn.Module, loss: float, progress: float, settings: LoopSettings, state: LoopState,
           best: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keeps the best weights, and counts the evaluations that brought nothing better."""
    if loss < state.best_loss:
        state.best_loss, state.evaluations_since_best = loss, 0
        return _copy_of_weights(network)
    if progress >= settings.patience_from_progress:
        state.evaluations_since_best += 1
    return best


def _copy_of_weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _save_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, state: LoopState,
                best: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_state(path, {"format": STATE_FORMAT, "network": network.state_dict(), "optimizer": optimizer.state_dict(),
                      "state": asdict(state), "best": best})


def _load_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer,
                state: LoopState) -> dict[str, Tensor]:
    """Puts a saved state back; returns the best weights so far. The file holds tensors and numbers only."""
    saved = load_state(path, next(network.parameters()).device)
    try:
        if saved["format"] != STATE_FORMAT:
            raise ValueError(f"its format is {saved['format']}, this version reads {STATE_FORMAT}")
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        for name, value in saved["state"].items():
            setattr(state, name, value)
        return saved["best"]
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--resume needs the saved state of the same training; {path} is not ({error}). Use the same "
                         "options as before, or choose another --out.") from error


class _Stopwatch:
    """Seconds of training, those of earlier parts of a resumed run included, and since the last save."""

    def __init__(self, clock: Callable[[], float], seconds_before: float):
        self._clock = clock
        self._start = clock() - seconds_before
        self.mark_save()

    @property
    def seconds(self) -> float:
        return self._clock() - self._start

    @property
    def since_save(self) -> float:
        return self._clock() - self._last_save

    def mark_save(self) -> None:
        self._last_save = self._clock()


class MetricsFile:
    """``metrics.csv``, a row about every 200th of the training, flushed as it is written.

    Losses are means since the last row; the columns of the held-out figures are empty between evaluations. A resumed
    run drops the rows that were written after the state it goes on from.
    """

    COLUMNS = ("step", "progress", "seconds", "learning_rate", "loss")

    def __init__(self, path: Path, keep_until_step: int):
        self._path, self._columns = path, list(self.COLUMNS)
        self._sums: dict[str, list[float]] = {}
        self._rows: list[dict] = []
        self.latest: dict[str, float] = {}
        if keep_until_step and path.is_file():
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                self._rows = [row for row in reader if int(row["step"]) <= keep_until_step]
                self._columns = list(reader.fieldnames or self.COLUMNS)
        self._rewrite()

    def add(self, loss: float, figures: dict[str, float]) -> None:
        """The figures of one step."""
        for name, value in {"loss": loss, **figures}.items():
            if math.isfinite(value):
                self._sums.setdefault(name, []).append(value)

    def write(self, step: int, progress: float, seconds: float, learning_rate: float, found: dict[str, float]) -> None:
        """Adds a row: means of the steps since the last one, and held-out figures where there are any."""
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        row = {"step": step, "progress": round(progress, 6), "seconds": round(seconds, 2),
               "learning_rate": learning_rate, **means, **found}
        self.latest = {**self.latest, **{name: row[name] for name in _SHOWN if name in row}}
        self._sums = {}
        self._rows.append(row)
        new_columns = [name for name in row if name not in self._columns]
        if new_columns:
            self._columns += new_columns
            self._rewrite()
        else:
            with open(self._path, "a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self) -> None:
        with atomic_path(self._path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
