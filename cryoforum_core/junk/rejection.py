"""The label of each image, and which labels a selection rejects."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..catalogue import JUNK_REASONS, NO_REASON, OFF_CENTRE
from ..geometry.rotations import quaternion_to_matrix, quaternion_to_relion_euler
from ..geometry.symmetry import symmetry_group
from ..particles import fields
from ..particles.table import ParticleTable
from ..results.pose_results import PoseResults
from .view_cones import view_cones

PARTICLE = NO_REASON
REASONS = (PARTICLE, *JUNK_REASONS)
_ALTERNATIVE_COLUMNS = ("rlnCryoforumAlternativeRot", "rlnCryoforumAlternativeTilt", "rlnCryoforumAlternativePsi")


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """Of n images: ``reason`` (n,), ``cone`` (n,) of viewing directions, ``recentre_shift_angstrom`` (n, 2) and
    ``alternative_quaternion`` (n, 4), NaN where there is none. ``rejected_reasons``: the labels that a selection rejects."""

    reason: np.ndarray
    cone: np.ndarray
    recentre_shift_angstrom: np.ndarray
    alternative_quaternion: np.ndarray
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
    def is_rejected(self) -> np.ndarray:
        """bool (n,): images with a rejected label."""
        return np.isin(self.reason, self.rejected_reasons)

    @property
    def is_accepted_junk(self) -> np.ndarray:
        """bool (n,): junk of a kind that is not rejected."""
        return np.isin(self.reason, [each for each in JUNK_REASONS if each not in self.rejected_reasons])

    def recentrable(self, rows: np.ndarray) -> np.ndarray:
        """Those of ``rows`` that are off-centre, with a shift that recentres them."""
        far = (self.reason[rows] == OFF_CENTRE) & np.isfinite(self.recentre_shift_angstrom[rows]).all(1)
        return rows[far]


def alternative_columns(labels: ImageLabels, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Columns (n,) with RELION's angles of the other orientation of ``rows``, -999 elsewhere; none where none has one."""
    rows = rows[np.isfinite(labels.alternative_quaternion[rows]).all(1)]
    if not len(rows):
        return {}
    angles = np.full((len(labels.reason), 3), -999.0)
    angles[rows] = quaternion_to_relion_euler(torch.from_numpy(labels.alternative_quaternion[rows]).double()).numpy()
    return dict(zip(_ALTERNATIVE_COLUMNS, angles.T))


def recentred(table: ParticleTable, shift_angstrom: np.ndarray) -> ParticleTable:
    """The table with the origins (n, 2) that recentre its particles, in Angstrom, or pixels in RELION 3.0's form."""
    pixel_size_angstrom = 1.0
    if table.version == "3.0" or table.has("rlnOriginX") or table.has("rlnOriginY"):
        pixel_size_angstrom = fields.read_pixel_size_angstrom(table, np.array([]))
    return table.with_columns(fields.origin_columns(table, shift_angstrom, pixel_size_angstrom))
