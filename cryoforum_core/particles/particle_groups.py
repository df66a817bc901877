"""Which particles come from one micrograph. Without torch, so that reports can import it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from .table import ParticleTable

# before the number of an optics group that stands in for micrographs
OPTICS_GROUP = "optics group "


@dataclass(frozen=True, eq=False)
class ParticleGroups:
    """Groups of particles by micrograph, in the order in which the table has them; by optics group where it names no
    micrographs, and one group where it has neither."""

    names: tuple[str, ...]
    of_particle: Int[np.ndarray, " n"]
    """Index of each particle's group"""

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, table: ParticleTable) -> "ParticleGroups":
        for column, prefix in (("rlnMicrographName", ""), ("rlnOpticsGroup", OPTICS_GROUP)):
            if table.has(column):
                names, first, number = np.unique(table.strings(column), return_index=True, return_inverse=True)
                order = np.argsort(first)
                return cls(tuple(prefix + name for name in names[order].tolist()), np.argsort(order)[number])
        return cls(("all particles",), np.zeros(len(table), dtype=np.int64))

    def sample(self, n_of_each: int, n_in_all: int, seed: int) -> Int[np.ndarray, " m"]:
        """Rows, in ascending order, of at most ``n_of_each`` particles of a group and ``n_in_all`` of the set, drawn at
        random and as evenly from the groups as their sizes allow."""
        shuffled = np.random.default_rng([seed, 0x317]).permutation(len(self.of_particle))
        by_group = shuffled[np.argsort(self.of_particle[shuffled], kind="stable")]
        sizes = np.bincount(self.of_particle, minlength=len(self))
        rank = np.arange(len(by_group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        # the first of every group, then the second of every group
        by_rank = by_group[np.argsort(rank, kind="stable")][:int((rank < n_of_each).sum())]
        return np.sort(by_rank[:n_in_all])
