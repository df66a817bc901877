"""A particle set as training sees it: its images prepared, its noise and signal, the map of its labels."""

import numpy as np
import pytest
import torch

from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.mrc import read_map
from cryoforum_core.training.supervised import plan_training

from .supervised_runs import KNOWN, config


def test_the_estimated_signal_to_noise_ratio_is_that_of_the_particles(tmp_path, particle_set, molecule):
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


def test_symmetry_is_used_in_map_and_validation(tmp_path, particle_set):
    particles = particle_set(300, snr=2.0)
    plan = plan_training(config(tmp_path, symmetry="C2"), particles, state=KNOWN)
    turned = torch.flip(plan.volume, dims=(1, 2)).roll((1, 1), dims=(1, 2))
    inside = (slice(2, None),) * 3
    correlation = np.corrcoef(plan.volume[inside].flatten(), turned[inside].flatten())[0, 1]
    assert correlation > 0.9 and len(plan.inputs.group) == 2


def test_prepared_images_are_masked_and_their_ctf_is_what_is_left(tmp_path, particle_set, molecule):
    """Phases are flipped in the preparation: what stands between projection and image is the CTF's absolute value."""
    particles = particle_set(300, snr=2.0)
    views = plan_training(config(tmp_path, reference=molecule), particles, state=KNOWN).views
    batch = particles.batch(np.arange(5))
    assert (views.ctf(batch.ctf) >= 0).all()
    assert views.mask[12, 12] == 1 and views.mask[0, 0] == 0
    labels = views.labels(particles.subset(np.arange(5)))
    torch.testing.assert_close(labels.images, views.unmasked(batch) * views.mask)
    assert (labels.images[:, views.mask == 0] == 0).all() and views.unmasked(batch)[:, 0, 0].abs().min() > 0
