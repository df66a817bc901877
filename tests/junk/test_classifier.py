"""Junk labels from the features of images, by a classifier fitted to features that are about those of simulated images."""

import numpy as np
import pytest

from cryoforum_core.junk.classifier import classify
from cryoforum_core.junk.features import FEATURES
from cryoforum_core.junk.rejection import REASONS
from cryoforum_core.junk.simulation import SimulatedFeatures


def of_kind(reason: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Features (n, s) about as predict finds them at SNR 0.05."""
    centre = {"none": (0, 15, 0, 2, 6, 0), "not-a-particle": (-9, 4.5, 1, 3, 0, 0),
              "overlapping-neighbour": (-.6, 14.4, 5, 12, 11, -.6),
              "off-centre": (-8, 5, 7, 9, 3, -3),
              "another-object": (-6, 8, 7, 14, 9, 2)}[reason]
    return np.array(centre) + rng.normal(0, 1, (n, len(FEATURES))) * np.array([1, 1, 1, 1, 2, 1])


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(1)
    return SimulatedFeatures(tuple(of_kind(reason, 60, rng) for reason in REASONS), None)


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
        statistics = of_kind("none", 1000, rng) * np.array([1.3] + [1] * 5) + np.array([offset] + [0] * 5)
        assert (classify(statistics, simulated).reason != "none").mean() < 0.02


def test_images_with_power_that_no_particle_has_are_not_particles(simulated):
    rng = np.random.default_rng(4)
    statistics = of_kind("none", 300, rng)
    statistics[0, FEATURES.index("low_power")] = 500.0  # carbon
    statistics[1, FEATURES.index("high_power")] = -25.0  # one grey value
    classes = classify(statistics, simulated)
    assert classes.reason[:2].tolist() == ["not-a-particle"] * 2
    assert classes.particle_probability[:2].tolist() == [0, 0]




def test_what_nobody_simulates_is_not_a_particle_where_nothing_fits(simulated):
    """Ice and edges: the map explains none of it, and every other feature is like none of any kind."""
    rng = np.random.default_rng(5)
    ice = of_kind("not-a-particle", 60, rng) + np.array([0, 0, 12, 20, 40, -12]) * rng.uniform(0.3, 1, (60, len(FEATURES)))
    classes = classify(np.concatenate([of_kind("none", 300, rng), ice]), simulated)
    assert (classes.reason[300:] != "none").mean() > 0.97
    assert (classes.reason[:300] == "none").mean() > 0.98


def test_simulated_particles_with_the_noise_of_images_without_one_are_left_out(simulated):
    """Every third donor is empty ice, whose residual lacks a particle's power: such images would be usual ones."""
    rng = np.random.default_rng(6)
    features = np.concatenate([of_kind("none", 400, rng), of_kind("not-a-particle", 200, rng)])
    donor = rng.integers(0, 600, 60)
    particles = simulated.of_kind[0].copy()
    of_junk = donor >= 400
    particles[of_junk] = 0.5 * (of_kind("not-a-particle", of_junk.sum(), rng) + particles[of_junk])
    kinds = (particles, *simulated.of_kind[1:])
    found = [classify(features, SimulatedFeatures(kinds, each)).particle_probability[400:].mean() for each in (donor, None)]
    assert found[0] < 0.02 and found[0] <= found[1]
