"""Poses refined against a map, and searched for again where the data say that they are wrong.

``local``: Gauss-Newton from the starting poses, which are a network's with samples of its posterior, or those of an earlier
round. ``adaptive``: local for all; where the match is not better than what chance reaches, or clearly poorer than that of
the set's particles, an exhaustive search; where it is still poor, a finer one. Several hypotheses are kept until the finest
resolution decides.
"""

import copy
import logging
import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from ..geometry.bingham import sample_bingham
from ..imaging.projection import FourierVolume
from .contrast import Contrast, differs, with_own_contrast, without_contrast_in_noise
from .exhaustive_search import (
    FINE_SEARCH_RADIUS_PX,
    FINE_SEARCH_STEP_DEG,
    N_FINE_HYPOTHESES,
    N_HYPOTHESES,
    SearchGrid,
)
from .match_quality import SEARCH_BELOW_DEVIATIONS, MatchQuality, match_quality, median_and_deviation
from .matching_model import MatchingModel, simulated_transforms
from .refine import RefinedPoses
from .split_frequencies import split_error_rad
from .whitened_images import WhitenedImages

logger = logging.getLogger("cryoforum")

# samples of a network's posterior beside its mode
N_NETWORK_SAMPLES = 7
# hypotheses that matching returns: the best pose and alternatives to it
KEPT_HYPOTHESES = 3
# a fine search below this one, after the first: normal noise sends 4 % of them there
FINE_SEARCH_BELOW_DEVIATIONS = -1.75
# images of noise that are searched; the best of their scores is what chance reaches
N_CHANCE_IMAGES = 48
# a match that much less likely than another of the same image is not the right one
MISASSIGNED_ABOVE_LOG_LIKELIHOOD_GAIN = 10.0
# misassigned poses are taken to change the contrast by no more than this factor
LARGEST_CONTRAST_CORRECTION = 2.0


@dataclass(frozen=True)
class StartingPoses:
    """K poses of each of n images that local matching starts from; displacements in px of the matching box."""

    quaternion: Float[Tensor, "n k 4"]
    displacement_px: Float[Tensor, "n k 2"]

    @classmethod
    def of_network(cls, quaternion: Float[Tensor, "n 4"], bingham: Float[Tensor, "n 4 4"],
                   displacement_px: Float[Tensor, "n 2"], seed: int, n_samples: int = N_NETWORK_SAMPLES) -> "StartingPoses":
        """A network's rotation first, then ``n_samples`` of its posterior, all at its displacement.

        ``bingham``: the posterior of ``geometry.orientation_posterior``. The samples depend on ``seed`` and on which images
        come together.
        """
        samples = sample_bingham(bingham, n_samples, torch.Generator(quaternion.device).manual_seed(seed))
        return cls(torch.cat([quaternion[:, None], samples], dim=1),
                   displacement_px[:, None].expand(-1, 1 + n_samples, -1))

    def __getitem__(self, index) -> "StartingPoses":
        """Those of some images: ``index`` is a slice, indices or a mask."""
        return StartingPoses(self.quaternion[index], self.displacement_px[index])

    def within(self, limit_px: float) -> "StartingPoses":
        """Displacements longer than the limit are shortened to it."""
        length = self.displacement_px.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return StartingPoses(self.quaternion, self.displacement_px * (limit_px / length).clamp_max(1.0))


@dataclass(frozen=True)
class Matches:
    """Hypotheses of n images, best first (fields (n, K, ...)), and how well the first one fits."""

    hypotheses: RefinedPoses
    quality: MatchQuality
    searched: Bool[Tensor, " n"]
    """an exhaustive search was made"""
    contrast: Float[Tensor, " n"]
    """of each particle, over the set's"""
    split_error_rad: Float[Tensor, " n"]
    """half the angle between poses from two halves of each image's Fourier pixels (module ``split_frequencies``)"""


class Matcher:
    """A matching model adapted to a sample of the data set, and the searches that use it."""

    def __init__(self, model: MatchingModel, adaptive: bool, seed: int = 0):
        self.model, self.adaptive, self.seed = model, adaptive, seed
        self.median_fit, self.fit_deviation, self.chance_score = 0.0, 1.0, 0.0
        self.best_misassigned_fit = -math.inf
        self.explained_amplitude, self.contrast_deviation = 1.0, 0.0
        self._grids: dict[float, SearchGrid] = {}

    def calibrate(self, images_ft: Complex[Tensor, "n b b//2+1"], ctf: Float[Tensor, "n b b//2+1"], start: StartingPoses
                  ) -> None:
        """Adapts amplitude and noise to a sample (n, B, B // 2 + 1), and measures the fit of good and of chance matches."""
        best, local = self._first_match(images_ft, ctf, start)
        for _ in range(2):
            images = self.model.images(images_ft, ctf)
            quality = match_quality(images, self.model, best[:, 0])
            # junk must not lower the amplitude: it is fitted to the better half of the sample
            good = quality.fit >= quality.fit.median()
            self.model, explained = self.model.adapted(images[good], best[good, 0])
            self.explained_amplitude *= explained
        images = self.model.images(images_ft, ctf)
        refined = self.model.refine_from(images, best.quaternion, best.displacement_px)
        # the better half has the better contrast, partly by chance: the contrast is that of all particles
        contrast = Contrast.of_particles(images, self.model, refined[:, 0])
        self._scale_contrast(contrast.mean)
        self.contrast_deviation = contrast.deviation / contrast.mean
        if self.adaptive:
            self._correct_for_misassigned_poses(ctf)
        images = self.model.images(images_ft, ctf)
        if differs(self.contrast_deviation):
            self.model = without_contrast_in_noise(images, self.model, refined[:, 0], self.contrast_deviation)
            images = self.model.images(images_ft, ctf)
        fit = match_quality(images, self.model, refined[:, 0]).fit
        self.median_fit, self.fit_deviation = median_and_deviation(fit)
        if self.adaptive:
            self.chance_score = self._chance_score(images[:N_CHANCE_IMAGES])
            self.best_misassigned_fit = self._best_misassigned_fit(images, local, refined, fit)

    def _scale_contrast(self, factor: float) -> None:
        self.model = self.model.with_contrast_scaled(factor)
        self.explained_amplitude *= factor

    def _correct_for_misassigned_poses(self, ctf: Tensor) -> None:
        """Corrects the contrast that a regression found by what the same regression finds in images of contrast 1.

        Misassigned poses lower the contrast found; that each is the best fit of its image raises it. Images simulated from
        the model, with CTFs (n, ...), suffer from both in the same way.
        """
        images = self.model.images(simulated_transforms(self.model, ctf, self.seed), ctf)
        found = Contrast.of_particles(images, self.model, self.search(images)[:, 0])
        self._scale_contrast(1 / min(max(found.mean, 1 / LARGEST_CONTRAST_CORRECTION), LARGEST_CONTRAST_CORRECTION))
        self.contrast_deviation = max(0.0, self.contrast_deviation ** 2 - found.deviation ** 2) ** 0.5

    def _first_match(self, images_ft: Tensor, ctf: Tensor, start: StartingPoses) -> tuple[RefinedPoses, RefinedPoses]:
        """The best poses (n, K, ...), and those found from the starting poses alone."""
        images = self.model.images(images_ft, ctf)
        poses = local = self._local(images, start)
        if self.adaptive:
            poses = _merge(local, self._grid().search(images))
        return poses, local

    def _best_misassigned_fit(self, images: WhitenedImages, local: RefinedPoses, best: RefinedPoses, fit: Tensor) -> float:
        """The best fit in the sample of a local match that a search has shown to be wrong; -inf where there is none.

        The spread of the fits alone is no limit: images of different contrast, as several micrographs have, spread so
        widely that a misassigned pose passes among them. Junk, which has no right pose, is left out.
        """
        local = self.model.refine_from(images, local.quaternion, local.displacement_px)[:, 0]
        wrong = self.is_particle(fit) & (best.score[:, 0] - local.score > MISASSIGNED_ABOVE_LOG_LIKELIHOOD_GAIN)
        if not wrong.any():
            return -math.inf
        return float(match_quality(images, self.model, local).fit[wrong].max())

    def _chance_score(self, images: WhitenedImages) -> float:
        """The score of the best of all poses in images of noise alone: the highest of a few images."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(*images.data.shape, 2, generator=generator).to(images.transfer.device) * 0.5 ** 0.5
        return float(self._grid().search(replace(images, data=torch.view_as_complex(noise))).score[:, 0].max())

    def _grid(self, fine: bool = False) -> SearchGrid:
        if fine not in self._grids:
            self._grids[fine] = (SearchGrid.build(self.model, FINE_SEARCH_STEP_DEG, FINE_SEARCH_RADIUS_PX) if fine
                                 else SearchGrid.build(self.model))
        # slices do not depend on amplitude and noise: the grid outlives an adapted model
        return replace(self._grids[fine], model=self.model)

    def _local(self, images: WhitenedImages, start: StartingPoses) -> RefinedPoses:
        start = start.within(self.model.max_displacement_px)
        return self.model.refine_from(images, start.quaternion, start.displacement_px, keep=KEPT_HYPOTHESES)

    def search(self, images: WhitenedImages) -> RefinedPoses:
        """The best poses of an exhaustive search, whatever the starting poses; best first."""
        return self._grid().search(images)

    def match(self, images_ft: Complex[Tensor, "n b b//2+1"], ctf: Float[Tensor, "n b b//2+1"], start: StartingPoses,
              search_all: bool = False, held_out: FourierVolume | None = None) -> Matches:
        """Poses of n images from transforms and CTFs (n, B, B // 2 + 1) and the poses to start from.

        ``search_all``: an adaptive matcher searches for every pose, not only where the match is poor. ``held_out``: the map
        that split errors are found with, where the images are part of the matcher's own.
        """
        images = self.model.images(images_ft, ctf)
        poses = self._local(images, start)
        quality = match_quality(images, self.model, poses[:, 0])
        searched = torch.zeros(len(images), dtype=torch.bool, device=images.transfer.device)
        if self.adaptive:
            poor = ~self.is_particle(quality.fit) | (quality.fit <= self.best_misassigned_fit) | (
                poses.score[:, 0] < self.chance_score) | search_all
            poses, quality = self._search(images, poses, quality, poor, fine=False)
            searched |= poor
            poses, quality = self._search(images, poses, quality, self._needs_fine_search(quality), fine=True)
        return _matches(images, self.model, self.contrast_deviation, poses, quality, searched, held_out)

    def is_particle(self, fit: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Whether matches of that quality (n,) are those of particles, compared with good ones of the sample: bool (n,)."""
        return fit >= self.median_fit + SEARCH_BELOW_DEVIATIONS * self.fit_deviation

    def find(self, images_ft: Complex[Tensor, "n b b//2+1"], ctf: Float[Tensor, "n b b//2+1"]) -> Matches:
        """Poses of n images of which nothing is known, by search; transforms and CTFs as for ``match``."""
        images = self.model.images(images_ft, ctf)
        poses = self._grid().search(images, keep=KEPT_HYPOTHESES)
        quality = match_quality(images, self.model, poses[:, 0])
        poses, quality = self._search(images, poses, quality, self._needs_fine_search(quality), fine=True)
        searched = torch.ones(len(images), dtype=torch.bool, device=images.transfer.device)
        return _matches(images, self.model, self.contrast_deviation, poses, quality, searched)

    def _needs_fine_search(self, quality: MatchQuality) -> Tensor:
        return quality.fit < self.median_fit + FINE_SEARCH_BELOW_DEVIATIONS * self.fit_deviation

    def _search(self, images: WhitenedImages, poses: RefinedPoses, quality: MatchQuality, wanted: Tensor,
                fine: bool) -> tuple[RefinedPoses, MatchQuality]:
        rows = torch.nonzero(wanted)[:, 0]
        if not len(rows):
            return poses, quality
        n_hypotheses = N_FINE_HYPOTHESES if fine else N_HYPOTHESES
        found = self._grid(fine).search(images[rows], n_hypotheses, keep=KEPT_HYPOTHESES)
        poses = _replace_rows(poses, rows, _merge(poses[rows], found))
        return poses, match_quality(images, self.model, poses[:, 0])


def with_map(matcher: Matcher, volume: FourierVolume) -> Matcher:
    """The same matcher for another map, which has the frame and the scale of its own."""
    other = copy.copy(matcher)
    other.model, other._grids = replace(matcher.model, volume=volume), {}
    return other


def refined_matches(matcher: Matcher, volume: FourierVolume, images_ft: Complex[Tensor, "n b b//2+1"],
                    ctf: Float[Tensor, "n b b//2+1"], start: StartingPoses, first_radius_px: float) -> Matches:
    """Poses of n images refined against another map, which has the frame and the scale of the matcher's own, from poses that
    are right but for small errors; frequencies up to ``first_radius_px`` come first."""
    model, start = replace(matcher.model, volume=volume), start.within(matcher.model.max_displacement_px)
    images = model.images(images_ft, ctf)
    poses = model.refine_from(images, start.quaternion, start.displacement_px, first_radius_px)
    quality = match_quality(images, model, poses[:, 0])
    searched = torch.zeros(len(images), dtype=torch.bool, device=images.transfer.device)
    return _matches(images, model, matcher.contrast_deviation, poses, quality, searched)


def _matches(images: WhitenedImages, model: MatchingModel, contrast_deviation: float, poses: RefinedPoses,
             quality: MatchQuality, searched: Tensor, held_out: FourierVolume | None = None) -> Matches:
    poses, contrast = with_own_contrast(images, model, poses, contrast_deviation)
    split = split_error_rad(images.with_contrast(contrast), replace(model, volume=held_out or model.volume), poses[:, 0])
    return Matches(poses, quality, searched, contrast, split)


def _merge(first: RefinedPoses, second: RefinedPoses) -> RefinedPoses:
    """The best hypotheses of both, best first; as many as the first has."""
    both = RefinedPoses.concatenate([first, second], dim=1)
    order = both.score.argsort(dim=1, descending=True)[:, :first.score.shape[1]]
    return both[torch.arange(len(order), device=order.device)[:, None], order]


def _replace_rows(poses: RefinedPoses, rows: Tensor, new: RefinedPoses) -> RefinedPoses:
    def replaced(old: Tensor, fresh: Tensor) -> Tensor:
        old = old.clone()
        old[rows] = fresh
        return old

    return RefinedPoses(*(replaced(getattr(poses, field.name), getattr(new, field.name)) for field in fields(poses)))
