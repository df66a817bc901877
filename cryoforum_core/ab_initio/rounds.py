"""A round: every image matched to the map of its half set with its own contrast, noise and contrast estimated again, and both
half maps reconstructed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.pose_hypotheses import N_HYPOTHESES, PoseHypotheses
from ..geometry.rotations import angular_distance_rad
from ..matching.contrast import ContrastRegression, differs
from ..matching.exhaustive_search import SearchGrid
from ..matching.likelihood import predicted
from ..matching.matching_model import MatchingModel
from ..matching.refine import RefinedPoses
from ..matching.whitened_images import WhitenedImages
from ..progress import Progress
from .half_map_pair import HalfMapPair, RoundSums
from .half_sets import HalfSets, RoundImages, batches
from .hypothesis_refinement import refine_hypotheses, store_hypotheses

# nodes of the search that are refined before the best are kept
N_SEARCHED_HYPOTHESES = 16
# of the spread of the poses' posterior: a change of the poses by less changes no error
SETTLED_BELOW_SPREAD = 0.25
# a hypothesis with less of the posterior is not inserted: it would cost time and change nothing
_SMALLEST_WEIGHT = 0.02

Show = Callable[[float, str], None]
"""Is told which part of a round is done, 0 to 1, and what it does."""
Match = Callable[[WhitenedImages, Tensor], RefinedPoses]
"""(images of the round, their rows (n,)) -> their hypotheses, best first, in px of the round's box."""


@dataclass(frozen=True)
class Refinement:
    """Poses and the half maps made of them."""

    poses: PoseHypotheses
    pair: HalfMapPair
    contrast: Float[Tensor, " n"] | None = None
    """Of each particle, over that of the maps; None where it does not differ"""


def show_nothing(done: float, label: str) -> None:
    """For rounds whose progress is not shown."""


def global_round(half_sets: HalfSets, references: tuple[Float[Tensor, "b b b"], Float[Tensor, "b b b"]],
                 noise_spectrum: Float[Tensor, " shells"], max_radius_px: float, step_deg: float, search_radius_px: float,
                 show: Show = show_nothing) -> Refinement:
    """Searches every image anywhere in SO(3) against its half's reference, then reconstructs."""
    def matching(model: MatchingModel) -> Match:
        grid = SearchGrid.build(model, step_deg, search_radius_px)
        return lambda images, rows: grid.search(images, N_SEARCHED_HYPOTHESES, keep=N_HYPOTHESES)

    nowhere = PoseHypotheses.empty(len(half_sets), half_sets.device)
    return _round(half_sets.scaled(noise_spectrum, max_radius_px), nowhere, None, references, noise_spectrum, matching,
                  "global search", show)


def local_round(half_sets: HalfSets, before: Refinement, max_radius_px: float, show: Show = show_nothing) -> Refinement:
    """Refines every hypothesis against its half's reference, then reconstructs."""
    poses, scaled = before.poses, half_sets.scaled(before.pair.noise_spectrum, max_radius_px)

    def matching(model: MatchingModel) -> Match:
        return lambda images, rows: refine_hypotheses(images, model, poses.quaternion[rows],
                                                      poses.displacement_px[rows] * scaled.scale, poses.score[rows])

    return _round(scaled, poses, before.contrast, before.pair.reference, before.pair.noise_spectrum, matching,
                  "local refinement", show)


def reconstruct(half_sets: HalfSets, poses: PoseHypotheses, noise_spectrum: Float[Tensor, " shells"], max_radius_px: float,
                show: Show = show_nothing, contrast: Float[Tensor, " n"] | None = None) -> Refinement:
    """Half maps from the poses as they are; ``contrast`` is kept for the next round."""
    return _round(half_sets.scaled(noise_spectrum, max_radius_px), poses, contrast, None, noise_spectrum, None,
                  "reconstruct", show)


def _round(scaled: RoundImages, before: PoseHypotheses, contrast: Tensor | None,
           references: tuple[Tensor, Tensor] | None, noise_spectrum: Tensor,
           matching: Callable[[MatchingModel], Match] | None, label: str, show: Show) -> Refinement:
    """``references``: the map of each half set that ``matching`` compares with; without them poses stay."""
    half_sets, matched = scaled.half_sets, _Matched.nothing(before.copy(), contrast)
    sums = RoundSums(scaled.box_size_px, scaled.max_radius_px, half_sets.device)
    with Progress(len(half_sets), label) as progress:
        for half in (1, 2):
            model = match = None
            if references is not None:
                model = scaled.model(references[half - 1])
                match = matching(model)
            for rows in batches(half_sets.rows(half)):
                if len(rows):
                    images = scaled.at(rows)
                    if match is not None:
                        _match_batch(scaled, images, rows, model, match, matched, sums)
                    _insert_batch(scaled, images, rows, half, matched.poses, sums)
                progress.update(len(rows))
                show(progress.done / progress.total, label)
    return Refinement(matched.poses, scaled.in_own_box(sums.pair(scaled.mask(), scaled.noise_spectrum), noise_spectrum),
                      contrast if references is None else _contrast_of_each(matched.regression))


@dataclass(frozen=True)
class _Matched:
    """What a round finds for all particles; filled in place."""

    poses: PoseHypotheses
    contrast: Tensor | None
    """That of the round before, with which they are matched"""
    regression: ContrastRegression

    @classmethod
    def nothing(cls, poses: PoseHypotheses, contrast: Tensor | None) -> "_Matched":
        return cls(poses, contrast, ContrastRegression(*torch.zeros(3, len(poses), device=poses.score.device)))


def _match_batch(scaled: RoundImages, images: WhitenedImages, rows: np.ndarray, model: MatchingModel, match: Match,
                 matched: _Matched, sums: RoundSums) -> None:
    """Puts what is found for particles ``rows`` (n,) into ``matched``, and what it leaves unexplained into ``sums``."""
    half_sets, index = scaled.half_sets, torch.from_numpy(rows).to(scaled.half_sets.device)
    seen = images if matched.contrast is None else images.with_contrast(matched.contrast[index])
    found = match(seen, index)
    store_hypotheses(matched.poses, index, found, half_sets.box_size_px / scaled.box_size_px, half_sets.group)
    best = found[:, 0]
    # the map's contrast for all: regressions of one round are comparable, whatever the contrast before
    regression = ContrastRegression.of_images(images, model, best)
    for name, values in vars(regression).items():
        getattr(matched.regression, name)[index] = values
    sums.add_residual(seen, predicted(seen, model.volume, best.quaternion, best.displacement_px))


def _contrast_of_each(regression: ContrastRegression) -> Tensor | None:
    mean, deviation = regression.distribution()
    return regression.posterior_mean(mean, deviation) if mean > 0 and differs(deviation / mean) else None


def _insert_batch(scaled: RoundImages, images: WhitenedImages, rows: np.ndarray, half: int, poses: PoseHypotheses,
                  sums: RoundSums) -> None:
    index = torch.from_numpy(rows).to(scaled.half_sets.device)
    weight = poses.weight[index]
    image, hypothesis = torch.nonzero(weight > _SMALLEST_WEIGHT, as_tuple=True)
    displacement_px = poses.displacement_px[index] * scaled.scale
    sums.insert(half, images[image], poses.quaternion[index[image], hypothesis], displacement_px[image, hypothesis],
                weight[image, hypothesis], scaled.half_sets.group)


def pose_change_deg(before: Float[Tensor, "n 4"], after: Float[Tensor, "n 4"]) -> float:
    """Median angle in degrees between two sets of rotations."""
    return float(torch.rad2deg(angular_distance_rad(before, after)).median())


def is_settled(change_deg: float, poses: PoseHypotheses) -> bool:
    """Whether a further round would change no error: ``change_deg`` of the last one is small beside the poses' spread."""
    return change_deg < SETTLED_BELOW_SPREAD * poses.median_spread_deg
