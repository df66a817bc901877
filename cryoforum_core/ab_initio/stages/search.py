"""The first stage: maps from random starts, of which the one that explains held-out images best is kept.

With a point group, starts that have it from the beginning follow where the map that was searched in c1 is not confirmed by
held-out images, or lacks the symmetry: near-spherical molecules are not found in c1.
"""

import logging
import math
from dataclasses import dataclass, replace
from functools import partial

from jaxtyping import Float
from torch import Tensor

from ...imaging.symmetry_frame import NO_SYMMETRY_BELOW
from ...matching.stochastic import StochasticSearch, StochasticSettings
from ..final_frame import into_final_frame, with_hand_of_reference
from ..half_sets import COMMON_RADIUS_PX
from ..live_run import LiveRun
from ..plan import AbInitioPlan
from ..random_starts import (
    FIRST_RADII_UNDER_SYMMETRY_PX,
    FIRST_RADIUS_PX,
    LAST_RADIUS_PX,
    LAST_RADIUS_UNDER_SYMMETRY_PX,
    SearchImages,
    SearchResult,
    agreement_deg,
    assess,
    run_search,
    search_settings,
)
from ..symmetry_choice import IMPOSED, SymmetryChoice, choose, known, suffices, symmetrised
from .store import StageStore

logger = logging.getLogger("cryoforum")

# further starts, where the first ones found nothing
MAX_STARTS = 4
# of the steps of a search in c1: an image at all its equivalent poses tells more of the map, and a step takes twice the time
STEPS_UNDER_SYMMETRY = 0.5
# finest frequency of the map from which both half sets start, where the group was imposed from the start: coarser shells may
# hold no orientations
COMMON_RADIUS_UNDER_SYMMETRY_PX = 12.0


@dataclass(frozen=True)
class SearchOutcome:
    """The chosen map, in its final frame, and the figures of all starts; plain tensors and values."""

    volume: Float[Tensor, "b b b"]
    found_structure: bool
    structure: float
    """Mean log-evidence of a held-out image over that of the map's spherical average"""
    structure_error: float
    """Its standard error"""
    starts: list[dict]
    agreement_deg: float | None
    """Median angle between held-out poses of the chosen start and of the one nearest to it; None for a single start"""
    symmetry_score: float | None
    """Of a map searched in c1; None for one that had the group from the start"""
    hand: str
    common_radius_px: float = COMMON_RADIUS_PX
    """Finest frequency, in cycles per box, of the map from which both half sets start"""
    symmetry_choice: dict | None = None
    """Summary of the ``SymmetryChoice``; None for c1"""


def search(plan: AbInitioPlan, store: StageStore, live: LiveRun) -> SearchOutcome:
    """All starts, and the best of them in the final frame."""
    return SearchOutcome(**store.kept("search", lambda: vars(_search(plan, store, live))))


def _search(plan: AbInitioPlan, store: StageStore, live: LiveRun) -> SearchOutcome:
    starts = _Starts(plan, store, live, SearchImages.prepare(plan.images, plan.config.seed,
                                                             min(LAST_RADIUS_PX, plan.max_radius_px)))
    has_group = len(plan.group) > 1
    results = starts.run(most=plan.config.seeds if has_group else MAX_STARTS)
    found = _outcome(plan, results)
    return _with_group(plan, starts, results, found) if has_group else found


@dataclass(frozen=True)
class _Starts:
    """Runs searches on the same images."""

    plan: AbInitioPlan
    store: StageStore
    live: LiveRun
    images: SearchImages

    def run(self, most: int, group: Float[Tensor, "g 4"] | None = None, n_before: int = 0) -> list[SearchResult]:
        """At least as many starts as were asked for, and up to ``most`` until one is settled; ``n_before`` were made."""
        config, results = self.plan.config, []
        # under a group at least one from each first radius
        n_wanted = config.seeds if group is None else max(config.seeds, len(FIRST_RADII_UNDER_SYMMETRY_PX))
        while _needs_another(results, n_wanted, most):
            number = n_before + len(results)
            seed = config.seed + number
            settings = self.settings() if group is None else self.settings(
                FIRST_RADII_UNDER_SYMMETRY_PX[len(results) % len(FIRST_RADII_UNDER_SYMMETRY_PX)], STEPS_UNDER_SYMMETRY)
            show = partial(_show, self.live, self.images, settings.steps, seed, number, n_before + config.seeds)
            results.append(run_search(self.images, settings, seed, self.store.path(f"search_{seed}_state"),
                                      self.store.is_resuming, show, group))
            _log(results[-1])
        return results

    def settings(self, first_radius_px: float = FIRST_RADIUS_PX, of_the_steps: float = 1.0) -> StochasticSettings:
        box = self.plan.particles.box_size_px
        return search_settings(self.images, math.ceil(of_the_steps * self.plan.config.search_steps),
                               self.plan.mask_radius_px / box, self.plan.max_displacement_px / box, first_radius_px)


def _log(result: SearchResult) -> None:
    logger.info("start %d%s: held-out log-evidence %.2f nats per image, %.2f +- %.2f more than that of a spherical map; "
                "%s of the fine details explained", result.seed,
                " with the symmetry from the start" if result.is_symmetrised else "", result.score, result.structure,
                result.structure_error, "unknown part" if math.isnan(result.explained_fraction) else
                f"{100 * result.explained_fraction:.0f} %")


def _with_group(plan: AbInitioPlan, starts: _Starts, in_c1: list[SearchResult], found: SearchOutcome) -> SearchOutcome:
    """What was found in c1, or the map of a search that had the group from the start if held-out images prefer that."""
    best, score = max(in_c1, key=lambda result: result.score), found.symmetry_score
    if suffices(best, score):
        choice = SymmetryChoice(IMPOSED, score, best.explained_fraction)
        logger.info(choice.sentence())
        return replace(found, starts=_rows(in_c1, best, {}), symmetry_choice=choice.summary())
    finer = replace(starts, images=SearchImages.prepare(
        plan.images, plan.config.seed, min(LAST_RADIUS_UNDER_SYMMETRY_PX, plan.max_radius_px)))
    symmetric = finer.run(MAX_STARTS, plan.group, len(in_c1))
    settings = finer.settings()
    imposed = symmetrised(found.volume, plan.group) if score >= NO_SYMMETRY_BELOW else None
    best_symmetric = max(symmetric, key=lambda result: result.score)
    choice = choose(score, assess(finer.images, best.volume, settings, best.seed).with_measurable_signal(starts.images),
                    None if imposed is None else assess(finer.images, imposed, settings, best.seed), best_symmetric)
    logger.info(choice.sentence())
    if not choice.is_from_the_start:
        return replace(found, starts=[*found.starts, *_rows(symmetric, None, {})], symmetry_choice=choice.summary())
    angles = agreement_deg(symmetric, plan.group)
    volume, hand = with_hand_of_reference(best_symmetric.volume, plan.hand_reference, COMMON_RADIUS_UNDER_SYMMETRY_PX)
    return SearchOutcome(volume, best_symmetric.found_structure, best_symmetric.structure, best_symmetric.structure_error,
                         [*_rows(symmetric, best_symmetric, angles), *_rows(in_c1, None, {})],
                         min(angles.values()) if angles else None, None, hand, COMMON_RADIUS_UNDER_SYMMETRY_PX,
                         choice.summary())


def _needs_another(results: list[SearchResult], n_wanted: int, most: int) -> bool:
    if len(results) < n_wanted:
        return True
    return len(results) < max(most, n_wanted) and not any(result.is_settled for result in results)


def _outcome(plan: AbInitioPlan, results: list[SearchResult]) -> SearchOutcome:
    best = max(results, key=lambda result: result.score)
    framed = into_final_frame(best.volume, plan.group,
                              plan.mask_radius_px * len(best.volume) / plan.particles.box_size_px, plan.hand_reference,
                              plan.config.seed)
    angles = agreement_deg(results, framed.group_before(plan.group))
    starts = _rows(results, best, {best.seed: 0.0} | angles)
    return SearchOutcome(framed.volume, best.found_structure, best.structure, best.structure_error, starts,
                         min(angles.values()) if angles else None, framed.symmetry_score, framed.hand)


def _rows(results: list[SearchResult], chosen: SearchResult | None, angles: dict[int, float]) -> list[dict]:
    """Of the summary's table of starts; ``angles`` (degrees) to the chosen start, None where there is none."""
    return [{"seed": result.seed, "score": result.score, "structure": result.structure,
             "explained": known(result.explained_fraction),
             "angle_to_best_deg": 0.0 if result is chosen else angles.get(result.seed),
             "chosen": result is chosen, **({"symmetry_from_the_start": True} if result.is_symmetrised else {})}
            for result in results]


def _show(live: LiveRun, images: SearchImages, n_steps: int, seed: int, number: int, n_seeds: int,
          stochastic: StochasticSearch, log_evidence: float) -> None:
    live.map(stochastic.volume(), images.pixel_size_angstrom)
    done = (number + stochastic.step_number / n_steps) / max(n_seeds, number + 1)
    live.show(done, f"random start {seed}, step {stochastic.step_number} of {n_steps}", log_evidence)
