"""Whitening, resolution and displacements of images as the likelihood sees them."""

import pytest
import torch

from cryoforum_core.matching.whitened_images import to_images

from .whitened_noise import BOX, RADIUS, matching_images, noise


def test_whitened_noise_has_unit_power():
    found = matching_images(3 * noise(200), torch.full((BOX // 2 + 1,), 9.0 * BOX ** 2))
    assert found.data.abs().square().mean().item() == pytest.approx(1.0, abs=0.02)
    assert (found.radius.diff() >= 0).all() and found.radius.max() <= RADIUS


def test_lower_resolution_keeps_the_pixels_within():
    found = matching_images(noise(2))
    low = found.up_to(5.0)
    assert low.radius.max() <= 5.0 and torch.equal(low.data, found.data[:, :low.data.shape[1]])
    assert found.radius[low.data.shape[1]] > 5.0


def test_phases_displace_by_whole_pixels():
    found = matching_images(noise(1))
    shifted = found.data * found.displacement_phase(torch.tensor([[3.0, -2.0]]))
    expected = torch.roll(to_images(found.data, found), (-2, 3), (-2, -1))
    assert torch.allclose(to_images(shifted, found), expected, atol=1e-4)
