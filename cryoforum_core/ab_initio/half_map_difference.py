"""How two half maps differ in the poses that they give to the same images: by a rotation of their frames, which is undone, and
beyond it by their errors.

Refined independently, half maps drift apart: only their lowest frequencies are shared
(``docs/decisions/0066-errors-of-ab-initio-poses.md``).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..geometry.pose_hypotheses import PoseHypotheses
from ..geometry.rotations import (
    compose,
    inverse,
    quaternion_to_matrix,
    quaternion_to_rotation_vector,
    rotation_vector_to_quaternion,
)
from ..geometry.symmetry import nearest_equivalent
from ..matching.refine import refine
from .half_sets import HalfSets, batches
from .rounds import Refinement

# of each half set: their median is known to a few per cent
_MAX_IMAGES = 500
# Levenberg-Marquardt steps, enough to get from one map's pose to the other's
_ITERATIONS = 6
# of the length of a vector of three standard normal numbers
MEDIAN_LENGTH = 1.538


@dataclass(frozen=True)
class HalfMapDifference:
    """``rotation_vector_rad``, in the molecule's frame, from poses by the first half map to those by the second;
    ``deviation_rad`` of what differs beyond it, along each axis."""

    rotation_vector_rad: Float[Tensor, " 3"]
    deviation_rad: float

    @classmethod
    def of(cls, half_sets: HalfSets, refinement: Refinement, max_radius_px: float) -> "HalfMapDifference":
        """From some images of each half set, matched to either map from their poses so far."""
        first = _rotations(half_sets, refinement, max_radius_px, 1)
        second = -_rotations(half_sets, refinement, max_radius_px, 2)
        vectors = torch.cat([first, second])
        # medians: misassigned poses must not count
        common = vectors.median(0).values
        # a frame with the symmetry can only rotate about the axes that the symmetry leaves
        common = (quaternion_to_matrix(half_sets.group.to(common)) @ common).mean(0)
        return cls(common, float((vectors - common).norm(dim=1).median()) / MEDIAN_LENGTH)

    def joined(self, poses: PoseHypotheses, halves: Int[np.ndarray, " n"]) -> PoseHypotheses:
        """Poses of both half sets in one frame, midway between those of the half maps."""
        sign = torch.from_numpy(np.where(halves == 1, 0.5, -0.5)).to(poses.quaternion)
        rotation = rotation_vector_to_quaternion(sign[:, None] * self.rotation_vector_rad.to(poses.quaternion))
        return replace(poses, quaternion=compose(poses.quaternion, rotation[:, None].expand_as(poses.quaternion)))


def _rotations(half_sets: HalfSets, refinement: Refinement, max_radius_px: float, half: int) -> Tensor:
    """Rotation vectors (m, 3) from poses by the own half map to those by the other, of particles of one half set."""
    pair, contrast = refinement.pair, refinement.contrast
    scaled, rows = half_sets.scaled(pair.noise_spectrum, max_radius_px), half_sets.rows(half)
    models, vectors = [scaled.model(pair.reference[k - 1]) for k in (half, 3 - half)], []
    for some in batches(rows[::max(1, len(rows) // _MAX_IMAGES)]):
        index = torch.from_numpy(some).to(half_sets.device)
        images = scaled.at(some) if contrast is None else scaled.at(some).with_contrast(contrast[index])
        quaternion, displacement_px = (values[index] for values in refinement.poses.best())
        own, other = (refine(images, model.volume, quaternion, displacement_px * scaled.scale, _ITERATIONS,
                             model.max_displacement_px).quaternion for model in models)
        other = nearest_equivalent(other, own, half_sets.group)
        vectors.append(quaternion_to_rotation_vector(compose(inverse(own), other)))
    return torch.cat(vectors)
