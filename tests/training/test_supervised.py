"""Supervised training from end to end on a small molecule: labels, endless projections, fine-tuning, bad input."""

import dataclasses
import signal

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.config import TrainConfig
from cryoforum_core.errors import InputError, Interrupted
from cryoforum_core.geometry.rotations import angular_distance_deg, compose, rotation_vector_to_quaternion
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.model.checkpoint import load_checkpoint
from cryoforum_core.mrc import read_map, write_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.run_directory import RunDirectory
from cryoforum_core.training.streams import MixedStream
from cryoforum_core.training.supervised import plan_training, train

KNOWN = ImageState()


def config(tmp_path, **options) -> TrainConfig:
    defaults = {"out": tmp_path / "run", "particles": "unused.star", "width": 12, "batch_size": 64, "max_steps": 40}
    return TrainConfig(**{**defaults, **options})


def run_training(settings: TrainConfig, particles) -> tuple[dict, RunDirectory]:
    run = RunDirectory(settings.out)
    run.prepare(settings, settings.resume)
    return train(settings, run, particles, state=KNOWN), run


def weights(run: RunDirectory) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(run.path)[0].state_dict().values()])


@pytest.fixture(scope="module")
def taught(tmp_path_factory, particle_set, molecule):
    """A short training from the map: its configuration, summary and run."""
    settings = config(tmp_path_factory.mktemp("taught"), reference=molecule, max_steps=120)
    return settings, *run_training(settings, particle_set(300, snr=2.0))


def test_endless_projections_teach_orientations(taught, particle_set):
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


def test_estimated_ratio_is_that_of_the_particles(tmp_path, particle_set, molecule):
    for snr in (0.5, 2.0):
        plan = plan_training(config(tmp_path, reference=molecule), particle_set(300, snr=snr), state=KNOWN)
        assert plan.image_model.snr == pytest.approx(snr, rel=0.2)


def test_labels_make_the_map_and_hold_out_their_own_validation(tmp_path, particle_set, molecule):
    particles = particle_set(600, snr=2.0)
    plan = plan_training(config(tmp_path), particles, state=KNOWN)
    truth = torch.from_numpy(read_map(molecule)[0])
    fsc = fourier_shell_correlation(plan.volume, truth)
    assert fsc[1:7].min() > 0.95
    held_out = sum(len(batch) for batch in plan.validation)
    assert plan.validation_source == "held-out particles" and held_out == 60 and plan.n_labelled == 540
    assert plan.stream.particle_fraction == 0.5


@pytest.fixture(scope="module")
def ribosome(tmp_path_factory):
    """200 images of 48 px with their poses, SNR 2."""
    return cf.simulate(cf.SimulateConfig(out=tmp_path_factory.mktemp("ribosome") / "set", n_particles=200, box_size_px=48,
                                         snr=2.0, seed=1))


def test_the_map_of_labels_has_no_solvent_where_they_agree_in_an_outline(ribosome):
    particles = load_particles(ribosome.truth)
    settings = config(ribosome.path, network_box_size_px=32)
    volume = plan_training(settings, particles, state=KNOWN).volume
    known = torch.from_numpy(read_map(ribosome.map)[0])
    solvent = volume == 0
    assert 0.6 < solvent.float().mean() < 0.95  # half of the box lies outside the sphere
    assert known[solvent].square().sum() < 0.02 * known.square().sum()
    assert fourier_shell_correlation(volume, known)[3:12].mean() > 0.9
    # poses that are off by 60 degrees make a coarse map, whose outline is not to be trusted
    off = rotation_vector_to_quaternion(0.7 * torch.randn(len(particles), 3, generator=torch.Generator().manual_seed(0)))
    poses = dataclasses.replace(particles.poses, quaternion=compose(particles.poses.quaternion, off))
    coarse = plan_training(settings, dataclasses.replace(particles, poses=poses), state=KNOWN).volume
    assert (coarse == 0).float().mean() < 0.5


def test_training_from_labels_writes_a_map_and_learns(tmp_path, particle_set):
    summary, run = run_training(config(tmp_path, max_steps=80), particle_set(600, snr=2.0))
    assert summary["n_labelled"] == 540 and summary["validation_median_error_deg"] < 80
    volume, pixel_size = read_map(load_checkpoint(run.path)[1].reference)
    assert volume.shape == (24, 24, 24) and pixel_size == pytest.approx(6.0)


def test_fine_tuning_starts_from_what_was_learnt(tmp_path, taught, particle_set, molecule):
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


def test_the_belief_is_calibrated_on_held_out_images(taught, particle_set):
    settings, _, run = taught
    network = load_checkpoint(run.path)[0]
    plan = plan_training(settings, particle_set(300, snr=2.0), state=KNOWN)
    chosen = network.ensemble_weight.item()
    loss = {}
    for factor in (0.7, 1.0, 1.4):
        network.ensemble_weight.fill_(factor * chosen)
        found = plan.objective.evaluate(network, plan.validation, as_predicted=True)
        loss[factor] = found["validation_negative_log_likelihood"]
    assert loss[1.0] < loss[0.7] and loss[1.0] < loss[1.4]


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


def test_the_half_set_asked_for_is_used(tmp_path, particle_set, molecule):
    particles = particle_set(300, snr=2.0)
    plan = plan_training(config(tmp_path, half_set="2"), particles, state=KNOWN)
    assert plan.n_labelled == 135 and set(particles.half_set[plan.inputs.rows]) == {2}


def test_symmetry_is_used_in_map_and_validation(tmp_path, particle_set):
    particles = particle_set(300, snr=2.0)
    plan = plan_training(config(tmp_path, symmetry="C2"), particles, state=KNOWN)
    turned = torch.flip(plan.volume, dims=(1, 2)).roll((1, 1), dims=(1, 2))
    inside = (slice(2, None),) * 3
    correlation = np.corrcoef(plan.volume[inside].flatten(), turned[inside].flatten())[0, 1]
    assert correlation > 0.9 and len(plan.inputs.group) == 2


def test_a_reference_on_another_grid_is_brought_to_the_particles(tmp_path, particle_set, molecule):
    volume, _ = read_map(molecule)
    padded = np.pad(volume, 6)
    write_map(tmp_path / "padded.mrc", padded, 6.0)
    plans = [plan_training(config(tmp_path, reference=path), particle_set(300, snr=2.0), state=KNOWN)
             for path in (molecule, tmp_path / "padded.mrc")]
    assert torch.allclose(plans[0].volume, plans[1].volume, atol=1e-4)


def test_all_problems_are_reported_at_once(tmp_path, particle_set, molecule):
    particles = particle_set(300, snr=2.0)
    settings = config(tmp_path, reference=tmp_path / "none.mrc", symmetry="c1x", network_box_size_px=33,
                      from_checkpoint=tmp_path / "nothing")
    with pytest.raises(InputError) as caught:
        plan_training(settings, particles, state=KNOWN)
    text = str(caught.value)
    assert len(caught.value.problems) >= 4
    assert all(word in text for word in ("none.mrc", "c1x", "--network-box-size-px", "nothing"))


@pytest.mark.parametrize("options, change, says", [
    ({}, {"poses": None}, "--reference"),
    ({"half_set": "1"}, {"half_set": None}, "rlnRandomSubset"),
    ({}, {"ctf": None}, "CTF"),
])
def test_particles_that_lack_something_are_refused(tmp_path, particle_set, options, change, says):
    particles = particle_set(300, snr=2.0)
    particles = dataclasses.replace(particles, **change)
    with pytest.raises(InputError, match=says):
        plan_training(config(tmp_path, **options), particles, state=KNOWN)


def test_too_few_labels_are_refused(tmp_path, particle_set):
    with pytest.raises(InputError, match="at least"):
        plan_training(config(tmp_path), particle_set(300, snr=2.0).subset(np.arange(10)), state=KNOWN)
