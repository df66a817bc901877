"""The last stage: maps from all particles at their final poses, and the run's files."""

from dataclasses import replace

import torch

from ..geometry.poses import Poses
from ..imaging.resolution import resolution_angstrom
from ..model.checkpoint import REFERENCE
from ..mrc import write_map
from ..reconstruction.reconstruct import HalfMaps, reconstruct_halves, write_half_maps
from ..run_directory import RunDirectory
from .convergence import COMMON_RADIUS_PX
from .final_matching import write_final_gallery
from .final_matching_stage import FinalOutcome
from .half_maps import HalfMapPair
from .half_sets import HalfSets
from .live import LiveRun
from .particle_arrays import Arrays, write
from .plan import AbInitioPlan


def write_results(plan: AbInitioPlan, run: RunDirectory, half_sets: HalfSets, final: FinalOutcome, has_network: bool,
                  live: LiveRun) -> HalfMaps:
    """Particles, maps, their FSC, and where there are any, the network's reference map and the calibration."""
    maps = _final_maps(plan, half_sets, final.arrays)
    write_half_maps(run, maps, plan.particles.pixel_size_angstrom)
    write(run, plan, final.arrays, half_sets.halves)
    live.map(maps.both, plan.particles.pixel_size_angstrom, {"half maps": maps.fsc},
             resolution_angstrom(maps.fsc, plan.particles.box_size_px, plan.particles.pixel_size_angstrom))
    if has_network:
        _write_reference(plan, run, final.pair)
    if final.calibration is not None:
        final.calibration.write(run)
        write_final_gallery(plan, half_sets, final.pair, run.gallery, final.arrays)
    return maps


def _final_maps(plan: AbInitioPlan, half_sets: HalfSets, arrays: Arrays) -> HalfMaps:
    """At the particles' own box."""
    poses = Poses(torch.from_numpy(arrays["quaternion"]).float(), torch.from_numpy(arrays["shift_angstrom"]).float())
    return reconstruct_halves(replace(plan.particles, poses=poses), plan.images.transforms, half_sets.halves, plan.group,
                              plan.max_radius_px, plan.mask_radius_px, device=plan.device)


def _write_reference(plan: AbInitioPlan, run: RunDirectory, pair: HalfMapPair) -> None:
    """The map that further particles are matched to, in place of that of the network's labels, which is older."""
    volume = pair.masked_beyond(COMMON_RADIUS_PX).mean_reference
    write_map(run.checkpoint / REFERENCE, volume.cpu().numpy(), plan.extent_angstrom / len(volume))
