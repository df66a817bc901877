"""Junk labels from the features of images, by a classifier fitted to features that are about those of simulated images."""

import numpy as np
import pytest

from cryoforum_core.junk.classifier import classify
from cryoforum_core.junk.features import FEATURES
from cryoforum_core.junk.rejection import REASONS


def of_kind(reason: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Statistics (n, s) about as predict finds them at SNR 0.05."""
    centre = {"none": (0, 15, 0, 10, 11, 0, 2, 6, 0), "not-a-particle": (-9, 13.5, 1, 0, 2, 1.5, 3, 0, 0),
              "overlapping-neighbour": (-.6, 15, 5, 12, 16, 2, 12, 11, -.6),
              "off-centre": (-8, 14, 6, 4, 12, 5, 11, 5, -1),
              "another-object": (-7, 14, 5, 14, 16, 10, 12, 7, 0)}[reason]
    return np.array(centre) + rng.normal(0, 1, (n, len(FEATURES))) * np.array([1, 1, 1, 3, 3, 1, 1, 2, 1])


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(1)
    return [of_kind(reason, 60, rng) for reason in REASONS]


def test_every_kind_of_junk_gets_its_label(simulated):
    rng = np.random.default_rng(2)
    counts = (800, 40, 40, 40, 40)
    truth = np.repeat(REASONS, counts)
    classes = classify(np.concatenate([of_kind(r, n, rng) for r, n in zip(REASONS, counts)]), simulated)
    for reason in REASONS:
        assert (classes.reason[truth == reason] == reason).mean() > 0.9
    assert ((classes.reason == "none") == (classes.particle_probability >= 0.5)).all()


def test_a_clean_set_keeps_its_particles_even_where_they_differ_from_simulated_ones(simulated):
    rng = np.random.default_rng(3)
    for offset in (0.0, -1.0):  # a poorer map, or images of several contrasts
        statistics = of_kind("none", 1000, rng) * np.array([1.3] + [1] * 8) + np.array([offset] + [0] * 8)
        assert (classify(statistics, simulated).reason != "none").mean() < 0.02


def test_images_with_power_that_no_particle_has_are_not_particles(simulated):
    rng = np.random.default_rng(4)
    statistics = of_kind("none", 300, rng)
    statistics[0, FEATURES.index("low_power")] = 500.0  # carbon
    statistics[1, FEATURES.index("high_power")] = -25.0  # one grey value
    classes = classify(statistics, simulated)
    assert classes.reason[:2].tolist() == ["not-a-particle"] * 2
    assert classes.particle_probability[:2].tolist() == [0, 0]


