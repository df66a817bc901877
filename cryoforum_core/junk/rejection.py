"""The label of each image, and which labels a selection rejects."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from ..catalogue import JUNK_REASONS, NO_REASON, OFF_CENTRE
from ..geometry.rotations import quaternion_to_matrix, quaternion_to_relion_euler
from ..geometry.symmetry import symmetry_group
from ..particles import fields
from ..particles.table import ParticleTable
from ..results.pose_results import PoseResults
from .view_cones import view_cones

# the label of a good particle
PARTICLE = NO_REASON
# the labels that the classifier chooses from, in the order of its probabilities
REASONS = (PARTICLE, *JUNK_REASONS)
# RELION's three angles of the other orientation
_ALTERNATIVE_COLUMNS = ("rlnCryoforumAlternativeRot", "rlnCryoforumAlternativeTilt", "rlnCryoforumAlternativePsi")


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """Of n images: ``reason``, ``cone`` of viewing directions, ``recentre_shift_angstrom`` and
    ``alternative_quaternion``, NaN where there is none. ``rejected_reasons``: the labels that a selection rejects."""

    reason: Shaped[np.ndarray, " n"]
    cone: Int[np.ndarray, " n"]
    recentre_shift_angstrom: Float[np.ndarray, "n 2"]
    alternative_quaternion: Float[np.ndarray, "n 4"]
    rejected_reasons: tuple[str, ...] = JUNK_REASONS

    @classmethod
    def of(cls, results: PoseResults, symmetry: str = "c1") -> "ImageLabels | None":
        """Of a run; None where it has no labels."""
        if results.junk is None:
            return None
        # the third row of a pose's matrix is the viewing direction in the molecule's frame
        directions = quaternion_to_matrix(torch.from_numpy(results.quaternion).double())[:, 2].numpy()
        group = quaternion_to_matrix(symmetry_group(symmetry)).double().numpy()
        return cls(results.junk.reason, view_cones(directions, group), results.junk.recentre_shift_angstrom,
                   results.junk.alternative_quaternion)

    def rejecting(self, reasons: Collection[str]) -> "ImageLabels":
        """A copy that rejects the labels ``reasons``."""
        return replace(self, rejected_reasons=tuple(reasons))

    @property
    def is_rejected(self) -> Bool[np.ndarray, " n"]:
        """Images with a rejected label."""
        return np.isin(self.reason, self.rejected_reasons)

    @property
    def is_accepted_junk(self) -> Bool[np.ndarray, " n"]:
        """Junk of a kind that is not rejected."""
        return np.isin(self.reason, [each for each in JUNK_REASONS if each not in self.rejected_reasons])

    def recentrable(self, rows: Int[np.ndarray, " k"]) -> Int[np.ndarray, " r"]:
        """Those of ``rows`` that are off-centre, with a shift that recentres them."""
        far = (self.reason[rows] == OFF_CENTRE) & np.isfinite(self.recentre_shift_angstrom[rows]).all(1)
        return rows[far]


def alternative_columns(labels: ImageLabels, rows: Int[np.ndarray, " k"]) -> dict[str, Float[np.ndarray, " n"]]:
    """Columns with RELION's angles of the other orientation of ``rows``, -999 elsewhere; none where none has one."""
    rows = rows[np.isfinite(labels.alternative_quaternion[rows]).all(1)]
    if not len(rows):
        return {}
    angles = np.full((len(labels.reason), 3), -999.0)
    angles[rows] = quaternion_to_relion_euler(torch.from_numpy(labels.alternative_quaternion[rows]).double()).numpy()
    return dict(zip(_ALTERNATIVE_COLUMNS, angles.T))


def recentred(table: ParticleTable, shift_angstrom: Float[np.ndarray, "n 2"]) -> ParticleTable:
    """The table with the origins that recentre its particles, in Angstrom, or pixels in RELION 3.0's form."""
    pixel_size_angstrom = 1.0
    if table.version == "3.0" or table.has("rlnOriginX") or table.has("rlnOriginY"):
        pixel_size_angstrom = fields.read_pixel_size_angstrom(table, np.array([]))
    return table.with_columns(fields.origin_columns(table, shift_angstrom, pixel_size_angstrom))
