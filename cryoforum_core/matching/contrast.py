"""The contrast of a set's particles, and of each one: some ice is thicker, some micrographs are noisier.

Images are normalised by their noise, so that a noisy micrograph has particles of low contrast. An image matched with the
set's mean contrast instead of its own states too small an error where its own is lower, and too large a one where it is
higher.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .likelihood import contrast_from_poses
from .match_quality import SEARCH_BELOW_DEVIATIONS, match_quality, median_and_deviation
from .matching_model import MatchingModel
from .refine import RefinedPoses, predicted_at_refined
from .whitened_images import WhitenedImages

# below this deviation of the contrast from particle to particle, all have the set's: a stated error would change by less
# than it is known to
NEGLIGIBLE_DEVIATION = 0.05
# of a particle, over the set's: ice has none, and without any an image would state no error at all
MIN_CONTRAST = 0.1


@dataclass(frozen=True)
class Contrast:
    """Of a set's particles, as a factor to the model's; the deviation without what noise adds to it."""

    mean: float
    deviation: float

    @classmethod
    def of_particles(cls, images: WhitenedImages, model: MatchingModel, poses: RefinedPoses) -> "Contrast":
        """Of those of the images, at poses (n, ...), that look like particles."""
        fit = match_quality(images, model, poses).fit
        median, deviation = median_and_deviation(fit)
        some = fit >= median + SEARCH_BELOW_DEVIATIONS * deviation
        value, variance = (x[some] for x in contrast_from_poses(images, *predicted_at_refined(images, model.volume, poses)))
        mean = float((value / variance).sum() / (1 / variance).sum())
        return cls(mean, math.sqrt(max(0.0, float(((value - mean).square() - variance).mean()))))


def differs(deviation: float) -> bool:
    """Whether the contrast differs so much between the set's particles that each is matched with its own."""
    return deviation > NEGLIGIBLE_DEVIATION


def contrast_of_each(images: WhitenedImages, model: MatchingModel, poses: RefinedPoses, deviation: float
                     ) -> Float[Tensor, " n"]:
    """Of each image at its pose (n, ...), over that of the model: the mean of the posterior from the image's own regression
    and the set's distribution, of mean 1 and that deviation."""
    value, variance = contrast_from_poses(images, *predicted_at_refined(images, model.volume, poses))
    prior = deviation ** 2
    return ((value * prior + variance) / (prior + variance)).clamp_min(MIN_CONTRAST)


def with_own_contrast(images: WhitenedImages, model: MatchingModel, poses: RefinedPoses, deviation: float
                      ) -> tuple[RefinedPoses, Float[Tensor, " n"]]:
    """Hypotheses (n, K, ...), best first, refined with each image's own contrast, which is returned, too: an image of low
    contrast determines its pose less well than the set's mean says. Where the set has one contrast, nothing changes."""
    if not differs(deviation):
        return poses, torch.ones_like(poses.score[:, 0])
    contrast = contrast_of_each(images, model, poses[:, 0], deviation)
    return model.refine_to_the_end(images.with_contrast(contrast), poses), contrast


def without_contrast_in_noise(images: WhitenedImages, model: MatchingModel, poses: RefinedPoses, deviation: float
                              ) -> MatchingModel:
    """The model with the noise that is left where each image has its own contrast; from the better-fitting half, which has
    no junk."""
    fit = match_quality(images, model, poses).fit
    some = fit >= fit.median()
    images, poses = images[some], poses[some]
    return model.with_noise_left_by(images.with_contrast(contrast_of_each(images, model, poses, deviation)), poses)
