"""Poses and map of a run compared with the true ones. Ab initio determines neither frame nor hand nor centre, and 4AKE is
pseudo-symmetric (C2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.pose_errors import FrameAlignment, align_poses, rotation_errors_deg
from ..geometry.poses import Poses
from ..geometry.rotations import compose, quaternion_to_matrix
from ..imaging.masks import soft_sphere
from ..imaging.resolution import fourier_shell_correlation, resolution_angstrom
from ..imaging.volume_frame import mirror_volume, move_volume

MASK_RADIUS_BOXES = 0.45  # as in evaluate
LEVELS = (0.5, 0.143)


@dataclass(frozen=True, eq=False)
class MapAgreement:
    """A map in the frame of the true one, and their Fourier shell correlation."""

    volume: Tensor
    """(D, D, D)"""
    fsc: Tensor
    """(D // 2 + 1,)"""

    @classmethod
    def of(cls, volume: Tensor, known: Tensor) -> "MapAgreement":
        mask = soft_sphere(len(known), MASK_RADIUS_BOXES * len(known))
        return cls(volume, fourier_shell_correlation(volume * mask, known * mask))

    def resolutions_angstrom(self, pixel_size_angstrom: float) -> tuple[float, float]:
        """Where the correlation falls below 0.5 and below 0.143."""
        return tuple(resolution_angstrom(self.fsc, len(self.volume), pixel_size_angstrom, level) for level in LEVELS)


@dataclass(frozen=True, eq=False)
class PoseAlignment:
    """Best alignments of the frame of estimated poses to the true one: raw, and modulo the pseudo-symmetry."""

    raw: FrameAlignment
    modulo: FrameAlignment
    group: Tensor
    """(2, 4): identity and the pseudo-symmetry rotation"""

    @classmethod
    def of(cls, found: Poses, truth: Poses, pseudo_symmetry: tuple[float, ...]) -> "PoseAlignment":
        group = torch.tensor([(0.0, 0.0, 0.0, 1.0), pseudo_symmetry], dtype=torch.float64)
        group = torch.nn.functional.normalize(group, dim=-1)
        found, truth = _double(found), _double(truth)
        return cls(align_poses(found, truth, group[:1], allow_mirror=True),
                   align_poses(found, truth, group, allow_mirror=True), group)

    def errors(self, found: Tensor, truth: Tensor) -> dict[str, float]:
        """Median and mean error in degrees of poses (N, 4) in the aligned frame, raw and modulo the pseudo-symmetry."""
        found, truth = found.double(), truth.double()
        raw = rotation_errors_deg(self.raw.apply(found), truth, self.group[:1])
        modulo = rotation_errors_deg(self.modulo.apply(found), truth, self.group)
        return {"median_error_deg": float(raw.median()), "mean_error_deg": float(raw.mean()),
                "median_error_modulo_deg": float(modulo.median()), "mean_error_modulo_deg": float(modulo.mean())}


def map_agreement(volume: Tensor, known: Tensor, pixel_size_angstrom: float, alignment: PoseAlignment) -> MapAgreement:
    """The map aligned to the true one by its poses, with or without the pseudo-symmetry rotation: whichever fits better.

    That rotation does not change pose errors modulo C2, but it does change the fine details of the map.
    """
    alignments = [(frame.is_mirrored, frame.rotation, frame.translation_angstrom / pixel_size_angstrom)
             for frame in (alignment.raw, alignment.modulo)]
    half_turn = alignment.group[1]
    # V(R (r - t)) rotated by h is V(R h (r - h' t)), and h is its own inverse
    alignments += [(is_mirrored, compose(rotation, half_turn), quaternion_to_matrix(half_turn) @ translation)
              for is_mirrored, rotation, translation in alignments]
    agreements = [MapAgreement.of(move_volume(mirror_volume(volume) if is_mirrored else volume, rotation, translation),
                                  known) for is_mirrored, rotation, translation in alignments]
    return max(agreements, key=lambda agreement: float(agreement.fsc.mean()))


def _double(poses: Poses) -> Poses:
    return Poses(poses.quaternion.double(), poses.shift_angstrom.double())
