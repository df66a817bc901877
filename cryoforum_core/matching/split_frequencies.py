"""The error of a pose as the image itself shows it: the same pose from two halves of its Fourier pixels.

The noise of different pixels is independent. Poses refined with either half of them, from the pose of the whole image,
differ by twice the error of the whole on average: each has a variance twice that of the whole, and their difference four
times. Unlike the Fisher information this needs no noise model, and it feels whatever the map does not explain.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.rotations import angular_distance_rad
from .matching_model import MatchingModel
from .refine import RefinedPoses, refine
from .whitened_images import WhitenedImages

# Levenberg-Marquardt steps from the pose of the whole image: the halves' are near
_ITERATIONS = 6
# values of the images whose derivatives are in memory at a time
_CHUNK_VALUES = 1_000_000


def split_error_rad(images: WhitenedImages, model: MatchingModel, poses: RefinedPoses) -> Float[Tensor, " n"]:
    """Half the angle between the rotations found with two random halves of the pixels of n images, from poses (n, ...)."""
    order = torch.randperm(len(images.radius), generator=torch.Generator().manual_seed(0)).to(images.radius.device)
    halves = [images.pixels(half.sort().values) for half in order.chunk(2)]
    chunk = max(1, _CHUNK_VALUES // len(order))
    angles = []
    for some in torch.arange(len(images), device=order.device).split(chunk):
        first, second = (refine(half[some], model.volume, poses.quaternion[some], poses.displacement_px[some], _ITERATIONS,
                                model.max_displacement_px).quaternion for half in halves)
        angles.append(0.5 * angular_distance_rad(first, second))
    return torch.cat(angles)
