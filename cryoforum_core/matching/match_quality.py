"""How well an image fits the map at its pose, and whether it shows something else, too."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from .likelihood import predicted
from .matching_model import MatchingModel
from .refine import RefinedPoses
from .whitened_images import WhitenedImages

# below, ice and gradients may hold more power than any particle
RESIDUAL_MIN_RADIUS_PX = 2.0
# an exhaustive search is made below this fit, in standard deviations of that of the sample's good particles: normal noise
# sends less than 1 % of them there
SEARCH_BELOW_DEVIATIONS = -2.5


@dataclass(frozen=True)
class MatchQuality:
    """How well images fit the map at their poses, in standard deviations of what noise alone would do.

    ``fit`` (n,): score against the one a right pose gives, 0 on average, negative when the image lacks the signal.
    ``residual`` (n,): power left where the map has its power, positive when the image shows something else, too.
    """

    fit: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]


def match_quality(images: WhitenedImages, model: MatchingModel, poses: RefinedPoses) -> MatchQuality:
    """For poses (n, ...), one for each image."""
    return quality_of_prediction(images, model, predicted(images, model.volume, poses.quaternion, poses.displacement_px))


def quality_of_prediction(images: WhitenedImages, model: MatchingModel, expected: Complex[Tensor, "n m"]) -> MatchQuality:
    """For the prediction (n, m) of each image.

    With y = f + n: the score 2 Re<y, f> - |f|^2 has mean |f|^2 and variance 2 |f|^2; the residual power of a pixel has
    mean 1 and variance 1. Pixels are weighted by the power that a particle has in them, which is the most powerful test
    for a second one.
    """
    power = expected.abs().square().sum(-1)
    score = 2 * (images.data.conj() * expected).real.sum(-1) - power
    shells = images.radius.round().long().clamp_max(len(model.map_power) - 1)
    weight = images.transfer.square() * model.map_power[shells] * (images.radius >= RESIDUAL_MIN_RADIUS_PX)
    excess = (images.data - expected).abs().square() - 1
    residual = (weight * excess).sum(-1) / weight.square().sum(-1).sqrt().clamp_min(1e-12)
    return MatchQuality((score - power) / torch.sqrt(2 * power).clamp_min(1e-12), residual)


def median_and_deviation(fit: Float[Tensor, " n"]) -> tuple[float, float]:
    """Median and deviation of fits (n,); the deviation that of the better half, which junk does not reach."""
    median = float(fit.median())
    spread = fit[fit >= median] - median
    return median, max(1.0, 1.4826 * float(spread.median()))
