"""The fourth stage: every particle matched once more, its error calibrated, and the last half maps."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...geometry.pose_hypotheses import PoseHypotheses
from ...geometry.poses import displacement_px
from ...model.orientation_head import PoseEstimate
from ...results.pose_results import PoseResults
from ...states.labelling import ParticleStates
from ...uncertainty.calibration import Calibration
from ...uncertainty.match_posterior import bingham_from_information
from ..explained_fraction import explained_fraction
from ..half_map_frames import in_one_frame, rotation_between_half_maps
from ..half_map_pair import HalfMapPair, next_radius_px
from ..half_sets import HalfSets
from ..live_run import LiveRun
from ..matching_to_half_maps import FinalImages, MatchedParticles, calibrate_errors, match_all
from ..particle_results import of_poses, with_estimated_errors
from ..particle_states import LastRound
from ..plan import AbInitioPlan
from ..rounds import Refinement, is_settled, local_round, pose_change_deg, reconstruct
from .half_maps import RefinedHalfSets
from .store import StageStore

logger = logging.getLogger("cryoforum")

# relative lengths of the parts, where many poses were misassigned, for the estimate of the time left
SHARES = {"matching all": 1.0, "maps with the recovered poses": 0.1, "matching all again": 0.8,
          "calibrating errors": 0.8, "last maps": 0.1}
# part of the images that are particles with a misassigned pose, up to which one matching is enough
FEW_MISASSIGNED = 0.01
# after a matching, at most: poses that it found again change the maps, and these the poses of others
MAX_LAST_ROUNDS = 4
# an image that says nothing of a direction: its standard deviation ends at 3 rad
_MIN_INFORMATION = 0.1


@dataclass(frozen=True)
class FinalOutcome:
    """Results of all particles, the last half maps, how much of the images they explain, the calibration of the errors (None
    where nothing was matched), the part of the particles whose pose each matching recovered, and their states (None where they
    were not looked for)."""

    results: PoseResults
    pair: HalfMapPair
    explained_fraction: float
    calibration: Calibration | None
    recovered_fractions: list[float]
    states: ParticleStates | None = None


def match_finally(plan: AbInitioPlan, refined: RefinedHalfSets, network: PoseEstimate | None, is_skipped: bool,
                  store: StageStore, live: LiveRun) -> FinalOutcome:
    """``network``: what it finds for all N particles, on the CPU. ``is_skipped``: poses stay as they are."""
    if is_skipped:
        return _unmatched(plan, refined, network)
    sets = refined.half_sets
    matched, recovered = _matched(plan, sets, refined.refinement, network, store, live)
    results, calibration = calibrate_errors(matched, _shown_as(live, "calibrating errors"))
    last = _rebuilt(plan, sets, matched, _shown_as(live, "last maps"))
    states, poses = _states(plan, sets, last, results)
    results = _with_poses_of(poses, results, calibration, plan.particles.pixel_size_angstrom)
    if states is not None and states.is_found:
        results = replace(results, states=states.labels(len(results)))
    return FinalOutcome(with_estimated_errors(results, network, plan, calibration), last.pair,
                        explained_fraction(sets, last, sets.common_radius_px), calibration, recovered, states)


def _states(plan: AbInitioPlan, sets: HalfSets, last: Refinement, results: PoseResults
            ) -> tuple[ParticleStates | None, PoseHypotheses]:
    """The particles' states, and their poses, refined again where there are two."""
    radius_px = next_radius_px(last.pair, plan.max_radius_px)
    last_round = LastRound(sets, _masked(sets, last), sets.scaled(last.pair.noise_spectrum, radius_px))
    states = last_round.states(results, plan.config.seed)
    return states, last_round.refined(states) if states is not None and states.is_found else last.poses


def _unmatched(plan: AbInitioPlan, refined: RefinedHalfSets, network: PoseEstimate | None) -> FinalOutcome:
    """The rounds' poses as they are, or the network's, with nothing known about their errors."""
    refinement, pixel_size_angstrom = refined.refinement, plan.particles.pixel_size_angstrom
    poses = refinement.poses
    if network is not None:
        poses = PoseHypotheses.of(network.quaternion.to(plan.device),
                                  displacement_px(network.shift_angstrom.to(plan.device), pixel_size_angstrom))
    results = of_poses(plan.particles.particle_id, poses.best_poses(pixel_size_angstrom))
    results = with_estimated_errors(results, network, plan, None)
    explained = explained_fraction(refined.half_sets, refinement, refined.half_sets.common_radius_px)
    return FinalOutcome(results, refinement.pair, explained, None, [])


def _matched(plan: AbInitioPlan, sets: HalfSets, refinement: Refinement, network: PoseEstimate | None, store: StageStore,
             live: LiveRun) -> tuple[MatchedParticles, list[float]]:
    """All particles matched, and the part of them whose pose each matching recovered.

    Maps that held many misassigned poses are better without them, and errors calibrated with the poorer maps are not those
    of the end (``docs/decisions/0043-second-final-matching.md``): then all are matched to the better maps once more.
    """
    matched = _matched_once(plan, sets, refinement, network, store, live, "matching all")
    recovered = [matched.recovered_fraction]
    logger.info("%.1f %% of the images are particles whose pose was misassigned before", 100 * recovered[0])
    if recovered[0] > FEW_MISASSIGNED:
        better = _rebuilt(plan, sets, matched, _shown_as(live, "maps with the recovered poses"))
        matched = _matched_once(plan, sets, better, network, store, live, "matching all again")
        recovered.append(matched.recovered_fraction)
    return matched, recovered


def _matched_once(plan: AbInitioPlan, sets: HalfSets, refinement: Refinement, network: PoseEstimate | None,
                  store: StageStore, live: LiveRun, part: str) -> MatchedParticles:
    images = FinalImages.of(plan, sets, _masked(sets, refinement), network)
    return match_all(images, store, part, _shown_as(live, part))


def _masked(sets: HalfSets, refinement: Refinement) -> Refinement:
    return replace(refinement, pair=refinement.pair.masked_beyond(sets.common_radius_px))


def _rebuilt(plan: AbInitioPlan, sets: HalfSets, matched: MatchedParticles, show: Callable[[float], None]) -> Refinement:
    """Half maps from the poses that were matched, then local rounds of refinement against them until the poses have settled;
    in one frame."""
    def show_round(done: float, label: str) -> None:
        show(done)

    def again(poses: PoseHypotheses, last: Refinement) -> Refinement:
        return reconstruct(sets, poses, last.pair.noise_spectrum, next_radius_px(last.pair, plan.max_radius_px), show_round,
                           last.contrast)

    rebuilt = again(matched.poses, matched.images.refinement)
    for _ in range(MAX_LAST_ROUNDS):
        before = rebuilt.poses
        rebuilt = local_round(sets, _masked(sets, rebuilt), next_radius_px(rebuilt.pair, plan.max_radius_px), show_round)
        if is_settled(pose_change_deg(before.best()[0], rebuilt.poses.best()[0]), rebuilt.poses):
            break
    rotation = rotation_between_half_maps(sets, _masked(sets, rebuilt), next_radius_px(rebuilt.pair, plan.max_radius_px))
    logger.info("the half maps were rotated by %.2f degrees against each other: brought into one frame",
                math.degrees(float(rotation.norm())))
    return again(in_one_frame(rebuilt.poses, sets.halves, rotation), rebuilt)


def _shown_as(live: LiveRun, part: str) -> Callable[[float], None]:
    """Shows how much of a part of the stage is done."""
    parts = list(SHARES)
    before, whole = sum(SHARES[name] for name in parts[:parts.index(part)]), sum(SHARES.values())
    return lambda done: live.show((before + SHARES[part] * done) / whole, part)


def _with_poses_of(poses: PoseHypotheses, results: PoseResults, calibration: Calibration, pixel_size_angstrom: float
                   ) -> PoseResults:
    """With the poses of the round after the final matching, and their posterior.

    The posterior is that of the round, too: the matching before it scales the maps to the amplitude of the images, their
    noise with them, and so takes the poses to be too precise (``docs/decisions/0045-pose-errors.md``). The errors were
    calibrated in units of the matching's spreads; those of the round are therefore rescaled to the same median.
    """
    best, information = poses.best_poses(pixel_size_angstrom), poses.information.double()
    deviation = torch.linalg.eigvalsh(information).clamp_min(_MIN_INFORMATION).rsqrt().float()
    before, now = (float(np.median(np.linalg.norm(spread, axis=1))) for spread in (
        results.evidence.local_deviation_rad, deviation.cpu().numpy()))
    logger.info("errors are %.2f times those estimated in the last round, calibrated on %s",
                calibration.model.scale * before / now, calibration.source)
    bingham = bingham_from_information(best.quaternion, information.float() * (now / before) ** 2)
    evidence = replace(results.evidence, local_deviation_rad=deviation.cpu().numpy() * (before / now))
    return replace(results, quaternion=best.quaternion.cpu().numpy(), shift_angstrom=best.shift_angstrom.cpu().numpy(),
                   bingham=bingham.cpu().numpy(), match=replace(results.match, evidence=evidence))
