"""How evenly particles cover the sphere of viewing directions."""

import numpy as np

N_LATITUDES, N_LONGITUDES = 45, 90
_PARTICLES_PER_KERNEL = 25
_CONCENTRATION_LIMITS = (8.0, 60.0)
_EMPTY_BELOW = 0.1


def view_directions(rot_deg: np.ndarray, tilt_deg: np.ndarray) -> np.ndarray:
    """Viewing directions (n, 3) in the molecule's frame, of RELION's rot and tilt (n,): the third row of A."""
    rot, tilt = np.deg2rad(rot_deg), np.deg2rad(tilt_deg)
    return np.stack([np.cos(rot) * np.sin(tilt), np.sin(rot) * np.sin(tilt), np.cos(tilt)], axis=-1)


def with_symmetry(directions: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """All equivalents (n g, 3) of directions (n, 3) under a group of rotation matrices (g, 3, 3): rows of A times g."""
    return np.einsum("ni,gij->ngj", directions, matrices).reshape(-1, 3)


def view_density(directions: np.ndarray, n_particles: int | None = None) -> np.ndarray:
    """Density of directions (n, 3) on a grid (latitudes from -90 to 90, longitudes from -180 to 180); 1 is even.

    Smoothed by a von Mises-Fisher kernel that some 25 evenly spread particles fall into, 8 to 20 degrees wide.
    ``n_particles``: how many there are, where directions repeat for symmetry.
    """
    if not len(directions):
        return np.zeros((N_LATITUDES, N_LONGITUDES))
    longitude = np.arctan2(directions[:, 1], directions[:, 0])
    latitude = np.arcsin(np.clip(directions[:, 2], -1, 1))
    # cells first: the cost of the kernel does not grow with the number of particles
    count, _, _ = np.histogram2d(latitude, longitude, (N_LATITUDES, N_LONGITUDES),
                                 ((-np.pi / 2, np.pi / 2), (-np.pi, np.pi)))
    cells = _cell_directions()
    filled = count.ravel() > 0
    concentration = np.clip((n_particles or len(directions)) / _PARTICLES_PER_KERNEL, *_CONCENTRATION_LIMITS)
    cosine = cells @ cells[filled].T
    # mean over the sphere of exp(k (cos - 1)) is (1 - exp(-2 k)) / (2 k)
    kernel = np.exp(concentration * (cosine - 1)) * 2 * concentration / (1 - np.exp(-2 * concentration))
    return (kernel @ count.ravel()[filled] / count.sum()).reshape(N_LATITUDES, N_LONGITUDES)


def empty_fraction(density: np.ndarray) -> float:
    """Fraction of the sphere that is seen by less than a tenth of an even share."""
    weight = np.cos(_centres(N_LATITUDES, np.pi / 2))[:, None] * np.ones(N_LONGITUDES)
    return float(weight[density < _EMPTY_BELOW].sum() / weight.sum())


def _centres(n: int, end: float) -> np.ndarray:
    edges = np.linspace(-end, end, n + 1)
    return 0.5 * (edges[1:] + edges[:-1])


def _cell_directions() -> np.ndarray:
    latitude, longitude = np.meshgrid(_centres(N_LATITUDES, np.pi / 2), _centres(N_LONGITUDES, np.pi), indexing="ij")
    return np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)],
                    axis=-1).reshape(-1, 3)
