"""Variation of labelled images: the varied image is the projection at the varied label."""

import math

import pytest
import torch

from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.imaging.fourier import fft_image, ifft_image, shell_average, shift_phase
from cryoforum_core.training.augment import random_transforms, transform_images, transform_labels, vary_grey_values

BOX = 24


@pytest.fixture
def images_at(volume):
    """Projections at quaternions (n, 4), displaced by minus the shifts (n, 2)."""
    return lambda quaternion, shift_px: ifft_image(volume.project(quaternion) * shift_phase(-shift_px, BOX))


def correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    first, second = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (first, second))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


@pytest.fixture
def poses():
    generator = torch.Generator().manual_seed(0)
    return random_quaternions(32, generator), 0.8 * torch.randn(32, 2, generator=generator)


def test_an_image_rotated_in_plane_is_the_projection_at_the_rotated_label(poses, images_at):
    quaternion, shift = poses
    angle, displacement, _ = random_transforms(32, BOX, torch.Generator().manual_seed(1))
    one = torch.ones(32)
    found = transform_images(images_at(quaternion, shift), angle, displacement, one)
    expected = images_at(*transform_labels(quaternion, shift, angle, displacement, one))
    agreement = correlation(found, expected)
    assert agreement.min() > 0.95 and agreement.median() > 0.999
    wrong = images_at(*transform_labels(quaternion, shift, -angle, displacement, one))
    assert correlation(found, wrong).median() < 0.9
    wrong = images_at(*transform_labels(quaternion, shift, angle, -4 * displacement, one))
    assert correlation(found, wrong).median() < 0.97


def test_magnification_moves_the_centre_with_it(poses, images_at):
    quaternion, shift = poses
    one = torch.ones(32)
    found = transform_images(images_at(quaternion, shift), 0 * one, torch.zeros(32, 2), 1.1 * one)
    _, moved = transform_labels(quaternion, shift, 0 * one, torch.zeros(32, 2), 1.1 * one)
    offset = (torch.arange(BOX) - BOX // 2).float()

    def centre(images):
        total = images.sum((1, 2))
        return torch.stack([(images.sum(1) * offset).sum(1) / total, (images.sum(2) * offset).sum(1) / total], 1)

    start = centre(images_at(quaternion, 0 * shift))
    assert torch.allclose(centre(found), 1.1 * start - moved, atol=0.35)
    assert torch.allclose(moved, 1.1 * shift)


def test_no_rotation_changes_nothing():
    images = torch.randn(4, BOX, BOX, generator=torch.Generator().manual_seed(2))
    same = transform_images(images, torch.zeros(4), torch.zeros(4, 2), torch.ones(4))
    assert torch.allclose(same, images, atol=1e-4)


def test_rotation_keeps_the_noise_spectrum():
    noise = torch.randn(300, BOX, BOX, generator=torch.Generator().manual_seed(3))
    angle = 2 * math.pi * torch.rand(300, generator=torch.Generator().manual_seed(4))
    turned = transform_images(noise, angle, torch.zeros(300, 2), torch.ones(300))
    power = shell_average(fft_image(turned).abs().square().mean(0), BOX)[1:] / BOX ** 2
    assert (power > 0.85).all() and (power < 1.4).all()


def test_rotations_are_of_all_angles_shifts_and_magnifications_small():
    angle, displacement, magnification = random_transforms(2000, 64, torch.Generator().manual_seed(0))
    assert angle.min() < 0.1 and angle.max() > 2 * math.pi - 0.1
    assert displacement.std() == pytest.approx(0.02 * 64, rel=0.1)
    assert magnification.log().std() == pytest.approx(0.01, rel=0.1)


def test_grey_values_vary_in_contrast_and_noise():
    images = torch.ones(500, BOX, BOX)
    varied = vary_grey_values(images, torch.ones(BOX, BOX // 2 + 1), torch.Generator().manual_seed(0))
    assert varied.mean((1, 2)).log().std() == pytest.approx(0.2, rel=0.15)
    assert 0.1 < varied.std((1, 2)).mean() < 0.25
