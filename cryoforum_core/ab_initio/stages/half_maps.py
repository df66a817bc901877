"""The second stage: rounds in which two half sets are refined independently, from one low-resolution start."""

import logging
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ...geometry.pose_hypotheses import PoseHypotheses
from ...imaging.fourier import low_pass_volume
from ...reconstruction.reconstruct import half_sets
from ..background import background_spectrum
from ..half_map_pair import HalfMapPair, next_radius_px
from ..half_sets import COMMON_RADIUS_PX, HalfSets
from ..live_run import LiveRun
from ..plan import AbInitioPlan
from ..pseudo_symmetry import PseudoTwofold, find_pseudo_twofold, is_other_way_round
from ..rounds import Refinement, Show, global_round, is_settled, local_round, pose_change_deg, reconstruct
from .search import SearchOutcome
from .store import StageStore, State

logger = logging.getLogger("cryoforum")

# of the first round, which searches all rotations: fine enough for the next one to refine
GLOBAL_STEP_DEG = 10.0
# finest frequency of its search, cycles per box
GLOBAL_RADIUS_PX = 10.0
# finest frequency to which it refines what it found
GLOBAL_MAX_RADIUS_PX = 12.0
# rounds after the first that are made in any case
MIN_ROUNDS = 2
# at most
MAX_ROUNDS = 10
# rounds after the orientations of a pseudo-symmetric molecule were resolved
ROUNDS_AFTER_RESOLVING = 3
# length of the first round, in later rounds, for the estimate of the time left
_LENGTH_OF_FIRST_ROUND = 3
# the stage is nearly over when its maps are examined for pseudo-symmetry
_DONE_BEFORE_RESOLVING = 0.95


@dataclass(frozen=True)
class FinishedRounds:
    """The state after all rounds so far."""

    refinement: Refinement
    figures: list[dict]
    """Of each round, for the summary"""

    def state(self) -> State:
        poses, pair = self.refinement.poses, self.refinement.pair
        return {**vars(poses), "raw_first": pair.raw[0], "raw_second": pair.raw[1],
                "reference_first": pair.reference[0], "reference_second": pair.reference[1], "fsc": pair.fsc,
                "noise_spectrum": pair.noise_spectrum, "sampled_fraction": pair.sampled_fraction,
                "contrast": self.refinement.contrast, "rounds": self.figures}

    @classmethod
    def of_state(cls, state: State) -> "FinishedRounds":
        poses = PoseHypotheses(*(state[name] for name in (
            "quaternion", "displacement_px", "score", "weight", "information")))
        pair = HalfMapPair((state["raw_first"], state["raw_second"]), (state["reference_first"], state["reference_second"]),
                           state["fsc"], state["noise_spectrum"], state["sampled_fraction"])
        # runs of an earlier version kept no contrast
        return cls(Refinement(poses, pair, state.get("contrast")), state["rounds"])


@dataclass(frozen=True)
class RefinedHalfSets:
    """Result of the stage: the half sets, their source, and the refinement of the last round."""

    half_sets: HalfSets
    source: str
    rounds: FinishedRounds

    @property
    def refinement(self) -> Refinement:
        return self.rounds.refinement


def refine_half_maps(plan: AbInitioPlan, found: SearchOutcome, store: StageStore, live: LiveRun) -> RefinedHalfSets:
    """All rounds; each is kept as it ends, so that a stopped run goes on after the last."""
    sets, source = _half_sets(plan, found)
    rounds = FinishedRounds.of_state(store.kept("half maps", lambda: _rounds(plan, sets, found, store, live).state()))
    _show_maps(plan, live, rounds.refinement.pair)
    return RefinedHalfSets(sets, source, rounds)


def _half_sets(plan: AbInitioPlan, found: SearchOutcome) -> tuple[HalfSets, str]:
    halves, source = half_sets(plan.particles, plan.config.seed)
    rows = np.random.default_rng(plan.config.seed).permutation(len(plan.particles))
    return HalfSets(plan.images, halves, plan.group, plan.mask_radius_px / plan.particles.box_size_px,
                    plan.max_displacement_px, background_spectrum(plan.images, rows), found.common_radius_px), source


def _rounds(plan: AbInitioPlan, sets: HalfSets, found: SearchOutcome, store: StageStore, live: LiveRun) -> FinishedRounds:
    if store.has("rounds"):
        rounds = FinishedRounds.of_state(store.load("rounds"))
        logger.info("half maps: %d rounds done before, continuing after them", len(rounds.figures))
    else:
        rounds = _first_round(plan, sets, found, live)
        store.save("rounds", rounds.state())
    if "refinement" in plan.config.skip:
        return rounds
    while _goes_on(rounds):
        rounds = _next_round(plan, sets, rounds, live)
        store.save("rounds", rounds.state())
    return _resolved(plan, sets, rounds, live) if len(plan.group) == 1 else rounds


def _goes_on(rounds: FinishedRounds) -> bool:
    """Whether another round is worthwhile: until two in a row have not improved the resolution, and the poses have settled.

    Maps that agree may still be distorted by what the common start had wrong, which later rounds undo slowly.
    """
    figures = rounds.figures
    if len(figures) <= MIN_ROUNDS:
        return True
    radii = [of_round["resolution_radius_px"] for of_round in figures]
    settled = is_settled(figures[-1]["pose_change_deg"], rounds.refinement.poses)
    return len(figures) <= MAX_ROUNDS and (max(radii[-2:]) > max(radii[:-2]) or not settled)


def _first_round(plan: AbInitioPlan, sets: HalfSets, found: SearchOutcome, live: LiveRun) -> FinishedRounds:
    start, spare_px = low_pass_volume(found.volume, sets.common_radius_px), sets.common_radius_px - COMMON_RADIUS_PX
    radius = min(plan.max_radius_px, GLOBAL_MAX_RADIUS_PX + spare_px)
    refinement = global_round(sets, (start, start), sets.background_spectrum, radius, GLOBAL_STEP_DEG,
                              min(GLOBAL_RADIUS_PX + spare_px, radius), _shown(live, 0))
    return FinishedRounds(refinement, [_figures(plan, refinement.pair, radius, None)])


def _next_round(plan: AbInitioPlan, sets: HalfSets, rounds: FinishedRounds, live: LiveRun) -> FinishedRounds:
    before = rounds.refinement
    radius = next_radius_px(before.pair, plan.max_radius_px)
    masked = replace(before, pair=before.pair.masked_beyond(sets.common_radius_px))
    after = local_round(sets, masked, radius, _shown(live, len(rounds.figures)))
    change_deg = pose_change_deg(before.poses.best()[0], after.poses.best()[0])
    figures = _figures(plan, after.pair, radius, change_deg)
    _show_maps(plan, live, after.pair)
    return FinishedRounds(after, [*rounds.figures, figures])


def _resolved(plan: AbInitioPlan, sets: HalfSets, rounds: FinishedRounds, live: LiveRun) -> FinishedRounds:
    """Of a pseudo-symmetric molecule: each image the right way round, and rounds after that."""
    before = rounds.refinement
    twofold = find_pseudo_twofold(before.pair, sets.box_size_px)
    if twofold is None:
        return rounds
    logger.info("the map has pseudo-C2 symmetry (FSC %.2f with its copy rotated by 180 degrees): each image has two "
                "orientations that it can hardly distinguish", twofold.agreement)
    live.show(_DONE_BEFORE_RESOLVING, "resolving the pseudo-symmetry")
    is_other = is_other_way_round(sets, before, twofold, plan.max_radius_px, plan.config.seed)
    if is_other is not None:
        rounds = _right_way_round(plan, sets, rounds, twofold, is_other, live)
    figures = {"agreement": twofold.agreement, "is_told_apart": is_other is not None}
    return replace(rounds, figures=[*rounds.figures[:-1], rounds.figures[-1] | {"near_half_turn": figures}])


def _right_way_round(plan: AbInitioPlan, sets: HalfSets, rounds: FinishedRounds, twofold: PseudoTwofold,
                     is_other: torch.Tensor, live: LiveRun) -> FinishedRounds:
    """``is_other`` bool (N,): whose other orientation is the right one."""
    pair, own = rounds.refinement.pair, rounds.refinement.poses.best()
    other, is_other = twofold.other(*own), is_other[:, None]
    chosen, left = (tuple(torch.where(is_other, x, y) for x, y in zip(*both, strict=True))
                    for both in ((other, own), (own, other)))
    poses = rounds.refinement.poses.with_two(chosen, left)
    rounds = replace(rounds, refinement=reconstruct(sets, poses, pair.noise_spectrum,
                                                    next_radius_px(pair, plan.max_radius_px),
                                                    _shown(live, len(rounds.figures)), rounds.refinement.contrast))
    for _ in range(ROUNDS_AFTER_RESOLVING):
        rounds = _next_round(plan, sets, rounds, live)
    return rounds


def _figures(plan: AbInitioPlan, pair: HalfMapPair, radius_px: float, change_deg: float | None) -> dict:
    figures = {"max_radius_px": radius_px, "resolution_radius_px": pair.resolution_radius_px,
               "resolution_angstrom": plan.extent_angstrom / pair.resolution_radius_px, "pose_change_deg": change_deg}
    change = "" if change_deg is None else f", poses changed by {change_deg:.2f} degrees (median)"
    logger.info("half maps agree to %.3g A (shell %.0f)%s", figures["resolution_angstrom"], pair.resolution_radius_px,
                change)
    return figures


def _shown(live: LiveRun, number: int) -> Show:
    """What shows the progress of round ``number``, from 0."""
    return partial(_show_round, live, number)


def _show_round(live: LiveRun, number: int, done: float, label: str) -> None:
    n_rounds = MAX_ROUNDS + 2
    before = 0 if number == 0 else _LENGTH_OF_FIRST_ROUND - 1 + number
    length = _LENGTH_OF_FIRST_ROUND if number == 0 else 1
    # further ones, of a pseudo-symmetric molecule, are not foreseen
    live.show(min(0.99, (before + length * done) / (n_rounds + _LENGTH_OF_FIRST_ROUND - 1)), f"round {number + 1}: {label}")


def _show_maps(plan: AbInitioPlan, live: LiveRun, pair: HalfMapPair) -> None:
    live.map(pair.mean_reference, plan.extent_angstrom / len(pair.reference[0]), {"half maps": pair.fsc},
             plan.extent_angstrom / pair.resolution_radius_px)
