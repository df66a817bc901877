"""The likelihood of poses, on whitened images."""

import pytest
import torch

from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.matching.likelihood import log_likelihood_ratio, predicted
from cryoforum_core.matching.whitened_images import WhitenedImages

from .whitened_noise import BOX, matching_images, noise


@pytest.fixture(scope="module")
def volume():
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    centres = 5 * torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return FourierVolume.from_real(sum(torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 5) for a, b, c in centres))


def test_true_pose_is_the_likeliest(volume):
    n = 12
    quaternion = random_quaternions(n, torch.Generator().manual_seed(3))
    displacement = 2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(4))
    blank = matching_images(torch.zeros(n, BOX, BOX), torch.full((BOX // 2 + 1,), 50.0))
    clean = predicted(blank, volume, quaternion, displacement)
    images = WhitenedImages(clean, blank.transfer, blank.k, blank.radius, BOX)
    at_truth = log_likelihood_ratio(images, volume, quaternion, displacement)
    # without noise the ratio is the power of the model itself
    assert torch.allclose(at_truth, clean.abs().square().sum(-1), rtol=1e-4)
    for other in (quaternion.roll(1, 0), random_quaternions(n, torch.Generator().manual_seed(9))):
        assert (log_likelihood_ratio(images, volume, other, displacement) < at_truth).all()
    assert (log_likelihood_ratio(images, volume, quaternion, displacement + 1.5) < at_truth).all()


def test_an_empty_map_has_the_likelihood_of_an_empty_image(volume):
    """Images of pure noise: on average each pose is less likely than no particle, by the power of its projection."""
    images = matching_images(noise(400), torch.full((BOX // 2 + 1,), float(BOX ** 2)))
    quaternion = random_quaternions(400, torch.Generator().manual_seed(3))
    model = predicted(images, volume, quaternion, torch.zeros(400, 2))
    power = model.abs().square().sum(-1)
    ratio = log_likelihood_ratio(images, volume, quaternion, torch.zeros(400, 2))
    deviation = torch.sqrt(2 * power)
    assert ((ratio + power) / deviation).mean().abs() < 0.15
    assert ((ratio + power) / deviation).std().item() == pytest.approx(1.0, abs=0.1)
