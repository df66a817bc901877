"""How well a map explains a sample of images, under right and wrong assumptions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.fourier import fft_volume, low_pass_volume, volume_radius_px
from cryoforum_core.inference.sample_matching import SCRAMBLED_FROM_SHELL, Assumption, SampleMatching, scrambled
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState

from ..matching.conftest import blobs
from .conftest import BOX

C1 = symmetry_group("c1")


def sample_of(truth, volume) -> SampleMatching:
    images = ImagePreparation(truth, ImageState(), BOX, torch.device("cpu"))
    return SampleMatching(images, np.arange(60), volume, C1, BOX / 2 - 1, 4.0)


@pytest.fixture(scope="module")
def sample(truth):
    return sample_of(truth, blobs())


@pytest.fixture(scope="module")
def stated(sample):
    return sample.stated_gain()


def test_the_right_map_gains_what_it_is_expected_to_and_more_than_a_map_of_chance(sample, stated):
    expected, chance = sample.expected_gain(), sample.chance_gain()
    assert stated.per_image.mean() == pytest.approx(expected.per_image.mean().item(), rel=0.3)
    assert stated.per_image.mean() > 2 * chance.per_image.mean()
    assert stated.amplitude == pytest.approx(1.0, abs=0.15)


def test_inverted_contrast_gains_less(sample, stated):
    inverted = sample.gain(Assumption(replace(sample.stated.state, contrast="dark")))
    assert inverted.per_image.mean() < 0.7 * stated.per_image.mean()


def test_a_wrong_pixel_size_gains_less_at_the_same_poses(sample, stated):
    gains = {factor: sample.local_gain(Assumption(sample.stated.state, factor), stated.poses, smallest_factor=0.9)
             for factor in (0.9, 1.0, 1.1)}
    assert max(gains, key=lambda factor: gains[factor].per_image.sum()) == 1.0


def test_the_pass_band_ends_where_a_map_was_low_pass_filtered(truth, sample, stated):
    filtered = sample_of(truth, low_pass_volume(blobs(), 6.0))
    assert filtered.pass_band_px(stated.poses) < 8.0 < sample.pass_band_px(stated.poses)


def test_a_scrambled_map_has_the_same_power_in_each_shell_and_the_same_coarsest_ones():
    volume = blobs()
    other = scrambled(volume, seed=0)
    own_ft, other_ft = fft_volume(volume), fft_volume(other)
    radius = volume_radius_px(BOX)
    low = radius < SCRAMBLED_FROM_SHELL - 0.5
    torch.testing.assert_close(other_ft[low], own_ft[low], rtol=1e-3, atol=1e-3)
    for shell in (5, 8, 11):
        some = (radius.round() == shell)
        assert other_ft[some].abs().square().mean() == pytest.approx(own_ft[some].abs().square().mean().item(), rel=0.02)
        cosine = (own_ft[some].conj() * other_ft[some]).real.sum() / (own_ft[some].norm() * other_ft[some].norm())
        assert abs(cosine) < 0.4
    assert torch.equal(other, scrambled(volume, seed=0)) and not torch.equal(other, scrambled(volume, seed=1))
