"""Images of a map with known poses, like those of a data set."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.imaging.fourier import ifft_image
from cryoforum_core.imaging.noise_spectrum import noise_power_spectrum
from cryoforum_core.matching.likelihood import contrast_from_poses, predicted
from cryoforum_core.matching.matching_model import MatchingModel
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import determine_image_state
from cryoforum_core.uncertainty.simulated_images import ImageSource, particles_like

from ..matching.conftest import blobs
from .conftest import BOX, PIXEL, N


@pytest.mark.parametrize("contrast", ["bright", "dark"])
@pytest.mark.parametrize("ctf_state", ["raw", "phase-flipped", "multiplied"])
def test_simulated_images_are_like_the_sets_own(data, contrast, ctf_state):
    """Prepared like the set's, they have the contrast that the model says, at their poses and at no others."""
    particles = load_particles(data.particles)
    state = determine_image_state(particles, cf.PredictConfig(out="x", particles="x", model="x"))
    raw = ImagePreparation(particles, state, BOX, torch.device("cpu"))
    truth = load_particles(data.truth, require_poses=True).poses
    poses = truth.quaternion, -truth.shift_angstrom / PIXEL
    # the set itself in another state, made of the molecule
    source = replace(ImageSource.like(raw, model_of(raw)), state=replace(state, contrast=contrast, ctf_state=ctf_state))
    own = replace(raw, particles=particles_like(source, raw, *poses, seed=5), state=source.state)
    model = model_of(own)
    known = particles_like(ImageSource.like(own, model), own, *poses, seed=6)
    prepared, rows = replace(own, particles=known), np.arange(0, N, 2)
    images_ft, ctf = prepared.transforms(rows)
    torch.testing.assert_close(images_ft, prepared.transforms(rows)[0])
    images = model.images(images_ft, ctf)
    for expected, at in ((1.0, rows), (0.2, rows[::-1].copy())):
        found, variance = contrast_from_poses(images, predicted(images, model.volume, known.quaternion[at],
                                                                known.displacement_px[at]), 0.0)
        mean = (found / variance).sum() / (1 / variance).sum()
        assert abs(mean - expected) < (0.1 if expected == 1.0 else 0.35)
    assert abs(images.data.abs().square().mean() / model.images(*own.transforms(rows)).data.abs().square().mean() - 1) < 0.1


def model_of(images):
    images_ft, ctf = images.transforms(np.arange(N))
    spectrum = noise_power_spectrum(ifft_image(images_ft), 0.45 * BOX)
    return MatchingModel.estimate(blobs(), images_ft, ctf, spectrum, torch.tensor([[0.0, 0, 0, 1]]), BOX / 2 - 1, 4.0)
