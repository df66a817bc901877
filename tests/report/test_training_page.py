"""The page of train."""

import json

import numpy as np
import pytest

from cryoforum_core.report.run_files import RunFiles
from cryoforum_core.report.training_page import training_curves, training_page

from .example_runs import train_run
from .page_texts import words


def test_training_level_follows_the_error(tmp_path):
    good = training_page(RunFiles(train_run(tmp_path / "good", 5.0)))
    fair = training_page(RunFiles(train_run(tmp_path / "fair", 36.0)))
    assert fair.assessment.level == "caution" and len(fair.next_steps) == 2 and len(good.next_steps) == 1
    assert good.assessment.level == "good" and "5.00° (median) and 11.0° (mean)" in good.assessment.sentences[0]
    poor = training_page(RunFiles(train_run(tmp_path / "poor", 75.0)))
    assert poor.assessment.level == "poor" and "--from-checkpoint" in poor.next_steps[-1].command


@pytest.mark.parametrize("source, said", [
    ("simulated projections", "On simulated projections that were not used for training, the error of the network is 5.00°"),
    ("held-out particles", "On held-out particles that were not used for training, the error of the network is 5.00°"),
    (None, "On images that were not used for training, the error of the network is 5.00°")])
def test_training_says_which_images_its_errors_are_of(tmp_path, source, said):
    run = train_run(tmp_path / "run", 5.0)
    if source:
        run.write_summary(run.read_summary() | {"validation_source": source})
    assert words(training_page(RunFiles(run))).startswith(said)


def test_continued_training_keeps_the_symmetry_of_the_run(tmp_path):
    run = train_run(tmp_path / "run", 75.0)
    run.config.write_text(json.dumps(json.loads(run.config.read_text()) | {"symmetry": "d2"}))
    assert "--symmetry d2" in training_page(RunFiles(run)).next_steps[-1].command


def test_overfitting_is_reported(tmp_path):
    assert "overfits." in words(training_page(RunFiles(train_run(tmp_path / "a", overfits=True))))
    assert "overfits." not in words(training_page(RunFiles(train_run(tmp_path / "b"))))


def test_curves_are_drawn_of_what_metrics_hold(tmp_path):
    """Without evaluations there is no validation error; without any rows no curve at all."""
    step = np.arange(1.0, 6.0)
    assert [picture.title for picture in training_curves({"step": step, "loss": step, "bingham": step, "shift": step})] == [
        "Loss", "Terms of the loss"]
    full = {"step": step, "loss": step, "validation_loss": step, "validation_median_error_deg": step}
    assert [picture.title for picture in training_curves(full)] == ["Validation error", "Loss"]
    run = train_run(tmp_path / "run")
    run.metrics.unlink()
    assert not training_page(RunFiles(run)).pictures
