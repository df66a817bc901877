"""Supervised training from end to end on a small molecule: labels, endless projections, fine-tuning, bad input."""

import signal

import pytest
import torch

from cryoforum_core.errors import InputError, Interrupted
from cryoforum_core.geometry.rotations import angular_distance_deg
from cryoforum_core.model.checkpoint import load_checkpoint
from cryoforum_core.mrc import read_map
from cryoforum_core.run_directory import RunDirectory
from cryoforum_core.training.streams import MixedStream
from cryoforum_core.training.supervised import plan_training

from .supervised_runs import KNOWN, config, run_training


def weights(run: RunDirectory) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(run.path)[0].state_dict().values()])


@pytest.fixture(scope="module")
def taught(tmp_path_factory, particle_set, molecule):
    """A short training from the map: its configuration, summary and run."""
    settings = config(tmp_path_factory.mktemp("taught"), reference=molecule, max_steps=120)
    return settings, *run_training(settings, particle_set(300, snr=2.0))


def test_training_on_simulated_projections_finds_orientations_of_particles(taught, particle_set):
    settings, summary, run = taught
    particles = particle_set(300, snr=2.0)
    assert summary["validation_source"] == "simulated projections" and summary["n_labelled"] == 0
    assert summary["validation_median_error_deg"] < 60
    network, metadata = load_checkpoint(run.path)
    batch = plan_training(settings, particles, state=KNOWN).views.labels(particles)
    with torch.no_grad():
        estimate = network.predict(batch.images, batch.ctf)
    # the particles' own images, which it has never seen, do as well as its simulated ones
    error = angular_distance_deg(estimate.quaternion, batch.quaternion)
    assert error.median() < 65
    assert (estimate.shift_angstrom - batch.shift_angstrom).norm(dim=1).median() < 4.0
    assert metadata.symmetry == "c1" and metadata.preprocessing["box_size_px"] == 24
    assert metadata.training["validation_median_error_deg"] == summary["validation_median_error_deg"]
    run.remove_temporary()  # as the job does in the end
    assert not list(run.checkpoint.glob("*.pt")) and run.metrics.is_file()


def test_training_from_labels_writes_a_map_and_learns(tmp_path, particle_set):
    summary, run = run_training(config(tmp_path, max_steps=80), particle_set(600, snr=2.0))
    assert summary["n_labelled"] == 540 and summary["validation_median_error_deg"] < 80
    volume, pixel_size = read_map(load_checkpoint(run.path)[1].reference)
    assert volume.shape == (24, 24, 24) and pixel_size == pytest.approx(6.0)


def test_fine_tuning_starts_from_the_trained_weights(tmp_path, taught, particle_set, molecule):
    particles, (_, first, run) = particle_set(300, snr=2.0), taught
    again, _ = run_training(config(tmp_path / "again", reference=molecule, max_steps=15, from_checkpoint=run.path),
                            particles)
    fresh, _ = run_training(config(tmp_path / "fresh", reference=molecule, max_steps=15), particles)
    assert again["validation_mean_error_deg"] < first["validation_mean_error_deg"] + 3
    assert again["validation_mean_error_deg"] < fresh["validation_mean_error_deg"] - 15


def test_fine_tuning_keeps_the_symmetry(tmp_path, taught, particle_set, molecule):
    """A network of d2 that goes on as c1 would be written down as one of c1."""
    options = {"reference": molecule, "from_checkpoint": taught[2].path}
    with pytest.raises(InputError, match="trained with c1, and --symmetry is c2. Give --symmetry c1"):
        plan_training(config(tmp_path, symmetry="C2", **options), particle_set(300, snr=2.0), state=KNOWN)
    assert plan_training(config(tmp_path, symmetry="C1", **options), particle_set(300, snr=2.0), state=KNOWN)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path, particle_set, monkeypatch, precision):
    particles = particle_set(300, snr=2.0)
    options = {"dropout": 0.2, "precision": precision}
    whole, run = run_training(config(tmp_path / "whole", **options), particles)
    with pytest.raises(Interrupted, match="stopped at step 17;"), monkeypatch.context() as patched:
        patched.setattr(MixedStream, "__call__", _press_ctrl_c(MixedStream.__call__, in_step=17))
        run_training(config(tmp_path / "parts", **options), particles)
    parts, resumed = run_training(config(tmp_path / "parts", resume=True, **options), particles)
    assert parts["steps"] == whole["steps"] == 40
    assert torch.equal(weights(run), weights(resumed))
    assert parts["validation_mean_error_deg"] == whole["validation_mean_error_deg"]


def _press_ctrl_c(batch_of, in_step: int):
    """A stream's call that sends SIGINT while the batch of the ``in_step``-th step is made."""
    def batch(stream, step, progress):
        if step + 1 == in_step:
            signal.raise_signal(signal.SIGINT)
        return batch_of(stream, step, progress)

    return batch
