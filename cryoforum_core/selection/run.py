"""A selection from a finished run: read and checked first, then made and written."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ..config import SelectConfig
from ..errors import InputError
from ..junk.rejection import ImageLabels
from ..particles.table import ParticleTable
from ..problems import Problems
from ..results.pose_results import PoseResults
from ..run_directory import RunDirectory
from .by_map import MapSelectionSetup, map_selection_setup, select_by_map, write_auto_selection
from .measures import measures_of
from .selection import Selection, ranking_measures, select, write_selection


@dataclass(frozen=True, eq=False)
class SelectionPlan:
    """What is known before anything is written."""

    config: SelectConfig
    table: ParticleTable
    particle_id: Int[np.ndarray, " n"]
    measures: dict[str, Float[np.ndarray, " n"]]
    labels: ImageLabels | None
    suggested: Selection
    """by the measures; what is kept unless the map decides"""
    by_map: MapSelectionSetup | None


def plan_selection(config: SelectConfig, run: RunDirectory, symmetry: str, device: torch.device | None) -> SelectionPlan:
    """From a finished run of predict or ab-initio. Raises one InputError with all problems."""
    if not run.orientation_posterior.is_file():
        raise InputError(f"select needs the posterior of the orientations; {run.path} has no "
                         f"{run.orientation_posterior.name} (its poses are not from a network or matching). "
                         "Run predict with its network.")
    problems = Problems()
    results = PoseResults.load(run.orientation_posterior)
    measures, labels = measures_of(results), ImageLabels.of(results, symmetry)
    labels = labels and labels.rejecting(config.reasons)
    table = problems.attempt(ParticleTable.read, run.particles)
    by_map, suggested = None, problems.attempt(lambda: select(
        measures, config.measure, keep_fraction=config.keep_fraction, keep_count=config.keep_count,
        threshold=config.threshold, max_error_deg=config.max_error_deg, labels=labels, protect_views=config.protect_views))
    if config.auto and suggested is not None and device is not None:
        by_map = problems.attempt(map_selection_setup, run, symmetry, suggested, ranking_measures(measures, labels),
                                  results.particle_id, config.seed, device)
    problems.raise_if_any()
    return SelectionPlan(config, table, results.particle_id, measures, labels, suggested, by_map)


def run_selection(plan: SelectionPlan, run: RunDirectory) -> dict:
    """Writes selected.star, rejected.star and recentre.star; returns the summary."""
    selection, summary = plan.suggested, {}
    if plan.by_map is not None:
        selection, found = select_by_map(selection, ranking_measures(plan.measures, plan.labels), plan.by_map,
                                         plan.config.seed, plan.labels, plan.config.protect_views)
        write_auto_selection(found, run)
        summary = {"auto": found.summary()}
    write_selection(selection, plan.measures, plan.particle_id, plan.table, run, plan.labels)
    return selection.summary() | summary
