"""The lowest coverage of several groups by chance, against scipy's binomial distribution and against simulation."""

import numpy as np
import pytest
from scipy.stats import binom

from cryoforum_core.uncertainty.coverage_by_chance import lowest_by_chance


@pytest.mark.parametrize("n, coverage", [(20, 0.9), (37, 0.8), (2500, 0.95)])
def test_one_group_has_the_quantile_of_its_binomial_distribution(n, coverage):
    assert lowest_by_chance(np.array([n]), coverage) == pytest.approx(binom.ppf(0.05, n, coverage) / n)


def test_equal_groups_have_the_quantile_of_the_minimum():
    """The minimum of m is at most x with probability 1 - (1 - F(x))^m."""
    n, m, coverage = 60, 12, 0.9
    quantile = binom.ppf(1 - 0.95 ** (1 / m), n, coverage) / n
    assert lowest_by_chance(np.full(m, n), coverage) == pytest.approx(quantile)


def test_groups_of_unequal_size_agree_with_simulation():
    """The lowest coverage falls below the value in less than 5 % of the sets, and reaches down to it in more; 20,000 sets
    have a standard deviation of 0.15 %."""
    sizes, coverage = np.array([20, 24, 31, 40, 55, 80, 120, 200]), 0.9
    found = lowest_by_chance(sizes, coverage)
    lowest = (np.random.default_rng(0).binomial(sizes, coverage, (20_000, len(sizes))) / sizes).min(axis=1)
    assert (lowest < found - 1e-9).mean() < 0.05 + 0.005
    assert (lowest < found + 1e-9).mean() > 0.05 - 0.005


def test_more_groups_have_a_lower_minimum():
    lowest = [lowest_by_chance(np.full(m, 50), 0.9) for m in (1, 4, 12, 48)]
    assert lowest == sorted(lowest, reverse=True) and lowest[0] > lowest[-1]
