"""Example particles with their matching projections, as a run saves them in ``gallery.npz``.

Without torch: reports and viewers read it, and start at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True, eq=False)
class Gallery:
    """k examples. ``images`` and ``projections`` [y, x], protein bright, the projections with the particle's
    pose, shift and CTF; ``kind``: best, median, worst, or a reason of select."""

    images: Float[np.ndarray, "k b b"]
    projections: Float[np.ndarray, "k b b"]
    kind: Shaped[np.ndarray, " k"]
    particle_id: Int[np.ndarray, " k"]
    match_score: Float[np.ndarray, " k"]
    expected_error_deg: Float[np.ndarray, " k"]

    def of(self, kinds: Sequence[str]) -> "Gallery":
        """The examples of some kinds, in the order of the kinds."""
        rows = np.concatenate([np.flatnonzero(self.kind == kind) for kind in kinds]) if kinds else np.array([], dtype=int)
        return Gallery(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def read_gallery(path: Path | str) -> Gallery:
    """Reads the arrays of a gallery.npz, which holds no pickled objects."""
    with np.load(path, allow_pickle=False) as arrays:
        return Gallery(**{name: arrays[name] for name in Gallery.__dataclass_fields__})
