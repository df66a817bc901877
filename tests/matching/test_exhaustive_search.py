import pytest
import torch

from cryoforum_core.geometry.rotations import angular_distance_deg, random_quaternions
from cryoforum_core.geometry.symmetry import symmetric_distance_deg, symmetry_group
from cryoforum_core.matching.exhaustive_search import (
    GridReferences,
    SearchGrid,
    asymmetric_unit,
    displacement_grid,
    distinct_best,
    score_grid,
)
from cryoforum_core.matching.likelihood import log_likelihood_ratio

from .conftest import blobs, simulate


def test_grid_scores_are_the_log_likelihood(noisy_images):
    model = noisy_images.model()
    images = model.images(noisy_images.images_ft[:4], noisy_images.ctf[:4]).up_to(8.0)
    grid = random_quaternions(30, torch.Generator().manual_seed(5))
    shifts = displacement_grid(2.0, 1.0)
    references = GridReferences.build(model.volume, grid, images.k)
    score, which = score_grid(images, references, shifts)
    for row in range(4):
        one = images[torch.full((len(shifts),), row)]
        for rotation in (0, 7, 29):
            direct = log_likelihood_ratio(one, model.volume, grid[rotation].expand(len(shifts), 4), shifts)
            torch.testing.assert_close(score[row, rotation], direct.max(), rtol=1e-3, atol=1e-2)
            assert which[row, rotation] == direct.argmax()


def test_displacements_fill_a_disc():
    grid = displacement_grid(3.0, 1.0)
    assert len(grid) == 29
    assert (grid == 0).all(dim=1).any() and grid.norm(dim=1).max() <= 3.0


def test_distinct_best_are_distinct_and_ordered():
    grid = random_quaternions(4000, torch.Generator().manual_seed(6))
    centre = grid[:1]
    score = -angular_distance_deg(grid, centre)[None]
    chosen = grid[distinct_best(score, grid, 5, separation_rad=0.3, pool=2000)[0]]
    assert angular_distance_deg(chosen[:1], centre) < 1e-3
    distance = angular_distance_deg(chosen[:, None], chosen[None]) + 180 * torch.eye(5)
    assert distance.min() >= torch.rad2deg(torch.tensor(0.3)) - 1e-3


def test_search_finds_poses_from_nothing(noisy_images):
    model = noisy_images.model()
    images = model.images(noisy_images.images_ft[:60], noisy_images.ctf[:60])
    found = SearchGrid.build(model, step_deg=12.0).search(images, n_hypotheses=10)
    error = angular_distance_deg(found.quaternion[:, 0], noisy_images.quaternion[:60])
    assert error.median() < 3.0 and (error < 15).float().mean() > 0.9
    assert (found.score[:, 0] >= found.score[:, 1]).all()


def c2_blobs():
    half = blobs()
    return half + half.flip((-1, -2)).roll((1, 1), (-1, -2))


def test_search_under_symmetry_looks_at_the_asymmetric_unit_only():
    simulated = simulate(30, snr=1.0, seed=4, volume=c2_blobs())
    model, group = simulated.model("c2"), symmetry_group("c2")
    search = SearchGrid.build(model, step_deg=14.0)
    everything = SearchGrid.build(simulated.model("c1"), step_deg=14.0)
    assert len(search.references.quaternion) == pytest.approx(len(everything.references.quaternion) / 2, rel=0.05)
    found = search.search(model.images(simulated.images_ft, simulated.ctf), n_hypotheses=10)
    error = symmetric_distance_deg(found.quaternion[:, 0], simulated.quaternion, group)
    assert (error < 10).float().mean() > 0.9


def test_asymmetric_unit_represents_every_rotation():
    group = symmetry_group("d2")
    grid = random_quaternions(3000, torch.Generator().manual_seed(7))
    unit = asymmetric_unit(grid, group)
    anything = random_quaternions(50, torch.Generator().manual_seed(8))
    nearest = symmetric_distance_deg(anything[:, None], unit[None], group).min(dim=1).values
    assert nearest.max() < 25 and len(unit) < 0.3 * len(grid)
