import numpy as np
import pytest

from cryoforum_core.geometry.even_directions import even_directions


@pytest.mark.parametrize("n", [1, 48, 1000])
def test_directions_are_unit_vectors(n):
    directions = even_directions(n)
    assert directions.shape == (n, 3)
    assert np.allclose(np.linalg.norm(directions, axis=1), 1)


def test_directions_are_even():
    """Every place of the sphere has one nearby, and none has a near neighbour: of 500 one covers a cap of 5.1 degrees."""
    directions = even_directions(500)
    random = np.random.default_rng(0).normal(size=(5000, 3))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    to_nearest = np.degrees(np.arccos(np.clip((random @ directions.T).max(1), -1, 1)))
    between = np.degrees(np.arccos(np.clip(directions @ directions.T - 2 * np.eye(500), -1, 1).max(1)))
    assert to_nearest.max() < 8 and between.min() > 6


def test_directions_favour_no_axis():
    directions = even_directions(1000)
    assert np.abs(directions.mean(0)).max() < 1e-2
    assert np.allclose(directions.T @ directions / 1000, np.eye(3) / 3, atol=1e-2)
