"""Maps of both states of a set's particles."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.poses import Poses
from ..geometry.rotations import compose
from ..imaging.resolution import resolution_angstrom
from ..mrc import write_map
from ..particles.dataset import Particles
from ..reconstruction.reconstruct import reconstruct_halves
from ..run_directory import RunDirectory
from .labelling import MINOR, ParticleStates

# of each state: more would only take time, the maps are there to be looked at
MAX_IMAGES = 50_000


def state_figures(run: RunDirectory, states: ParticleStates | None, particles: Particles,
                  prepare: Callable[[np.ndarray], tuple[Tensor, Tensor]], group: Float[Tensor, "g 4"], mask_radius_px: float,
                  device: torch.device | str = "cpu") -> dict[str, float | None]:
    """What ``summary.json`` says of the states, and their maps where there are two (``write_state_maps``); nothing where they
    were not looked for."""
    if states is None:
        return {}
    maps = write_state_maps(run, particles, prepare, states, group, mask_radius_px, device) if states.is_found else {}
    return states.summary() | maps


def write_state_maps(run: RunDirectory, particles: Particles, prepare: Callable[[np.ndarray], tuple[Tensor, Tensor]],
                     states: ParticleStates, group: Float[Tensor, "g 4"], mask_radius_px: float,
                     device: torch.device | str = "cpu") -> dict[str, float]:
    """map_state1.mrc and map_state2.mrc; their resolutions, for ``summary.json``.

    ``particles``: with their poses. No symmetry is imposed on the minor state, whose particles are in the equivalent pose at
    which they are in it. ``prepare`` as for ``reconstruct_halves``, at the particles' own box.
    """
    minor = np.zeros(len(states.rows), bool)
    minor[states.places(MINOR)] = True
    identity = group[:1]
    rotated = _at_equivalent_poses(particles, states, group)
    found = {}
    for path, name, some, poses, elements in ((run.map_state1, "major", ~minor, particles, group),
                                              (run.map_state2, "minor", minor, rotated, identity)):
        rows, half = states.rows[some], states.half[some]
        if len(rows) > MAX_IMAGES:
            chosen = np.sort(np.random.default_rng(0).choice(len(rows), MAX_IMAGES, replace=False))
            rows, half = rows[chosen], half[chosen]
        halves = np.zeros(len(particles), np.int64)
        halves[rows] = 1 + half
        box = particles.box_size_px
        maps = reconstruct_halves(poses, prepare, halves, elements, box / 2 - 1, mask_radius_px, device=device)
        write_map(path, maps.both.cpu().numpy(), particles.pixel_size_angstrom)
        found[f"{name}_state_resolution_angstrom"] = resolution_angstrom(maps.fsc, box, particles.pixel_size_angstrom)
    return found


def _at_equivalent_poses(particles: Particles, states: ParticleStates, group: Float[Tensor, "g 4"]) -> Particles:
    element = torch.zeros(len(particles), dtype=torch.long)
    element[torch.from_numpy(states.rows)] = torch.from_numpy(states.element)
    quaternion = particles.poses.quaternion
    turned = compose(quaternion, group.to(quaternion)[element.to(quaternion.device)])
    return replace(particles, poses=Poses(turned, particles.poses.shift_angstrom))
