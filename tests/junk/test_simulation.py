"""Simulated junk: objects of chance, and features of images of every kind, made like a set's own."""

import numpy as np
import pytest
import torch

from cryoforum_core.imaging.fourier import fft_volume, volume_radius_px
from cryoforum_core.junk.features import FEATURES
from cryoforum_core.junk.rejection import REASONS
from cryoforum_core.junk.simulation import PARTICLE_SHARE, random_object

from ..matching.conftest import blobs
from ..uncertainty.matched_results import results_of


def shell_power(volume: torch.Tensor) -> torch.Tensor:
    """Mean power in each shell (b // 2 + 1,)."""
    shells = volume_radius_px(len(volume)).round().long().flatten()
    power = fft_volume(volume).abs().square().flatten()
    return (torch.bincount(shells, power.double()) / torch.bincount(shells))[:len(volume) // 2 + 1]


def rms_radius(volume: torch.Tensor) -> float:
    axis = torch.arange(len(volume)) - len(volume) // 2
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis ** 2
    return float((volume.square() * squared).sum() / volume.square().sum()) ** 0.5


def test_a_random_object_has_the_power_of_the_map_in_each_shell_and_another_structure():
    volume = blobs()
    other = random_object(volume, 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shell_power(other)[1:], shell_power(volume)[1:], rtol=0.05, atol=1e-3)
    assert abs(np.corrcoef(other.flatten(), volume.flatten())[0, 1]) < 0.8  # they share a mean and nothing else
    assert not torch.allclose(other, random_object(volume, 1.0, torch.Generator().manual_seed(1)))


def test_random_objects_are_as_large_as_asked_for():
    small, large = (np.mean([rms_radius(random_object(blobs(), radius, torch.Generator().manual_seed(seed)))
                             for seed in range(5)]) for radius in (0.6, 1.2))
    assert large > 1.1 * small


@pytest.fixture(scope="module")
def simulated(simulation):
    """Features of some simulated images, with the noise of the set's good particles."""
    particles = simulation.images.particles
    good = np.flatnonzero(particles.table.strings("rlnCryoforumJunkKind") == "none")[::-1].copy()
    poses = particles.poses[torch.from_numpy(good)]
    return simulation.features(good, results_of(poses.quaternion, poses.shift_angstrom), 120), good


@pytest.fixture(scope="module")
def features(simulated):
    """Features (n, s) by reason."""
    return dict(zip(REASONS, simulated[0].of_kind, strict=True))


def test_particles_know_which_of_the_matched_images_their_noise_is_from(simulated):
    found, good = simulated
    assert len(found.donor) == len(found.of_kind[0]) and 0 <= found.donor.min() and found.donor.max() < len(good)
    assert len(set(found.donor.tolist())) > 10


def medians(features, reason: str) -> dict[str, float]:
    return dict(zip(FEATURES, np.median(features[reason], axis=0), strict=True))


def test_a_third_of_the_images_are_particles_and_the_kinds_of_junk_share_the_rest(features):
    assert len(features["none"]) == round(120 * PARTICLE_SHARE)
    assert {len(features[reason]) for reason in REASONS if reason != "none"} == {20}


def test_each_kind_differs_from_particles_in_what_defines_it(features):
    particle = medians(features, "none")
    assert abs(particle["fit"]) < 1.5
    assert medians(features, "not-a-particle")["fit"] < particle["fit"] - 3
    assert medians(features, "not-a-particle")["signal_to_noise"] < 0.6 * particle["signal_to_noise"]
    assert medians(features, "off-centre")["rest_near"] > particle["rest_near"] + 2
    assert medians(features, "overlapping-neighbour")["rest_near"] > particle["rest_near"] + 2
    assert medians(features, "another-object")["fit"] < particle["fit"] - 2
