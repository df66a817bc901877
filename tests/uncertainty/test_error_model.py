import math

import pytest
import torch

from cryoforum_core.geometry.rotations import angular_distance_deg, compose, random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.uncertainty.calibration import fewest_known, n_simulated
from cryoforum_core.uncertainty.coverage import cross_validated
from cryoforum_core.uncertainty.error_model import ErrorModel, Evidence, conformal_quantile
from cryoforum_core.uncertainty.match_posterior import MatchPosterior, uniform_angles_rad

from .populations import UNIFORM, evidence, population


def test_without_known_particles_errors_are_those_that_matches_state():
    deviation = torch.deg2rad(torch.tensor([[0.3, 0.5, 1.0]])).expand(4000, 3)
    true = (deviation * torch.randn(4000, 3, generator=torch.Generator().manual_seed(6))).norm(dim=1).rad2deg()
    expected, bound = ErrorModel.uncalibrated(UNIFORM, 0.9).expected_error_deg(evidence(deviation))
    assert abs(expected[0] / true.mean() - 1) < 0.1
    assert 0.87 < (true <= bound).float().mean() < 0.93


def test_any_number_of_known_particles_may_be_misassigned():
    n = 40_000
    error_rad = torch.where(torch.arange(n) % 4 == 0, 0.015, 2.0)
    model = ErrorModel.fit(evidence(torch.full((n, 3), 0.01)), error_rad, torch.ones(n), UNIFORM, 0.9)
    assert abs(model.misassigned_angle_rad.median() - 2.0) < 1e-6


def test_the_expected_error_of_a_misassigned_particle_is_that_of_a_random_pose():
    nothing_fits = evidence(torch.full((1, 3), 0.01), torch.full((1,), -20.0))
    for name, mean_deg in (("c1", 126.5), ("d2", 75.0)):
        group = symmetry_group(name)
        expected, bound = ErrorModel.uncalibrated(uniform_angles_rad(group), 0.9).expected_error_deg(nothing_fits)
        random = random_quaternions(4000, torch.Generator().manual_seed(7))
        identity = torch.tensor([0.0, 0.0, 0.0, 1.0])
        angles = torch.stack([angular_distance_deg(compose(random, g), identity) for g in group]).amin(0)
        assert abs(expected - angles.mean()) < 3 and bound > expected
        assert abs(angles.mean() - mean_deg) < 3


def test_enough_images_are_simulated_for_a_high_coverage():
    assert n_simulated(600, 0.9) == 600 and n_simulated(10 ** 6, 0.9) == 2500 and fewest_known(0.9) == 100
    for coverage in (0.99, 0.999):
        n = n_simulated(200, coverage)
        new = population(50, 1)[0]
        model = ErrorModel.fit(*population(n, 0), UNIFORM, coverage)
        assert torch.isfinite(model.expected_shift_error_angstrom(new)[1]).all() and n < 1500
    found = cross_validated(*population(n, 0), UNIFORM, coverage)
    assert torch.isfinite(found.shift_bound_angstrom).all()


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
def test_bounds_have_their_nominal_coverage_on_new_particles(coverage):
    model = ErrorModel.fit(*population(800, 0), UNIFORM, coverage)
    new, error, shift_error = population(20000, 1)
    within = torch.deg2rad(model.expected_error_deg(new)[1]) >= error
    assert abs(within.double().mean() - coverage) < 0.03
    within = model.expected_shift_error_angstrom(new)[1] >= shift_error
    assert abs(within.double().mean() - coverage) < 0.04
    # what the particles say themselves is not true of them
    stated = ErrorModel.uncalibrated(UNIFORM, coverage).expected_error_deg(new)[1]
    assert (torch.deg2rad(stated) >= error).double().mean() < coverage - 0.04


def test_expected_errors_are_mean_errors_of_particles_of_that_expectation():
    model = ErrorModel.fit(*population(2000, 2), UNIFORM, 0.9)
    new, error, shift_error = population(20000, 3)
    expected, bound = model.expected_error_deg(new)
    order = expected.argsort()
    for part in order.chunk(5):
        assert abs(expected[part].mean() / torch.rad2deg(error[part]).mean() - 1) < 0.2
    assert abs(model.expected_shift_error_angstrom(new)[0].mean() / shift_error.mean() - 1) < 0.1
    # a bound belongs to its particle: sharper for the sharp ones, and it holds among them as among the others
    few_misassigned = new.fit > 1
    narrow, wide = (part[few_misassigned[part]] for part in (order[:10000], order[10000:]))
    assert bound[narrow].median() < 0.7 * bound[wide].median()
    assert all((torch.deg2rad(bound[part]) >= error[part]).double().mean() > 0.85 for part in (narrow, wide))


def test_expected_errors_are_small_where_no_particle_is_misassigned():
    deviation = torch.deg2rad(torch.ones(500, 3))
    error = (deviation * torch.randn(500, 3, generator=torch.Generator().manual_seed(4))).norm(dim=1)
    model = ErrorModel.fit(evidence(deviation), error, torch.ones(500), UNIFORM, 0.9)
    expected, bound = model.expected_error_deg(evidence(deviation))
    assert abs(expected[0] - torch.rad2deg(error).mean()) < 0.3 and bound[0] < 4
    assert model.misassignment_probability(evidence(deviation)).max() < 0.01


def test_a_particle_unlike_all_known_ones_counts_as_misassigned():
    model = ErrorModel.fit(*population(500, 5), UNIFORM, 0.9)
    junk = evidence(torch.full((1, 3), 0.01), torch.full((1,), -12.0))
    expected, bound = model.expected_error_deg(junk)
    assert model.misassignment_probability(junk) > 0.99 and expected > 60 and bound > 120


def test_the_conformal_quantile_covers_one_more_value():
    scores = torch.arange(1.0, 100.0)
    assert conformal_quantile(scores, 0.9) == 90 and conformal_quantile(scores, 0.5) == 50
    assert conformal_quantile(torch.arange(5.0), 0.9) == math.inf  # six values are too few for nine in ten
    model = ErrorModel.fit(*(x[:5] for x in population(20, 6)), UNIFORM, 0.9)
    assert (model.expected_error_deg(population(10, 7)[0])[1] == 180).all()


def test_misassignment_probabilities_are_calibrated_where_few_particles_have_alternative_poses():
    """Most particles have no alternative pose at all, a few have strong ones: as many are misassigned as expected."""
    generator = torch.Generator().manual_seed(4)
    n = 1500
    has_alternative = torch.rand(n, generator=generator) < 0.02
    alternative = torch.where(has_alternative, 10 ** (-9 * torch.rand(n, generator=generator)), 1e-14)
    posterior = MatchPosterior(torch.stack([1 - alternative, alternative], 1), torch.tensor([0.0, 2.0]).expand(n, 2),
                               torch.full((n, 3), 0.013))
    particles = Evidence(posterior, torch.randn(n, generator=generator), 0.6 * torch.rand(n, generator=generator) + 0.1,
                         torch.full((n, 2), 0.5))
    is_misassigned = torch.rand(n, generator=generator) < torch.where(has_alternative, 0.15, 0.008)
    error_rad = torch.where(is_misassigned, 1.0, 0.02)
    model = ErrorModel.fit(particles, error_rad, torch.ones(n), UNIFORM, 0.9)
    assert abs(model.misassignment.probability(particles.features()).sum() / is_misassigned.sum() - 1) < 0.02
    expected = torch.deg2rad(model.expected_error_deg(particles)[0])
    assert abs(expected.mean() / error_rad.mean() - 1) < 0.1
