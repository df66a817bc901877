import numpy as np
import pytest

from cryoforum_core.selection.bimodality import find_valley


def normal(n, seed=0):
    return np.random.default_rng(seed).normal(size=n)


@pytest.mark.parametrize("seed", range(5))
def test_valley_lies_between_two_populations(seed):
    junk, good = normal(300, seed) - 7, normal(700, seed + 10)
    valley = find_valley(np.concatenate([junk, good]))
    assert -6 < valley < -1.5


@pytest.mark.parametrize("seed", range(5))
def test_one_population_has_no_valley(seed):
    assert find_valley(normal(1000, seed)) is None
    assert find_valley(np.random.default_rng(seed).uniform(size=1000)) is None


def test_most_particles_are_never_below_the_valley():
    """Where more than half are bad there is nothing to tell which hill is the good one."""
    assert find_valley(np.concatenate([normal(700) - 7, normal(300, 1)])) is None


def test_valley_moves_with_origin_and_unit():
    values = np.concatenate([normal(300) - 7, normal(700, 1)])
    valley = find_valley(values)
    assert find_valley(10 * values + 3) == pytest.approx(10 * valley + 3, abs=0.2)


def test_far_outlier_hides_nothing():
    values = np.concatenate([normal(300) - 7, normal(700, 1)])
    assert find_valley(np.append(values, -1e9)) == pytest.approx(find_valley(values), abs=0.3)


@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 50])
def test_too_little_to_tell(values):
    assert find_valley(np.array(values)) is None
