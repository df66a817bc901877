"""Directions spread evenly over the sphere. Plain numpy: pages of reports need it without torch."""

import numpy as np
from jaxtyping import Float


def even_directions(n: int) -> Float[np.ndarray, "{n} 3"]:
    """Unit vectors (n, 3), a spiral with the golden angle between neighbours (Fibonacci lattice)."""
    index = np.arange(n) + 0.5
    height = 1 - 2 * index / n
    angle = np.pi * (1 + 5 ** 0.5) * index
    flat = np.sqrt(1 - height ** 2)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), height], axis=-1)
