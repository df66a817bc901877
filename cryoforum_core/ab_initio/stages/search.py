"""The first stage: maps from random starts, of which the one that explains held-out images best is kept."""

import logging
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from ...matching.stochastic import StochasticSearch
from ..final_frame import into_final_frame
from ..live_run import LiveRun
from ..plan import AbInitioPlan
from ..random_starts import (
    LAST_RADIUS_PX,
    SearchImages,
    SearchResult,
    agreement_deg,
    run_search,
    search_settings,
)
from .store import StageStore

logger = logging.getLogger("cryoforum")

# further starts, where the first ones found nothing
MAX_STARTS = 4


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
    hand: str


def search(plan: AbInitioPlan, store: StageStore, live: LiveRun) -> SearchOutcome:
    """All starts, and the best of them in the final frame."""
    return SearchOutcome(**store.kept("search", lambda: vars(_search(plan, store, live))))


def _search(plan: AbInitioPlan, store: StageStore, live: LiveRun) -> SearchOutcome:
    box, config = plan.particles.box_size_px, plan.config
    images = SearchImages.prepare(plan.images, config.seed, min(LAST_RADIUS_PX, plan.max_radius_px))
    settings = search_settings(images, config.search_steps, plan.mask_radius_px / box, plan.max_displacement_px / box)
    results: list[SearchResult] = []
    while _needs_another(results, config.seeds):
        seed = config.seed + len(results)
        show = partial(_show, live, images, settings.steps, seed, len(results), config.seeds)
        result = run_search(images, settings, seed, store.path(f"search_{seed}_state"), store.is_resuming, show)
        logger.info("start %d: held-out log-evidence %.2f nats per image, %.2f +- %.2f more than that of a spherical map; "
                    "%.0f %% of the fine details explained", seed, result.score, result.structure, result.structure_error,
                    100 * result.explained_fraction)
        results.append(result)
    return _outcome(plan, results)


def _needs_another(results: list[SearchResult], n_wanted: int) -> bool:
    if len(results) < n_wanted:
        return True
    return len(results) < max(MAX_STARTS, n_wanted) and not any(result.is_settled for result in results)


def _outcome(plan: AbInitioPlan, results: list[SearchResult]) -> SearchOutcome:
    best = max(results, key=lambda result: result.score)
    framed = into_final_frame(best.volume, plan.group,
                              plan.mask_radius_px * len(best.volume) / plan.particles.box_size_px, plan.hand_reference,
                              plan.config.seed)
    angles = agreement_deg(results, framed.group_before(plan.group))
    starts = [{"seed": result.seed, "score": result.score, "structure": result.structure,
               "explained": result.explained_fraction, "angle_to_best_deg": angles.get(result.seed, 0.0),
               "chosen": result is best} for result in results]
    return SearchOutcome(framed.volume, best.found_structure, best.structure, best.structure_error, starts,
                         min(angles.values()) if angles else None, framed.symmetry_score, framed.hand)


def _show(live: LiveRun, images: SearchImages, n_steps: int, seed: int, number: int, n_seeds: int,
          stochastic: StochasticSearch, log_evidence: float) -> None:
    live.map(stochastic.volume(), images.pixel_size_angstrom)
    done = (number + stochastic.step_number / n_steps) / max(n_seeds, number + 1)
    live.show(done, f"random start {seed}, step {stochastic.step_number} of {n_steps}", log_evidence)
