"""Searches from random starts: what they see, and what images that they have not seen say of their maps."""

import pytest
import torch

from cryoforum_core.ab_initio.random_starts import (
    SearchImages,
    SearchResult,
    agreement_deg,
    assess,
    search_settings,
    spherical_average,
)
from cryoforum_core.ab_initio.rounds import reconstruct
from cryoforum_core.geometry.rotations import compose, mirror_hand, random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.fourier import resize_volume
from cryoforum_core.mrc import read_map

from .hybrid_runs import BOX, N_CLEAN


def test_a_spherical_average_has_no_direction(clean_data):
    known = torch.from_numpy(read_map(clean_data.map)[0])
    ball = spherical_average(known)
    assert torch.allclose(ball.flip(0).roll(1, 0), ball, atol=1e-3 * float(ball.abs().max()))
    assert torch.allclose(ball.transpose(0, 2), ball, atol=1e-3 * float(ball.abs().max()))
    assert ball.sum() == pytest.approx(float(known.sum()), rel=1e-3)


@pytest.fixture(scope="module")
def images(half_sets):
    return SearchImages.prepare(half_sets.images, seed=1, last_radius_px=11.0)


def test_a_tenth_of_the_images_is_held_out(images):
    assert len(images.held_out) == N_CLEAN // 10 and len(images.seen) == N_CLEAN - N_CLEAN // 10
    assert float(images.seen.radius.max()) <= 11.0
    # whitened: both samples have the noise's power of 1, and signal beyond it
    seen, held_out = (some.data.abs().square().mean() for some in (images.seen, images.held_out))
    assert seen > 1 and held_out == pytest.approx(seen.item(), rel=0.1)


def test_lengths_of_a_search_are_fractions_of_the_box(images):
    settings = search_settings(images, 10, 0.4, 0.125)
    assert settings.mask_radius_px == pytest.approx(0.4 * BOX) and settings.max_displacement_px == pytest.approx(4.0)
    assert settings.first_radius_px == 6.0 and settings.last_radius_px == pytest.approx(11.0, abs=0.5)


def test_held_out_images_prefer_the_right_map_to_its_spherical_average_and_to_a_wrong_one(images, half_sets, poses):
    settings = search_settings(images, 10, 0.45, 0.125)
    right = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0).pair.mean_reference
    right = resize_volume(right, BOX)
    shuffled = right[:, torch.randperm(BOX, generator=torch.Generator().manual_seed(1))]
    found, wrong, ball = (assess(images, volume, settings, seed=0) for volume in (right, shuffled, spherical_average(right)))
    assert found.found_structure and found.explained_fraction > 0.6 and found.is_settled
    assert found.score > wrong.score and wrong.explained_fraction < 0.6
    # next to nothing: a ball on a grid is not quite one
    assert ball.structure < 0.1 * found.structure and not ball.is_settled


def result(seed: int, score: float, quaternion) -> SearchResult:
    return SearchResult(seed, torch.zeros(4, 4, 4), score, 2.0, 0.1, 0.9, quaternion)


def test_starts_are_compared_after_their_frames_and_hands_are_aligned():
    generator = torch.Generator().manual_seed(2)
    best = random_quaternions(50, generator)
    frame = random_quaternions(1, generator)
    other = compose(mirror_hand(best), frame.expand(50, 4))
    results = [result(0, 1.0, other), result(1, 2.0, best), result(2, 0.5, random_quaternions(50, generator))]
    angles = agreement_deg(results, symmetry_group("c1"))
    assert set(angles) == {0, 2} and angles[0] < 0.5 and angles[2] > 40
