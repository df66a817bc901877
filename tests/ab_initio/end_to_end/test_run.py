"""The method end-to-end as a job: what it finds, what it writes, when it says that it did not converge, resuming."""

import json
import signal

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.ab_initio.end_to_end.run import end_to_end
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.errors import Interrupted
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.model.checkpoint import load_checkpoint
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.run_directory import RunDirectory

from .end_to_end_runs import BOX, CPU, N_SHORT, PIXEL, config, run_end_to_end


def weights(run: RunDirectory) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(run.path)[0].state_dict().values()])


def test_known_poses_recover_the_map(sets, tmp_path):
    made = sets(float("inf"))
    summary, run = run_end_to_end(config(tmp_path, made.truth, poses="known", epochs=6))
    assert summary["converged"] and summary["explained_fraction"] > 0.95
    assert summary["hand"] == "that of the poses given"
    volume, pixel_size = read_map(run.map)
    fsc = fourier_shell_correlation(torch.from_numpy(volume), torch.from_numpy(read_map(made.map)[0]))
    assert volume.shape == (BOX,) * 3 and pixel_size == pytest.approx(PIXEL) and fsc[1:7].min() > 0.97
    assert not run.orientation_posterior.exists() and not (run.checkpoint / "checkpoint.json").exists()


def test_the_summary_says_what_was_done(short):
    summary = short[0]
    promised = {"converged", "converged_reason", "resolution_angstrom", "method", "symmetry", "hand", "n_particles",
                "n_steps", "train_seconds", "validation_loss"}
    assert promised <= set(summary)
    assert summary["method"] == "end-to-end" and summary["hand"] == "undetermined"
    assert summary["n_particles"] == N_SHORT and summary["n_steps"] == 3 * 18
    assert summary["converged"] is False and summary["converged_reason"].endswith(".")
    assert summary["half_sets"] == "drawn at random" and list(summary["stages"]) == ["training", "poses and maps"]


def test_the_run_can_be_followed(short):
    """The map as it is learnt and the curve of the loss are in the page before the training ends."""
    _, run, _, pages = short
    before, learning, *_, last = pages
    assert before[0]["stage"] == learning[0]["stage"] == "training" and before[0]["fraction"] == 0
    progress, volume, page = [page for page in pages if page[0]["loss"] is not None][-1]
    assert progress["stages"] == ["training", "poses and maps"] and 0 < progress["loss"] < 2
    assert volume.shape == (BOX,) * 3 and "<h3>The map so far</h3>" in page and "<h3>Loss</h3>" in page
    assert last[0]["fraction"] == 1 and last[0]["message"] == "did not converge"
    assert np.allclose(last[1], read_map(run.map)[0], rtol=1e-5)
    assert json.loads(run.progress.read_text())["fraction"] == 1
    assert "report.html" in run.live.read_text()  # whoever has it open is led on


def test_network_and_map_learn_together(sets, tmp_path):
    """From images without noise alone, with projections at random poses: little is left unexplained."""
    made = sets(float("inf"))
    summary, run = run_end_to_end(config(tmp_path, made.particles, encoder="polar", epochs=24, random_pose_weight=1.0))
    assert summary["converged"], summary["converged_reason"]
    assert summary["validation_loss"] < 0.1 * summary["loss_without_poses"] and summary["loss_of_noise"] < 0.01
    assert summary["projection_error_deg"] < 15
    errors = cf.evaluate(cf.EvaluateConfig(out=tmp_path / "errors", particles=run.particles, truth=made.truth,
                                           align_frame=True, allow_mirror=True)).read_summary()
    assert errors["median_error_deg"] < 5
    poses = cf.predict(cf.PredictConfig(out=tmp_path / "poses", particles=made.particles, model=run.path, device="cpu",
                                        refinement="none", ctf_state="raw", contrast="bright"))
    predicted = cf.evaluate(cf.EvaluateConfig(out=tmp_path / "again", particles=poses.particles, truth=made.truth,
                                              align_frame=True, allow_mirror=True)).read_summary()
    assert predicted["median_error_deg"] < 5


def test_an_interrupted_run_goes_on_bit_for_bit(sets, tmp_path):
    particles = sets(2.0).particles
    options = {"epochs": 3, "batch_size": 100, "symmetric_loss": True, "per_image_after_epoch": 2}
    whole, run = run_end_to_end(config(tmp_path / "whole", particles, **options))
    stopped = config(tmp_path / "parts", particles, **options)
    plan = plan_ab_initio(stopped, load_particles(particles, stopped), CPU)
    RunDirectory(stopped.out).prepare(stopped)
    with pytest.raises(Interrupted, match="--resume"):
        end_to_end(plan, RunDirectory(stopped.out), on_evaluate=_interrupt)
    parts, resumed = run_end_to_end(stopped.model_copy(update={"resume": True}))
    assert parts["n_steps"] == whole["n_steps"] == 27 and torch.equal(weights(run), weights(resumed))
    assert parts["validation_loss"] == whole["validation_loss"]
    assert ParticleTable.read(run.particles).floats("rlnAngleRot").tolist() == ParticleTable.read(
        resumed.particles).floats("rlnAngleRot").tolist()


def _interrupt(*_) -> dict[str, float]:
    """The first evaluation of a training; a user stops it there."""
    signal.raise_signal(signal.SIGINT)
    return {}
