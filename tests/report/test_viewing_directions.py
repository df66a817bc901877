"""Densities of viewing directions."""

import numpy as np
import pytest
import torch

from cryoforum_core.geometry.rotations import quaternion_to_matrix, relion_euler_to_quaternion
from cryoforum_core.report.viewing_directions import empty_fraction, view_density, view_directions


def even_angles(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A Fibonacci lattice."""
    i = np.arange(n) + 0.5
    return np.rad2deg(np.pi * (1 + 5**0.5) * i) % 360 - 180, np.rad2deg(np.arccos(1 - 2 * i / n))


def area_weights(density: np.ndarray) -> np.ndarray:
    latitude = np.linspace(-90, 90, len(density) + 1)
    return np.cos(np.deg2rad(0.5 * (latitude[1:] + latitude[:-1])))[:, None] * np.ones(density.shape[1])


def test_directions_are_the_third_row_of_relions_matrix():
    euler = torch.tensor([[30.0, 70.0, 20.0], [-120.0, 110.0, 5.0], [0.0, 0.0, 90.0]], dtype=torch.float64)
    matrix = quaternion_to_matrix(relion_euler_to_quaternion(euler)).numpy()
    assert view_directions(euler[:, 0].numpy(), euler[:, 1].numpy()) == pytest.approx(matrix[:, 2], abs=1e-9)


@pytest.mark.parametrize("n", [200, 2000, 20000])
def test_uniform_directions_have_density_one_everywhere(n):
    density = view_density(*even_angles(n))
    assert np.average(density, weights=area_weights(density)) == pytest.approx(1, rel=0.01)
    assert density.min() > 0.75 and density.max() < 1.3
    assert empty_fraction(density) == 0


def test_one_direction_is_a_peak_there_and_nothing_elsewhere():
    density = view_density(np.full(5000, 45.0), np.full(5000, 60.0))  # tilt 60: latitude 30
    latitude, longitude = np.unravel_index(density.argmax(), density.shape)
    assert -90 + 180 * (latitude + 0.5) / len(density) == pytest.approx(30, abs=3)
    assert -180 + 360 * (longitude + 0.5) / density.shape[1] == pytest.approx(45, abs=3)
    assert np.average(density, weights=area_weights(density)) == pytest.approx(1, rel=0.02)
    assert empty_fraction(density) > 0.85


def test_half_of_the_sphere_is_half_empty():
    rot, tilt = even_angles(20000)
    # the kernel reaches some ten degrees over the border
    assert 0.35 < empty_fraction(view_density(rot[tilt < 90], tilt[tilt < 90])) < 0.5


def test_symmetry_adds_the_equivalent_directions():
    rot, tilt = even_angles(8000)
    unit = (np.abs(rot) < 45) & (tilt < 90)  # an asymmetric unit of D4 and more than one of C4
    assert empty_fraction(view_density(rot[unit], tilt[unit])) > 0.7
    assert empty_fraction(view_density(rot[unit], tilt[unit], "d4")) == 0
    assert 0.35 < empty_fraction(view_density(rot[unit], tilt[unit], "c4")) < 0.5


def test_density_without_particles_is_zero():
    assert view_density(np.array([]), np.array([])).max() == 0
