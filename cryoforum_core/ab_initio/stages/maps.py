"""The last stage: maps from all particles at their final poses, and the run's files."""

from dataclasses import replace

import torch

from ...imaging.resolution import resolution_angstrom
from ...model.checkpoint import REFERENCE
from ...mrc import write_map
from ...particles.dataset import Particles
from ...reconstruction.reconstruct import HalfMaps, reconstruct_halves, write_half_maps
from ...results.pose_results import PoseResults
from ...results.write import poses_of, write_results
from ...run_directory import RunDirectory
from ...states.maps import state_figures
from ..half_map_pair import HalfMapPair
from ..half_sets import HalfSets
from ..live_run import LiveRun
from ..matching_to_half_maps import write_final_gallery
from ..other_molecule import other_molecule_figures
from ..plan import AbInitioPlan
from .final_matching import FinalOutcome


def write_maps_and_results(plan: AbInitioPlan, run: RunDirectory, half_sets: HalfSets, final: FinalOutcome,
                           has_network: bool, live: LiveRun) -> tuple[HalfMaps, dict]:
    """Particles, maps, their FSC, and where there are any, maps of both states and of another molecule, the network's reference
    map and the calibration. Returns the maps, and what the summary says of states and of another molecule."""
    maps = _final_maps(plan, half_sets, final.results)
    write_half_maps(run, maps, plan.particles.pixel_size_angstrom)
    write_results(run, plan.particles, final.results, {"rlnRandomSubset": half_sets.halves.astype(int)})
    live.map(maps.both, plan.particles.pixel_size_angstrom, {"half maps": maps.fsc},
             resolution_angstrom(maps.fsc, plan.particles.box_size_px, plan.particles.pixel_size_angstrom))
    if has_network:
        _write_reference(plan, run, final.pair.masked_beyond(half_sets.common_radius_px))
    if final.calibration is not None:
        final.calibration.write(run)
        write_final_gallery(plan, half_sets, final.pair, run.gallery, final.results)
    figures = state_figures(run, final.states, _posed(plan, final.results), plan.images.transforms, plan.group,
                            plan.mask_radius_px, plan.device)
    return maps, figures | other_molecule_figures(plan.images, maps.both, final.results, run, plan.config.seed,
                                                  plan.mask_radius_px / plan.particles.box_size_px)


def _posed(plan: AbInitioPlan, results: PoseResults) -> Particles:
    return replace(plan.particles, poses=poses_of(results, torch.float32))


def _final_maps(plan: AbInitioPlan, half_sets: HalfSets, results: PoseResults) -> HalfMaps:
    """At the particles' own box."""
    particles = _posed(plan, results)
    return reconstruct_halves(particles, plan.images.transforms, half_sets.halves, plan.group, plan.max_radius_px,
                              plan.mask_radius_px, device=plan.device)


def _write_reference(plan: AbInitioPlan, run: RunDirectory, pair: HalfMapPair) -> None:
    """The map that further particles are matched to, in place of that of the network's labels, which is older."""
    volume = pair.mean_reference
    write_map(run.checkpoint / REFERENCE, volume.cpu().numpy(), plan.extent_angstrom / len(volume))
