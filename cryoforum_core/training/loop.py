"""The one training loop: what happens in a step, when it ends, and how it goes on after a stop.

Everything random in step s is drawn from generators seeded with (seed, s), so the state to be saved is the weights, the
optimizer, the step and the time spent: a resumed run on a CPU gives the same bits as one that was never stopped.
"""

import csv
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, Interrupted
from ..interruption import stop_asked, stop_between_steps
from ..progress import Progress
from ..run_directory import atomic_path
from ..saved_state import load_state, save_state
from .learnable_poses import JointOptimizer
from .schedules import one_cycle

logger = logging.getLogger("cryoforum")

# of the saved state; another number when its keys change
STATE_FORMAT = 1
# evaluations during the training must cost little of it
MAX_EVALUATIONS = 20
# short trainings must not spend their time on evaluations
MIN_STEPS_BETWEEN_EVALUATIONS = 25
# points enough for a smooth curve in the report
N_METRIC_ROWS = 200
# figures beside the progress bar
_SHOWN = ("loss", "validation_median_error_deg")
# second moments over 100 steps: AdamW's default of 1,000 is as long as many of these trainings
ADAM_BETAS = (0.9, 0.99)
# no single batch may throw the weights far off
MAX_GRADIENT_NORM = 1.0
# single batches may overflow; more than this many in a row show that the training has diverged
MAX_BAD_STEPS = 25
# a prime above the number of steps of usual trainings, so that two seeds share no generator
SEED_STRIDE = 1_000_003

Optimizer = torch.optim.Optimizer | JointOptimizer


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
    """The state that a resumed run needs beside weights and optimizer."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    evaluations_since_best: int = 0
    bad_steps: int = 0

    def count_step(self, is_finite: bool) -> None:
        """Raises FloatingPointError where the gradients of too many steps in a row were not finite."""
        self.step += 1
        self.bad_steps = 0 if is_finite else self.bad_steps + 1
        if self.bad_steps > MAX_BAD_STEPS:
            raise FloatingPointError(f"{self.bad_steps} steps in a row had no finite gradient; lower the learning rate.")

    def is_best(self, loss: float, is_patient: bool) -> bool:
        """Whether a held-out loss is the lowest so far; if not, the evaluation counts, unless ``is_patient``."""
        if loss < self.best_loss:
            self.best_loss, self.evaluations_since_best = loss, 0
            return True
        if not is_patient:
            self.evaluations_since_best += 1
        return False


@dataclass(frozen=True)
class LoopResult:
    """How the training ended; ``reason`` is one of "schedule" and "early stop"."""

    steps: int
    seconds: float
    best_loss: float
    reason: str


def progress_of(step: int, seconds: float, settings: LoopSettings) -> float:
    """How much of the training is done, in [0, 1]: by steps or by time, whichever is further."""
    by_time = seconds / (60 * settings.max_minutes) if settings.max_minutes else 0.0
    return min(1.0, max(step / settings.max_steps, by_time))


def step_generator(seed: int, step: int, purpose: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of everything random in one step; ``purpose`` separates streams of one step."""
    return torch.Generator(device).manual_seed((seed * SEED_STRIDE + step) * 16 + purpose)


class TrainingTask(ABC):
    """What is trained, and on which batches; ``train_network`` decides the steps and the learning rate."""

    def __init__(self, network: nn.Module):
        self.network = network

    @abstractmethod
    def batch(self, step: int, progress: float) -> object:
        """The batch of a step, at a fraction ``progress`` of the training: a function of these two alone."""

    @abstractmethod
    def loss(self, batch: object, progress: float) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of a batch, a scalar with gradients, and figures for ``metrics.csv``."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Figures of held-out images, among them ``validation_loss``."""

    def on_evaluate(self, progress: float, figures: dict[str, float]) -> None:
        """Called after every evaluation, with its figures: a place to show how far the training is."""

    def optimizer(self, settings: LoopSettings) -> Optimizer:
        """AdamW; biases, normalisation and slopes (one-dimensional parameters) are not decayed.

        A parameter group may have a ``relative_rate``, its learning rate over that of the schedule.
        """
        matrices = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=ADAM_BETAS, eps=1e-6, fused=True)


def train_network(task: TrainingTask, settings: LoopSettings, state_path: Path, metrics_path: Path,
                  clock: Callable[[], float] = time.monotonic) -> LoopResult:
    """Trains ``task.network`` in place; it ends with the weights that had the best held-out loss.

    ``clock`` counts seconds; a comparison on a shared machine takes those of its own process. Raises Interrupted on
    SIGINT, after saving; InputError where ``state_path`` cannot be read.
    """
    network, optimizer, state = task.network, task.optimizer(settings), LoopState()
    best = _copy_of_weights(network)
    if settings.resume and state_path.is_file():
        best = _load_state(state_path, network, optimizer, state)
    metrics, spent = MetricsFile(metrics_path, keep_until_step=state.step), _Stopwatch(clock, state.seconds)
    n_evaluations = max(1, min(MAX_EVALUATIONS, settings.max_steps // MIN_STEPS_BETWEEN_EVALUATIONS))
    progress = progress_of(state.step, spent.seconds, settings)
    total, unit = (round(60 * settings.max_minutes), "s") if settings.max_minutes else (settings.max_steps, "steps")
    with stop_between_steps(), Progress(total, "train", unit, int(total * progress), may_stop=False) as bar:
        while progress < 1 and state.evaluations_since_best < settings.patience_evaluations:
            network.train()
            # dropout draws from the global generator: seeded by the step, it needs no place in the saved state
            torch.manual_seed(settings.seed * SEED_STRIDE + state.step)
            learning_rate = one_cycle(progress, settings.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group.get("relative_rate", 1.0)
            loss, figures = task.loss(task.batch(state.step, progress), progress)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            # a step without finite gradients changes nothing
            is_finite = bool(torch.isfinite(nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)))
            if is_finite:
                optimizer.step()
            state.count_step(is_finite)
            metrics.add(loss.item() if is_finite else math.nan, figures)

            previous, progress = progress, progress_of(state.step, spent.seconds, settings)
            if _enters_next_part(previous, progress, n_evaluations):
                found = task.evaluate()
                if state.is_best(found["validation_loss"], is_patient=progress < settings.patience_from_progress):
                    best = _copy_of_weights(network)
                metrics.write(state.step, progress, spent.seconds, learning_rate, found)
                task.on_evaluate(progress, found)
            elif _enters_next_part(previous, progress, N_METRIC_ROWS):
                metrics.write(state.step, progress, spent.seconds, learning_rate, {})
            bar.update(int(total * progress) - bar.done, **metrics.latest)
            is_stopping = stop_asked()
            if is_stopping or spent.since_save > settings.checkpoint_interval_seconds:
                _save_state(state_path, network, optimizer, state, best, spent)
            if is_stopping:
                raise Interrupted(f"Training stopped at step {state.step}; --resume continues from there.")
    _save_state(state_path, network, optimizer, state, best, spent)
    network.load_state_dict(best)
    return LoopResult(state.step, state.seconds, state.best_loss, "schedule" if progress >= 1 else "early stop")


def _enters_next_part(previous: float, progress: float, n_parts: int) -> bool:
    """Whether a step from one progress to the next entered another of ``n_parts`` equal parts of the training."""
    return int(progress * n_parts) > int(previous * n_parts)


def _copy_of_weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _save_state(path: Path, network: nn.Module, optimizer: Optimizer, state: LoopState,
                best: dict[str, Tensor], spent: "_Stopwatch") -> None:
    state.seconds = spent.seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    save_state(path, {"format": STATE_FORMAT, "network": network.state_dict(), "optimizer": optimizer.state_dict(),
                      "state": asdict(state), "best": best})
    spent.mark_save()


def _load_state(path: Path, network: nn.Module, optimizer: Optimizer,
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
