"""Images of two half sets, cropped to what the resolution of a round needs."""

import numpy as np
import pytest
import torch

from cryoforum_core.ab_initio.half_sets import BATCH_IMAGES, batches
from cryoforum_core.ab_initio.rounds import reconstruct

from .hybrid_runs import BOX, N_CLEAN


def test_every_particle_is_in_one_half_set(half_sets):
    rows = np.concatenate([half_sets.rows(1), half_sets.rows(2)])
    assert sorted(rows.tolist()) == list(range(N_CLEAN)) and abs(len(half_sets.rows(1)) - N_CLEAN / 2) <= 1


@pytest.mark.parametrize("max_radius_px, box", [(5.0, 14), (6.4, 18), (15.0, BOX), (100.0, BOX)])
def test_a_round_has_the_smallest_even_box_that_holds_its_resolution(half_sets, max_radius_px, box):
    scaled = half_sets.scaled(half_sets.background_spectrum, max_radius_px)
    assert scaled.box_size_px == box and scaled.scale == box / BOX and len(scaled.noise_spectrum) == box // 2 + 1
    assert scaled.mask().shape == (box,) * 3 and scaled.mask()[box // 2, box // 2, box // 2] == 1


def test_whitened_images_are_the_same_in_a_smaller_box(half_sets):
    """Fourier-cropped, with a noise spectrum that follows: the pixels that are left have the same values."""
    small, large = (half_sets.scaled(half_sets.background_spectrum, radius_px).at(np.arange(20))
                    for radius_px in (6.0, 15.0))
    assert float(small.radius.max()) <= 6.0 and len(small.radius) < len(large.radius)
    own, other = ({tuple(k): values for k, values in zip(images.k.round().int().tolist(), images.data.T, strict=True)}
                  for images in (small, large))
    for k, values in own.items():
        torch.testing.assert_close(values, other[k], rtol=1e-3, atol=1e-3)


def test_the_model_of_a_round_measures_displacements_in_its_own_pixels(half_sets, poses):
    scaled = half_sets.scaled(half_sets.background_spectrum, 6.0)
    volume = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0).pair.mean_reference
    model = scaled.model(volume)
    assert model.max_displacement_px == pytest.approx(4.0 * scaled.scale)
    assert model.volume.box_size_px == scaled.box_size_px and model.max_radius_px == 6.0


def test_noise_beyond_the_resolution_of_a_round_stays_as_it_was(half_sets, poses):
    spectrum = half_sets.background_spectrum
    found = reconstruct(half_sets, poses, spectrum, 6.0).pair.noise_spectrum
    assert found.shape == spectrum.shape
    torch.testing.assert_close(found[9:], spectrum[9:])


def test_batches_hold_every_row_once_and_no_more_than_are_matched_at_once():
    rows = np.random.default_rng(0).permutation(1000)
    parts = list(batches(rows))
    assert np.concatenate(parts).tolist() == rows.tolist() and max(map(len, parts)) <= BATCH_IMAGES
    assert [len(part) for part in batches(rows[:0])] == [0]
