"""Nominal against empirical coverage, by cross-validation."""

from cryoforum_core.uncertainty.coverage import cross_validated

from .populations import UNIFORM, population


def test_empirical_coverage_is_nominal_on_particles_that_the_model_has_not_seen():
    found = cross_validated(*population(1500, 8), UNIFORM, 0.9)
    assert found.nominal == (0.5, 0.8, 0.9, 0.95)
    assert all(abs(nominal - fraction) < 0.04 for nominal, fraction in zip(found.nominal, found.empirical, strict=True))
    assert abs((found.error_deg <= found.bound_deg).double().mean() - 0.9) < 0.03


def test_coverage_asked_for_is_one_of_the_levels():
    found = cross_validated(*population(500, 9), UNIFORM, 0.7)
    assert found.nominal == (0.5, 0.7, 0.8, 0.9, 0.95)
    assert all(a <= b for a, b in zip(found.empirical, found.empirical[1:]))  # a wider bound holds for more particles


def test_shift_bounds_have_the_nominal_coverage():
    found = cross_validated(*population(1500, 10), UNIFORM, 0.8)
    assert abs((found.shift_error_angstrom <= found.shift_bound_angstrom).double().mean() - 0.8) < 0.03


def test_no_particle_is_in_the_model_that_assesses_it():
    """One particle with an error far beyond all others: its own bound must not know of it."""
    known, error_rad, shift_error = population(400, 11)
    before = cross_validated(known, error_rad, shift_error, UNIFORM, 0.9)
    other, shift_error = error_rad.clone(), shift_error.clone()
    other[7], shift_error[7] = 3.1, 1000.0
    after = cross_validated(known, other, shift_error, UNIFORM, 0.9)
    assert after.bound_deg[7] == before.bound_deg[7] and after.shift_bound_angstrom[7] == before.shift_bound_angstrom[7]
    assert (after.bound_deg != before.bound_deg).any()  # the models of the other folds have seen it
