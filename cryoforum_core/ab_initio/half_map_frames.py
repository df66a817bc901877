"""The frames of two half maps, which rotate against each other while they are refined independently, made one.

Only the lowest frequencies of the half maps are shared, which is too little to hold them in place
(``docs/decisions/0066-errors-of-ab-initio-poses.md``).
"""

from dataclasses import replace

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


def rotation_between_half_maps(half_sets: HalfSets, refinement: Refinement, max_radius_px: float) -> Float[Tensor, " 3"]:
    """Rotation vector in rad, in the molecule's frame, from the poses of images by the first half map to those by the second.

    The median of some images of each half set, matched to both maps from their poses so far: misassigned ones do not count.
    """
    vectors = [sign * _rotations(half_sets, refinement, max_radius_px, half) for half, sign in ((1, 1.0), (2, -1.0))]
    common = torch.cat(vectors).median(0).values
    # a frame with the symmetry can only rotate about the axes that the symmetry leaves
    return (quaternion_to_matrix(half_sets.group.to(common)) @ common).mean(0)


def in_one_frame(poses: PoseHypotheses, halves: Int[np.ndarray, " n"], rotation_vector_rad: Float[Tensor, " 3"]
                 ) -> PoseHypotheses:
    """Poses of half sets 1 and 2 in a frame midway between those of their maps."""
    sign = torch.from_numpy(np.where(halves == 1, 0.5, -0.5)).to(poses.quaternion)
    rotation = rotation_vector_to_quaternion(sign[:, None] * rotation_vector_rad.to(poses.quaternion))
    return replace(poses, quaternion=compose(poses.quaternion, rotation[:, None].expand_as(poses.quaternion)))


def _rotations(half_sets: HalfSets, refinement: Refinement, max_radius_px: float, half: int) -> Tensor:
    """Rotation vectors (m, 3) from poses by the own half map to those by the other, of particles of one half set."""
    pair, contrast = refinement.pair, refinement.contrast
    scaled, rows = half_sets.scaled(pair.noise_spectrum, max_radius_px), half_sets.rows(half)
    models, vectors = [scaled.model(pair.reference[k - 1]) for k in (half, 3 - half)], []
    for some in batches(rows[::max(1, len(rows) // _MAX_IMAGES)]):
        index, images = torch.from_numpy(some).to(half_sets.device), scaled.at(some)
        images = images if contrast is None else images.with_contrast(contrast[index])
        quaternion, displacement_px = (values[index] for values in refinement.poses.best())
        own, other = (refine(images, model.volume, quaternion, displacement_px * scaled.scale, _ITERATIONS,
                             model.max_displacement_px).quaternion for model in models)
        other = nearest_equivalent(other, own, half_sets.group)
        vectors.append(quaternion_to_rotation_vector(compose(inverse(own), other)))
    return torch.cat(vectors)
