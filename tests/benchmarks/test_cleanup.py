"""The figures of benchmarks/cleanup.py, on cases whose answer is known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

PATH = Path(__file__).parents[2] / "benchmarks/cleanup.py"
spec = importlib.util.spec_from_file_location("benchmark_cleanup", PATH)
cleanup = sys.modules["benchmark_cleanup"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cleanup)


def test_roc_area_of_parted_equal_and_swapped_sets():
    assert cleanup.roc_area(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert cleanup.roc_area(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 0
    assert cleanup.roc_area(np.ones(3), np.ones(5)) == 0.5
    assert np.isnan(cleanup.roc_area(np.ones(3), np.array([])))


def test_roc_area_agrees_with_mann_whitney():
    rng = np.random.default_rng(0)
    good, junk = rng.normal(0.5, 1, 300).round(1), rng.normal(0, 1, 90).round(1)  # rounded: with ties
    expected = mannwhitneyu(good, junk).statistic / (300 * 90)
    assert cleanup.roc_area(good, junk) == pytest.approx(expected)


def test_values_that_are_not_finite_count_as_found_junk():
    assert cleanup.roc_area(np.array([1.0, 2.0]), np.array([np.nan, -np.inf])) == 1


@pytest.fixture
def scored():
    kind = np.array(["none"] * 8 + ["noise", "blank"])
    error = np.array([1.0] * 8 + [90.0, 110.0])
    return cleanup.Scored({"match-score": np.r_[np.zeros(8), -10.0, -20.0],
                           "expected-error": np.r_[np.ones(8), 50.0, 0.5]}, kind, error)


def test_areas_by_kind_respect_the_sense_of_each_measure(scored):
    areas = cleanup.roc_areas(scored)
    assert areas["match-score"]["all"] == 1
    assert areas["expected-error"]["noise"] == 1 and areas["expected-error"]["blank"] == 0
    assert areas["expected-error"]["all"] == 0.5
    lines = cleanup.roc_table(areas).splitlines()
    assert lines[2].startswith("| match-score | 1.000 |") and "nan" in lines[2]  # kinds that are not there


def test_random_removal_keeps_the_mean_and_its_spread_is_that_of_sampling():
    rng = np.random.default_rng(1)
    errors = rng.exponential(10, 1000)
    mean, spread = cleanup.remove_at_random(errors, 850, rng, draws=400)
    assert mean == pytest.approx(errors.mean(), abs=0.05)
    # without replacement: sigma / sqrt(n) sqrt(1 - n / N)
    assert spread == pytest.approx(errors.std() / np.sqrt(850) * np.sqrt(0.15), rel=0.15)


def test_assessment_of_a_selection(scored):
    cleaned = cleanup.assess("x", np.arange(7), scored, np.random.default_rng(0))
    assert (cleaned.n_kept, cleaned.junk_found, cleaned.particles_rejected) == (7, 1.0, 1 / 8)
    assert cleaned.mean_error_deg == 1.0
    assert cleaned.random_mean_error_deg == pytest.approx(scored.error_deg.mean(), abs=3)
    table = cleanup.cleaned_table(scored, [cleaned]).splitlines()
    assert len(table) == 4 and "| 100.0 % | 12.5 % | 1.00° |" in table[3]
