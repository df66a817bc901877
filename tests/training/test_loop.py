"""The training loop: schedules, resume bit for bit, early stop, interruption, metrics."""

import csv
import itertools
import math
import signal
import time

import pytest
import torch

from cryoforum_core.errors import InputError, Interrupted
from cryoforum_core.training.loop import LoopSettings, MetricsFile, TrainingTask, progress_of, step_generator, train_network


class Problem(TrainingTask):
    """A regression with dropout: everything that a resumed run must repeat is in it."""

    def __init__(self, interrupt_at: int | None = None):
        torch.manual_seed(3)
        super().__init__(torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(),
                                             torch.nn.Dropout(0.3), torch.nn.Linear(16, 1)))
        self.interrupt_at = interrupt_at
        self.steps_seen = []

    def batch(self, step, progress):
        self.steps_seen.append((step, progress))
        if step == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        x = torch.randn(32, 4, generator=step_generator(0, step))
        return x, x.sum(1, keepdim=True) + (1 - progress)

    def loss(self, batch, progress):
        value = (self.network(batch[0]) - batch[1]).square().mean()
        return value, {"square": value.item()}

    def evaluate(self):
        self.network.eval()
        x = torch.randn(64, 4, generator=step_generator(0, 10_000))
        with torch.no_grad():
            return {"validation_loss": (self.network(x) - x.sum(1, keepdim=True)).square().mean().item()}

    def train(self, directory, clock=time.monotonic, **settings):
        chosen = LoopSettings(**{"max_steps": 75, "learning_rate": 0.02, **settings})
        return train_network(self, chosen, directory / "state.pt", directory / "metrics.csv", clock)


def weights(problem: Problem) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in problem.network.state_dict().values()])


def read_metrics(directory) -> list[dict]:
    with open(directory / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_progress_is_by_steps_or_by_time_whichever_is_further():
    settings = LoopSettings(max_steps=100, learning_rate=1.0, max_minutes=2.0)
    assert progress_of(25, 12.0, settings) == 0.25
    assert progress_of(25, 60.0, settings) == 0.5
    assert progress_of(25, 6000.0, settings) == 1.0
    assert progress_of(25, 1e9, LoopSettings(max_steps=100, learning_rate=1.0)) == 0.25


def test_generators_differ_by_seed_step_and_purpose():
    draws = [torch.randn(4, generator=step_generator(*key)) for key in [(0, 0), (0, 1), (1, 0), (0, 0, 1)]]
    for i, first in enumerate(draws):
        assert torch.equal(first, torch.randn(4, generator=step_generator(*[(0, 0), (0, 1), (1, 0), (0, 0, 1)][i])))
        assert not any(torch.equal(first, second) for second in draws[i + 1:])


def test_training_lowers_the_held_out_loss(tmp_path):
    problem = Problem()
    before = problem.evaluate()["validation_loss"]
    result = problem.train(tmp_path)
    assert result.steps == 75 and result.reason == "schedule"
    after = problem.evaluate()["validation_loss"]
    assert after < 0.5 * before and after == result.best_loss


@pytest.mark.parametrize("interrupt_at", [0, 17, 41])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, interrupt_at):
    whole, stopped, resumed = Problem(), Problem(interrupt_at), Problem()
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole.train(tmp_path / "whole")
    with pytest.raises(Interrupted, match="--resume"):
        stopped.train(tmp_path / "parts")
    with torch.no_grad():
        for parameter in resumed.network.parameters():
            parameter.fill_(0.5)  # a resumed run takes nothing from how its network began
    resumed.train(tmp_path / "parts", resume=True)
    assert resumed.steps_seen == whole.steps_seen[interrupt_at + 1:]
    assert torch.equal(weights(resumed), weights(whole))
    rows, expected = read_metrics(tmp_path / "parts"), read_metrics(tmp_path / "whole")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert [row["validation_loss"] for row in rows] == [row["validation_loss"] for row in expected]


def test_sigint_works_as_before_after_the_training(tmp_path):
    Problem().train(tmp_path, max_steps=3)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_early_stop_ends_with_the_best_weights(tmp_path):
    losses, seen, shown = iter([3.0, 1.0, 2.0, 2.5, 1.5, 9.0, 9.0, 9.0]), {}, []

    class GivenLosses(Problem):
        def evaluate(self):
            value = next(losses)
            seen[value] = weights(self).clone()
            return {"validation_loss": value}

        def on_evaluate(self, progress, figures):
            shown.append((progress, figures["validation_loss"]))

    problem = GivenLosses()
    result = problem.train(tmp_path, max_steps=500, learning_rate=0.01, patience_evaluations=3)
    assert shown == [(0.05, 3.0), (0.1, 1.0), (0.15, 2.0), (0.2, 2.5), (0.25, 1.5)]
    assert result.reason == "early stop" and result.best_loss == 1.0 and result.steps == 125
    assert torch.equal(weights(problem), seen[1.0])


def test_patience_waits_until_the_noise_is_full(tmp_path):
    class NeverBetter(Problem):
        def evaluate(self):
            return {"validation_loss": 1.0}

    result = NeverBetter().train(tmp_path, max_steps=500, learning_rate=0.01, patience_evaluations=2,
                                 patience_from_progress=0.6)
    assert result.steps == 325


def test_time_stretches_the_schedule(tmp_path):
    """By a clock that goes on by a hundredth of a second at each look."""
    result = Problem().train(tmp_path, clock=itertools.count(0, 0.01).__next__, max_steps=10**9, max_minutes=0.01)
    assert result.seconds == pytest.approx(0.6, abs=0.05) and 10 < result.steps < 60
    rows = read_metrics(tmp_path)
    assert float(rows[-1]["learning_rate"]) < 0.1 * max(float(row["learning_rate"]) for row in rows)


def test_steps_without_a_finite_loss_change_nothing_and_many_of_them_stop_the_training(tmp_path):
    class Overflowing(Problem):
        def __init__(self, bad_steps):
            super().__init__()
            self.bad_steps = bad_steps

        def loss(self, batch, progress):
            value, figures = super().loss(batch, progress)
            return (value * math.nan if self.steps_seen[-1][0] in self.bad_steps else value), figures

    one = Overflowing({5})
    assert one.train(tmp_path, max_steps=60, learning_rate=0.01).steps == 60 and torch.isfinite(weights(one)).all()
    with pytest.raises(FloatingPointError, match="learning rate"):
        Overflowing(set(range(60))).train(tmp_path, max_steps=60, learning_rate=0.01)


@pytest.mark.parametrize("content", [b"", b"not a state", None])
def test_a_state_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "state.pt"
    path.write_bytes(content) if content is not None else torch.save({"format": 1, "network": {}}, path)
    with pytest.raises(InputError, match="--resume"):
        Problem().train(tmp_path, resume=True)


def test_metrics_hold_means_and_drop_rows_after_the_state(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv", keep_until_step=0)
    for value in (1.0, 3.0, math.nan):
        metrics.add(value, {"extra": 2 * value})
    metrics.write(3, 0.3, 1.0, 0.01, {})
    metrics.add(5.0, {"extra": 0.0})
    metrics.write(6, 0.6, 2.0, 0.01, {"validation_loss": 7.0})
    rows = read_metrics(tmp_path)
    assert [float(row["loss"]) for row in rows] == [2.0, 5.0] and float(rows[0]["extra"]) == 4.0
    assert rows[0]["validation_loss"] == "" and rows[1]["validation_loss"] == "7.0"
    MetricsFile(tmp_path / "metrics.csv", keep_until_step=4)
    assert [row["step"] for row in read_metrics(tmp_path)] == ["3"]
