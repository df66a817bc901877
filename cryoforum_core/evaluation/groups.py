"""Groups of particles whose errors are worth a look of their own, by what a table of known poses says about them."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int

from ..catalogue import NEIGHBOUR_COLUMN, NOISE_LEVEL_COLUMN, STATE_COLUMN
from ..particles.table import ParticleTable

OPTICS_GROUP_COLUMN = "rlnOpticsGroup"
# more classes or optics groups than these are no groups to compare
_MOST_GROUPS = 12


def known_groups(known: ParticleTable, rows: Int[np.ndarray, " n"]) -> dict[str, Bool[np.ndarray, " n"]]:
    """Name -> which of ``rows`` of the table belong to the group; empty where the table has no such columns, or only one
    value in them."""
    return dict(_groups(known, rows))


def _groups(known: ParticleTable, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for column, name in ((STATE_COLUMN, "class"), (OPTICS_GROUP_COLUMN, "optics group")):
        if known.has(column):
            values = known.integers(column)[rows]
            if 1 < len(each := np.unique(values)) <= _MOST_GROUPS:
                yield from ((f"{name} {value}", values == value) for value in each)
    if known.has(NEIGHBOUR_COLUMN):
        has_neighbour = known.integers(NEIGHBOUR_COLUMN)[rows] > 0
        if has_neighbour.any() and not has_neighbour.all():
            yield from (("without neighbour", ~has_neighbour), ("with neighbour", has_neighbour))
    if known.has(NOISE_LEVEL_COLUMN):
        level = known.floats(NOISE_LEVEL_COLUMN)[rows]
        limits = np.quantile(level, [1 / 3, 2 / 3])
        if limits[0] < limits[1]:
            third = np.digitize(level, limits)
            yield from ((f"noise level: {name} third", third == i) for i, name in enumerate(("lowest", "middle", "highest")))
