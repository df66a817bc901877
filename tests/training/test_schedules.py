"""Schedules: smooth, and at both ends what they should be."""

import math

import pytest

from cryoforum_core.training.schedules import NOISE_IS_FULL_AT, noise_factor, one_cycle, orientation_weights


def test_the_schedule_is_a_function_of_progress_alone():
    rates = [one_cycle(progress / 100, 1e-3) for progress in range(101)]
    assert rates == [one_cycle(progress / 100, 1e-3) for progress in range(101)]
    assert max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) == 15
    assert rates[0] == pytest.approx(4e-5) and rates[-1] == pytest.approx(1e-7)
    assert all(a < b for a, b in zip(rates[:15], rates[1:16])) and all(a > b for a, b in zip(rates[15:], rates[16:]))
    assert one_cycle(2.0, 1e-3) == one_cycle(1.0, 1e-3)


def test_schedule_starts_with_pairs_and_ends_with_own_errors():
    assert orientation_weights("pairwise-to-own", 0.0) == {"pairwise": 1.0, "own": 0.0}
    assert orientation_weights("pairwise-to-own", 1.0) == {"pairwise": 0.0, "own": 1.0}
    quarter = orientation_weights("pairwise-to-own", 0.25)
    assert quarter["pairwise"] == pytest.approx(0.5) and quarter["own"] == pytest.approx(0.5)
    assert orientation_weights("chordal", 0.3) == {"chordal": 1.0}


def test_noise_grows_from_a_ratio_of_ten_to_the_datas_own():
    factors = [noise_factor(progress / 20, snr=0.1) for progress in range(21)]
    assert factors[0] == pytest.approx(0.1) and factors[-1] == 1.0
    assert all(a <= b for a, b in zip(factors, factors[1:]))
    assert noise_factor(NOISE_IS_FULL_AT, 0.1) == 1.0 and noise_factor(0.3, 0.1) == pytest.approx(math.sqrt(0.1))
    assert noise_factor(0.0, snr=40.0) == 1.0  # never more noise than the data have
