"""What predict said of each image, as select and its files use it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..catalogue import JUNK_REASONS, NO_REASON, OFF_CENTRE
from ..geometry.rotations import quaternion_to_matrix, quaternion_to_relion_euler
from ..geometry.symmetry import symmetry_group
from ..particles import fields
from ..particles.table import ParticleTable
from .view_cones import view_cones

PARTICLE = NO_REASON
REASONS = (PARTICLE, *JUNK_REASONS)
_ALTERNATIVE_COLUMNS = ("rlnCryoforumAlternativeRot", "rlnCryoforumAlternativeTilt", "rlnCryoforumAlternativePsi")


@dataclass(frozen=True, eq=False)
class Judged:
    """Of n images: ``reason`` (n,), ``cone`` (n,) of view, ``recentre_shift_angstrom`` (n, 2) and
    ``alternative_quaternion`` (n, 4), NaN where there is none. ``reasons`` are those that are rejected as junk is."""

    reason: np.ndarray
    cone: np.ndarray
    recentre_shift_angstrom: np.ndarray
    alternative_quaternion: np.ndarray
    reasons: tuple[str, ...] = JUNK_REASONS

    @classmethod
    def of(cls, posterior: Mapping[str, np.ndarray], symmetry: str = "c1") -> "Judged | None":
        """From the arrays of ``orientation_posterior.npz``; None where predict did not judge."""
        if "reason" not in posterior:
            return None
        # the third row of a pose's matrix is the viewing direction in the molecule's frame
        directions = quaternion_to_matrix(torch.from_numpy(posterior["quaternion"]).double())[:, 2].numpy()
        group = quaternion_to_matrix(symmetry_group(symmetry)).double().numpy()
        return cls(posterior["reason"], view_cones(directions, group), posterior["recentre_shift_angstrom"],
                   posterior["alternative_quaternion"])

    def only(self, reasons: Collection[str]) -> "Judged":
        """With only some kinds of junk that matter."""
        return replace(self, reasons=tuple(reasons))

    @property
    def is_junk(self) -> np.ndarray:
        """bool (n,): junk of a kind that matters, or particles of ambiguous orientation where these are to go, too."""
        return np.isin(self.reason, self.reasons)

    @property
    def is_spared(self) -> np.ndarray:
        """bool (n,): junk of a kind that does not matter."""
        return np.isin(self.reason, [each for each in JUNK_REASONS if each not in self.reasons])

    def recentrable(self, rows: np.ndarray) -> np.ndarray:
        """Those of ``rows`` that are off-centre, with a shift that recentres them."""
        far = (self.reason[rows] == OFF_CENTRE) & np.isfinite(self.recentre_shift_angstrom[rows]).all(1)
        return rows[far]


def alternative_columns(judged: Judged, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Columns (n,) with RELION's angles of the other orientation of ``rows``, -999 elsewhere; none where none has one."""
    rows = rows[np.isfinite(judged.alternative_quaternion[rows]).all(1)]
    if not len(rows):
        return {}
    angles = np.full((len(judged.reason), 3), -999.0)
    angles[rows] = quaternion_to_relion_euler(torch.from_numpy(judged.alternative_quaternion[rows]).double()).numpy()
    return dict(zip(_ALTERNATIVE_COLUMNS, angles.T))


def recentred(table: ParticleTable, shift_angstrom: np.ndarray) -> ParticleTable:
    """The table with the origins (n, 2) that recentre its particles, in Angstrom, or pixels in RELION 3.0's form."""
    pixel_size_angstrom = 1.0
    if table.version == "3.0" or table.has("rlnOriginX") or table.has("rlnOriginY"):
        problems = fields.Problems()
        pixel_size_angstrom = fields.read_pixel_size_angstrom(table, np.array([]), None, problems)
        problems.raise_if_any()
    return table.with_columns(fields.origin_columns(table, shift_angstrom, pixel_size_angstrom))
