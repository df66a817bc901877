"""A map as a statistical model of the images: its amplitude, its contrast, images as it says they are."""

import pytest
import torch

from cryoforum_core.geometry.rotations import (
    angular_distance_deg,
    compose,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.imaging.fourier import shell_average
from cryoforum_core.matching.exhaustive_search import SearchGrid
from cryoforum_core.matching.matching_model import simulated_transforms

from .conftest import BOX


def test_adapting_finds_the_amplitude_that_the_images_have(noisy_images):
    model = noisy_images.model()
    images = model.images(1.5 * noisy_images.images_ft[:80], noisy_images.ctf[:80])
    found = SearchGrid.build(model, step_deg=12.0).search(images, n_hypotheses=8)
    adapted, overall = model.adapted(images, found[:, 0])
    low = slice(2, 10)
    ratio = (adapted.amplitude[low] / model.amplitude[low]).mean()
    assert 1.2 < ratio < 1.6 and 1.2 < overall < 1.6


def test_amplitude_is_that_with_which_the_images_were_made(noisy_images):
    """They were made with amplitude 1, of the map itself."""
    model = noisy_images.model()
    assert model.amplitude[2:10].mean() == pytest.approx(1.0, abs=0.1)
    scaled = model.with_contrast_scaled(1.5)
    torch.testing.assert_close(scaled.amplitude, 1.5 * model.amplitude)


def test_simulated_transforms_have_the_power_of_signal_and_noise(noisy_images):
    model = noisy_images.model()
    made = simulated_transforms(model, noisy_images.ctf, seed=3)
    assert torch.equal(made, simulated_transforms(model, noisy_images.ctf, seed=3))
    own, like = (shell_average(x.abs().square().mean(0), BOX)[2:15] for x in (noisy_images.images_ft, made))
    assert (like / own).log().abs().max() < 0.25


def test_stages_end_at_the_finest_resolution_and_never_begin_beyond_it(noisy_images):
    model = noisy_images.model()
    radii = [stage.max_radius_px for stage in model.stages(8.0, (6, 2, 2))]
    assert radii[0] == 8.0 and radii[-1] == model.max_radius_px == 15.0 and radii == sorted(radii)
    assert {stage.max_radius_px for stage in model.stages(50.0, (6, 2, 2))} == {15.0}


def test_local_matching_converges_from_five_degrees_away_and_keeps_the_best_hypothesis_first(clean_images):
    model = clean_images.model()
    images = model.images(clean_images.images_ft, clean_images.ctf)
    n, generator = len(clean_images.quaternion), torch.Generator().manual_seed(2)
    axis = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    near = compose(clean_images.quaternion, rotation_vector_to_quaternion(torch.deg2rad(torch.tensor(5.0)) * axis))
    starts = torch.stack([random_quaternions(n, generator), near], dim=1)
    found = model.refine_from(images, starts, torch.zeros(n, 2, 2))
    assert (found.score[:, 0] >= found.score[:, 1]).all()
    assert angular_distance_deg(found.quaternion[:, 0], clean_images.quaternion).median() < 0.5
