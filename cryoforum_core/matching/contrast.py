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
from .match_quality import SEARCH_BELOW_DEVIATIONS, match_quality, median_and_deviation, quality_of_prediction
from .matching_model import MatchingModel
from .refine import RefinedPoses, predicted_at_refined
from .whitened_images import WhitenedImages

# below this deviation of the contrast from particle to particle, all have the set's: a stated error would change by less
# than it is known to
NEGLIGIBLE_DEVIATION = 0.05
# of a particle, over the set's: ice has none, and without any an image would state no error at all
MIN_CONTRAST = 0.1


@dataclass(frozen=True)
class ContrastRegression:
    """Each of n images regressed on its prediction: the factor, its variance by the noise, and how well the image fits."""

    value: Float[Tensor, " n"]
    variance: Float[Tensor, " n"]
    fit: Float[Tensor, " n"]

    @classmethod
    def of_images(cls, images: WhitenedImages, model: MatchingModel, poses: RefinedPoses) -> "ContrastRegression":
        """At poses (n, ...), one for each image."""
        prediction, taken_up = predicted_at_refined(images, model.volume, poses)
        return cls(*contrast_from_poses(images, prediction, taken_up), quality_of_prediction(images, model, prediction).fit)

    def distribution(self) -> tuple[float, float]:
        """Mean of the contrast, and its deviation without what noise adds to it, of the images that look like particles."""
        median, deviation = median_and_deviation(self.fit)
        some = self.fit >= median + SEARCH_BELOW_DEVIATIONS * deviation
        value, variance = self.value[some], self.variance[some]
        mean = float((value / variance).sum() / (1 / variance).sum())
        return mean, math.sqrt(max(0.0, float(((value - mean).square() - variance).mean())))

    def posterior_mean(self, mean: float, deviation: float) -> Float[Tensor, " n"]:
        """Of each image, from its own regression and the set's distribution."""
        prior = deviation ** 2
        shrunk = (self.value * prior + self.variance * mean) / (prior + self.variance)
        return shrunk.clamp_min(MIN_CONTRAST * mean)


@dataclass(frozen=True)
class Contrast:
    """Of a set's particles, as a factor to the model's; the deviation without what noise adds to it."""

    mean: float
    deviation: float

    @classmethod
    def of_particles(cls, images: WhitenedImages, model: MatchingModel, poses: RefinedPoses) -> "Contrast":
        """Of those of the images, at poses (n, ...), that look like particles."""
        return cls(*ContrastRegression.of_images(images, model, poses).distribution())


def differs(deviation: float) -> bool:
    """Whether the contrast differs so much between the set's particles that each is matched with its own."""
    return deviation > NEGLIGIBLE_DEVIATION


def contrast_of_each(images: WhitenedImages, model: MatchingModel, poses: RefinedPoses, deviation: float
                     ) -> Float[Tensor, " n"]:
    """Of each image at its pose (n, ...), over that of the model: the mean of the posterior from the image's own regression
    and the set's distribution, of mean 1 and that deviation."""
    return ContrastRegression.of_images(images, model, poses).posterior_mean(1.0, deviation)


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
