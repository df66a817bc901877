"""The noise of the images, from what lies around the particles."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_core.ab_initio.background import N_NOISE_IMAGES, background_spectrum

from .hybrid_runs import BOX, N_CLEAN


def test_white_noise_has_the_same_power_in_each_shell(half_sets):
    """Prepared images have a background of standard deviation 1: B^2 in every shell."""
    spectrum = background_spectrum(half_sets.images, np.arange(N_CLEAN))
    assert spectrum.shape == (BOX // 2 + 1,)
    # coarse shells hold the tails of the particle, which reach the corners
    torch.testing.assert_close(spectrum[6:], torch.full((BOX // 2 - 5,), float(BOX ** 2)), rtol=0.15, atol=0)


def test_images_cropped_in_fourier_space_keep_the_noise_of_their_shells(half_sets):
    """Transforms of a box half as large are a quarter as large, their power is a sixteenth."""
    small = background_spectrum(replace(half_sets.images, box_size_px=BOX // 2), np.arange(N_CLEAN))
    assert small[5:8].mean() == pytest.approx(BOX ** 2 / 16, rel=0.25)


def test_no_more_images_are_read_than_are_needed(half_sets, monkeypatch):
    read = []

    class Counting(type(half_sets.images)):
        def transforms(self, rows):
            read.extend(rows.tolist())
            return super().transforms(rows % N_CLEAN)

    images = Counting(**vars(half_sets.images))
    background_spectrum(images, np.arange(3000))
    assert len(read) == len(set(read)) == N_NOISE_IMAGES
