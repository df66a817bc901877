"""How uniformly particles cover the sphere of viewing directions."""

import numpy as np
from jaxtyping import Float

# grid of the density, cells of 2.5 degrees: finer than the kernel
N_LATITUDES = 72
N_LONGITUDES = 144
# latitudes and longitudes in which particles are binned first, 4 degrees: half of the narrowest kernel
_N_CELLS = (45, 90)
# as many particles leave a relative noise of a fifth
_PARTICLES_PER_KERNEL = 25
# of the von Mises-Fisher kernel: 20 and 7 degrees
_CONCENTRATION_LIMITS = (8.0, 60.0)
# of the uniform density: below this the map lacks the direction
_EMPTY_BELOW = 0.1


def view_directions(rot_deg: Float[np.ndarray, " n"], tilt_deg: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """Viewing directions in the molecule's frame, of RELION's rot and tilt: the third row of A."""
    rot, tilt = np.deg2rad(rot_deg), np.deg2rad(tilt_deg)
    return np.stack([np.cos(rot) * np.sin(tilt), np.sin(rot) * np.sin(tilt), np.cos(tilt)], axis=-1)


def _with_equivalents(directions: np.ndarray, symmetry: str) -> np.ndarray:
    """Directions (n, 3) with their symmetry-equivalent ones (n g, 3)."""
    if symmetry.lower() == "c1":
        return directions
    # only symmetric molecules need torch
    from ..geometry.rotations import quaternion_to_matrix
    from ..geometry.symmetry import symmetry_group

    matrices = quaternion_to_matrix(symmetry_group(symmetry)).double().numpy()
    # an operation acts on the right of A, so on rows of A
    return np.einsum("ni,gij->ngj", directions, matrices).reshape(-1, 3)


def view_density(rot_deg: Float[np.ndarray, " n"], tilt_deg: Float[np.ndarray, " n"], symmetry: str = "c1"
                 ) -> Float[np.ndarray, "latitudes longitudes"]:
    """Density of viewing directions on a grid (latitudes from -90 to 90, longitudes from -180 to 180); 1 is uniform.

    Smoothed by a von Mises-Fisher kernel that contains some 25 uniformly spread particles, 7 to 20 degrees wide. With
    symmetry, all equivalent directions count.
    """
    n_particles, directions = len(rot_deg), _with_equivalents(view_directions(rot_deg, tilt_deg), symmetry)
    if not n_particles:
        return np.zeros((N_LATITUDES, N_LONGITUDES))
    longitude = np.arctan2(directions[:, 1], directions[:, 0])
    latitude = np.arcsin(np.clip(directions[:, 2], -1, 1))
    # binned first, so that the cost does not grow with the number of particles
    count = np.histogram2d(latitude, longitude, _N_CELLS, ((-np.pi / 2, np.pi / 2), (-np.pi, np.pi)))[0].ravel()
    filled = count > 0
    sources = _grid_directions(*_N_CELLS).reshape(-1, 3)[filled]
    concentration = np.clip(n_particles / _PARTICLES_PER_KERNEL, *_CONCENTRATION_LIMITS)
    # mean over the sphere of exp(k (cos - 1)) is (1 - exp(-2 k)) / (2 k)
    share = count[filled] / count.sum() * 2 * concentration / (1 - np.exp(-2 * concentration))
    return np.stack([np.exp(concentration * (row @ sources.T - 1)) @ share
                     for row in _grid_directions(N_LATITUDES, N_LONGITUDES)])


def empty_fraction(density: Float[np.ndarray, "latitudes longitudes"]) -> float:
    """Fraction of the sphere with less than a tenth of the uniform density."""
    weight = np.cos(_centres(N_LATITUDES, np.pi / 2))[:, None] * np.ones(N_LONGITUDES)
    return float(weight[density < _EMPTY_BELOW].sum() / weight.sum())


def _centres(n: int, end: float) -> np.ndarray:
    edges = np.linspace(-end, end, n + 1)
    return 0.5 * (edges[1:] + edges[:-1])


def _grid_directions(n_latitudes: int, n_longitudes: int) -> np.ndarray:
    """Directions (latitudes, longitudes, 3) of the centres of a grid's cells."""
    latitude, longitude = np.meshgrid(_centres(n_latitudes, np.pi / 2), _centres(n_longitudes, np.pi), indexing="ij")
    return np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)],
                    axis=-1)
