"""Map, half maps and FSC from particles with poses, by direct Fourier inversion."""

import csv
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..config import ReconstructConfig
from ..errors import InputError
from ..geometry.rotations import compose
from ..imaging.fourier import shift_phase
from ..imaging.masks import soft_sphere
from ..imaging.projection import Reconstructor
from ..imaging.resolution import fourier_shell_correlation, resolution_angstrom
from ..mrc import write_map
from ..particles.dataset import Particles
from ..progress import Progress
from ..run_directory import RunDirectory, atomic_path

logger = logging.getLogger("cryoforum")

# images in memory at once
BATCH_IMAGES = 256
# Wiener constant, as a fraction of the mean weight of a shell: it only guards empty voxels
WIENER = 1e-3


@dataclass(frozen=True)
class HalfMaps:
    """Maps of the two half sets and of both, and the FSC of the masked half maps."""

    first: Float[Tensor, "d d d"]
    second: Float[Tensor, "d d d"]
    both: Float[Tensor, "d d d"]
    fsc: Float[Tensor, " d//2+1"]


def half_sets(particles: Particles, seed: int) -> tuple[Int[np.ndarray, " n"], str]:
    """Half-set numbers of 1 and 2: the particles' own (rlnRandomSubset), else drawn; and where they are from."""
    if particles.half_set is not None and set(np.unique(particles.half_set)) == {1, 2}:
        return particles.half_set, "rlnRandomSubset"
    if len(particles) < 2:
        raise InputError(f"Half maps need at least two particles; there is {len(particles)}. Give more particles.")
    halves = np.arange(len(particles)) % 2 + 1
    return np.random.default_rng(seed).permutation(halves), "drawn at random"


def reconstruct_halves(particles: Particles, prepare: Callable[[np.ndarray], tuple[Tensor, Tensor]],
                       halves: Int[np.ndarray, " n"], group: Float[Tensor, "g 4"], max_radius_px: float,
                       mask_radius_px: float, weights: Float[np.ndarray, " n"] | None = None,
                       device: torch.device | str = "cpu") -> HalfMaps:
    """Inserts every image at its pose, and at the poses that the symmetry makes equivalent.

    ``prepare``: rows (n,) -> transforms and CTFs (n, B, B // 2 + 1) on ``device``. ``weights``: how much each
    particle counts.
    """
    box = particles.box_size_px
    parts = {half: Reconstructor(box, max_radius_px=max_radius_px, device=device) for half in (1, 2)}
    with Progress(len(particles), "reconstruct") as progress:
        for half, reconstructor in parts.items():
            rows_of_half = np.flatnonzero(halves == half)
            for rows in np.array_split(rows_of_half, max(1, -(-len(rows_of_half) // BATCH_IMAGES))):
                insert_particles(reconstructor, particles, rows, prepare, group, weights, device)
                progress.update(len(rows))
    first, second = (reconstructor.volume(WIENER) for reconstructor in parts.values())
    parts[1].sums += parts[2].sums
    mask = soft_sphere(box, mask_radius_px, 0.05 * box, device)
    fsc = fourier_shell_correlation(first * mask, second * mask)
    return HalfMaps(first, second, parts[1].volume(WIENER), fsc)


def insert_particles(reconstructor: Reconstructor, particles: Particles, rows: Int[np.ndarray, " m"],
                     prepare: Callable[[np.ndarray], tuple[Tensor, Tensor]], group: Float[Tensor, "g 4"],
                     weights: Float[np.ndarray, " n"] | None = None, device: torch.device | str = "cpu") -> None:
    """Inserts the particles ``rows`` at their poses; arguments as those of ``reconstruct_halves``.

    The box of the images from ``prepare`` may be smaller than the particles', with the same field of view.
    """
    if not len(rows):
        return
    images_ft, ctf = prepare(rows)
    poses = particles.poses[torch.from_numpy(rows)].to(device)
    box = images_ft.shape[-2]
    pixel_size_angstrom = particles.pixel_size_angstrom * particles.box_size_px / box
    # the origin offset is minus the displacement: shifting by it centres the particle
    centred = images_ft * shift_phase(poses.shift_angstrom / pixel_size_angstrom, box)
    weight = None if weights is None else torch.from_numpy(weights[rows]).to(centred.device, torch.float32)
    for element in group.to(poses.quaternion):
        reconstructor.insert(centred, ctf, compose(poses.quaternion, element), weight)


def reconstruct(config: ReconstructConfig, run: RunDirectory, particles: Particles,
                prepare: Callable[[np.ndarray], tuple[Tensor, Tensor]], group: Float[Tensor, "g 4"],
                device: torch.device | str = "cpu") -> dict:
    """Writes map.mrc, map_half1.mrc, map_half2.mrc and fsc.csv; returns the summary."""
    box, pixel_size_angstrom = particles.box_size_px, particles.pixel_size_angstrom
    halves, source = half_sets(particles, config.seed)
    max_radius_px = box / 2 - 1
    if config.max_resolution_angstrom is not None:
        max_radius_px = min(max_radius_px, box * pixel_size_angstrom / config.max_resolution_angstrom)
    mask_radius_px = 0.45 * box if config.mask_radius_angstrom is None else (
        config.mask_radius_angstrom / pixel_size_angstrom)
    weights = None if config.weight_by is None else particles.table.floats(config.weight_by)
    maps = reconstruct_halves(particles, prepare, halves, group, max_radius_px, mask_radius_px, weights, device)
    write_half_maps(run, maps, pixel_size_angstrom)
    return {"resolution_angstrom": resolution_angstrom(maps.fsc, box, pixel_size_angstrom),
            "resolution_fsc_05_angstrom": resolution_angstrom(maps.fsc, box, pixel_size_angstrom, 0.5),
            "n_particles": len(particles), "half_sets": source, "box_size_px": box,
            "pixel_size_angstrom": pixel_size_angstrom}


def write_half_maps(run: RunDirectory, maps: HalfMaps, pixel_size_angstrom: float) -> None:
    """map.mrc, map_half1.mrc, map_half2.mrc and fsc.csv."""
    for path, volume in ((run.map, maps.both), (run.map_half1, maps.first), (run.map_half2, maps.second)):
        write_map(path, volume.cpu().numpy(), pixel_size_angstrom)
    write_fsc(run, maps.fsc, len(maps.both), pixel_size_angstrom)


def write_fsc(run: RunDirectory, fsc: Float[Tensor, " shells"], box_size_px: int, pixel_size_angstrom: float) -> None:
    """``fsc.csv``: shell, resolution in Angstrom, correlation of the masked half maps."""
    with atomic_path(run.fsc) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shell", "resolution_angstrom", "fsc"])
        for shell, value in enumerate(fsc.tolist()):
            resolution = box_size_px * pixel_size_angstrom / shell if shell else float("inf")
            writer.writerow([shell, f"{resolution:.4f}", f"{value:.6f}"])
