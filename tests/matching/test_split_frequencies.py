"""The error of poses as two halves of each image's Fourier pixels show it."""

from dataclasses import replace

import pytest

from cryoforum_core.geometry.rotations import angular_distance_rad
from cryoforum_core.matching.split_frequencies import split_error_rad

from .conftest import blobs, simulate

N = 400


@pytest.fixture(scope="module")
def simulated():
    return simulate(N, snr=0.3, seed=11)


def matched(simulated, model):
    images = model.images(simulated.images_ft, simulated.ctf)
    poses = model.refine_from(images, simulated.quaternion[:, None], simulated.displacement_px[:, None])[:, 0]
    error = angular_distance_rad(poses.quaternion, simulated.quaternion)
    return error, split_error_rad(images, model, poses)


def test_the_split_error_is_the_true_one_on_average(simulated):
    error, split = matched(simulated, simulated.model())
    assert split.median().item() == pytest.approx(error.median().item(), rel=0.12)


def test_it_does_not_depend_on_the_noise_that_is_assumed(simulated):
    """Unlike the spread that the Fisher information states."""
    model = simulated.model()
    error, split = matched(simulated, replace(model, noise_spectrum=4 * model.noise_spectrum))
    assert split.median().item() == pytest.approx(error.median().item(), rel=0.15)


def test_it_is_larger_where_the_map_lacks_what_the_particles_have(simulated):
    """Particles with a blob more than the map."""
    more = simulate(N, snr=0.3, seed=11, volume=simulated.volume + 3 * blobs(n=3, seed=8))
    images = replace(more, volume=simulated.volume)
    error, split = matched(images, images.model())
    own_error, own_split = matched(more, more.model())
    assert split.median() > 1.1 * own_split.median()
    assert error.median() > own_error.median()
