"""Exhaustive search over SO(3) x shifts: from the scores of a grid at low resolution to refined poses."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ..geometry.rotations import angular_distance_rad, compose
from ..geometry.so3_grid import n_rotations_for_step, super_fibonacci
from ..imaging.projection import FourierVolume, slice_points
from .matching_model import MatchingModel
from .refine import RefinedPoses
from .whitened_images import WhitenedImages

# distance of the displacements tried along x and y, as a fraction of the shortest wavelength: none is further than half of
# it from the nearest, where the phase is off by 56 degrees
DISPLACEMENT_STEP_OF_WAVE = 0.31
# Step of the grid of rotations.
SEARCH_STEP_DEG = 7.5
# Radius of the exhaustive search in cycles per box: rotations of some 4 degrees, the distance to the nearest node of that
# grid, displace the outermost features of a particle that fills two thirds of its box by one pixel there.
SEARCH_RADIUS_PX = 10.0
# Hypotheses of an image that are refined.
N_HYPOTHESES = 16
# The fine search. Of the 70S ribosome's poses at SNR 0.05 that the search above leaves wrong, one at radius 12 finds 90 %
# (6 degrees, 64 hypotheses), at radius 14 98 % (7.5 degrees) and 99 % (5 degrees, in twice the time).
FINE_SEARCH_RADIUS_PX = 14.0
# as measured above
FINE_SEARCH_STEP_DEG = 7.5
# as measured above
N_FINE_HYPOTHESES = 64


def displacement_grid(max_displacement_px: float, step_px: float) -> Float[Tensor, "t 2"]:
    """Displacements (T, 2) on a square lattice within a disc, (0, 0) included."""
    reach = int(max_displacement_px / step_px)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32) * step_px
    grid = torch.cartesian_prod(axis, axis)
    return grid[grid.norm(dim=-1) <= max_displacement_px + 1e-6]


@dataclass(frozen=True)
class GridReferences:
    """Slices of a map at the rotations of a grid, as two matrices ready for matrix products.

    ``parts`` (2m, R): real above imaginary parts; ``power`` (m, R); ``quaternion`` (R, 4).
    """

    quaternion: Float[Tensor, "r 4"]
    parts: Float[Tensor, "parts r"]
    power: Float[Tensor, "m r"]

    @classmethod
    def build(cls, volume: FourierVolume, quaternion: Float[Tensor, "r 4"], k: Float[Tensor, "m 2"], chunk: int = 4096
              ) -> "GridReferences":
        """Slices at pixels ``k`` (m, 2) for rotations (R, 4)."""
        m = len(k)
        parts = torch.empty(2 * m, len(quaternion), device=quaternion.device)
        for start in range(0, len(quaternion), chunk):
            slices = volume.sample(slice_points(quaternion[start:start + chunk], k)).T
            parts[:m, start:start + chunk], parts[m:, start:start + chunk] = slices.real, slices.imag
        return cls(quaternion, parts, parts[:m].square() + parts[m:].square())


def score_grid(images: WhitenedImages, references: GridReferences, displacement_px: Float[Tensor, "t 2"]
               ) -> tuple[Float[Tensor, "n r"], Integer[Tensor, "n r"]]:
    """Best log-likelihood ratio over displacements (T, 2) for each image and rotation (n, R), and its index (n, R)."""
    cross_data = images.transfer * images.data
    norm = images.transfer.square() @ references.power
    best = torch.full_like(norm, -torch.inf)
    which = torch.zeros(norm.shape, dtype=torch.uint8 if len(displacement_px) < 256 else torch.int32,
                        device=norm.device)
    for t, phase in enumerate(images.displacement_phase(displacement_px)):
        centred = cross_data * phase.conj()
        score = torch.addmm(norm, torch.cat([centred.real, centred.imag], dim=-1), references.parts,
                            beta=-1.0, alpha=2.0)
        which.masked_fill_(score > best, t)
        torch.maximum(best, score, out=best)
    return best, which


def distinct_best(score: Float[Tensor, "n r"], quaternion: Float[Tensor, "r 4"], count: int, separation_rad: float,
                  pool: int = 256) -> Int[Tensor, "n {count}"]:
    """Indices (n, count) of the best rotations that are at least ``separation_rad`` from each other.

    ``score`` (n, R), ``quaternion`` (R, 4). Greedy, among the ``pool`` best of each image; where the pool has fewer
    distinct ones, the best one is repeated.
    """
    top_score, top = score.topk(min(pool, score.shape[1]), dim=1)
    candidates = quaternion[top]
    rows = torch.arange(len(score), device=score.device)
    chosen = torch.empty(len(score), count, dtype=torch.long, device=score.device)
    remaining = top_score.clone()
    for slot in range(count):
        value, place = remaining.max(dim=1)
        place = torch.where(torch.isfinite(value), place, 0)
        chosen[:, slot] = top[rows, place]
        near = angular_distance_rad(candidates, candidates[rows, place][:, None]) < separation_rad
        remaining = remaining.masked_fill(near, -torch.inf)
    return chosen


@dataclass(frozen=True)
class SearchGrid:
    """The references of an exhaustive search, made once and used for every batch."""

    model: MatchingModel
    references: GridReferences
    radius_px: float
    displacement_px: Float[Tensor, "t 2"]
    separation_rad: float

    @classmethod
    def build(cls, model: MatchingModel, step_deg: float = SEARCH_STEP_DEG,
              radius_px: float = SEARCH_RADIUS_PX) -> "SearchGrid":
        """Rotations ``step_deg`` apart over the asymmetric unit, displacements a third of the finest wave apart."""
        device = model.volume.data.device
        radius_px = min(radius_px, model.max_radius_px)
        grid = asymmetric_unit(super_fibonacci(n_rotations_for_step(step_deg)).to(device), model.group)
        box_size_px = model.volume.box_size_px
        pixels = WhitenedImages.from_transforms(
            torch.zeros(1, box_size_px, box_size_px // 2 + 1, dtype=torch.complex64, device=device),
            torch.zeros(1, box_size_px, box_size_px // 2 + 1, device=device), model.noise_spectrum, radius_px)
        step_px = DISPLACEMENT_STEP_OF_WAVE * box_size_px / radius_px
        displacement = displacement_grid(model.max_displacement_px, step_px).to(device)
        return cls(model, GridReferences.build(model.volume, grid, pixels.k), radius_px, displacement,
                   float(torch.deg2rad(torch.tensor(1.4 * step_deg))))

    def search(self, images: WhitenedImages, n_hypotheses: int = N_HYPOTHESES, keep: int = 2,
               chunk: int = 64) -> RefinedPoses:
        """The best poses anywhere: hypotheses from the grid, refined; best first, fields (n, keep, ...)."""
        low = images.up_to(self.radius_px)
        quaternion, displacement = [], []
        for rows in torch.arange(len(images)).split(chunk):
            score, which = score_grid(low[rows], self.references, self.displacement_px)
            best = distinct_best(score, self.references.quaternion, n_hypotheses, self.separation_rad)
            quaternion.append(self.references.quaternion[best])
            displacement.append(self.displacement_px[which.gather(1, best).long()])
        return self.model.refine_from(images, torch.cat(quaternion), torch.cat(displacement),
                                      1.2 * self.radius_px, keep)


def asymmetric_unit(grid: Float[Tensor, "n 4"], group: Float[Tensor, "g 4"]) -> Float[Tensor, "kept 4"]:
    """The rotations (r, 4) of a grid (R, 4) that are nearer to the identity than their equivalents q g."""
    if len(group) == 1:
        return grid
    nearness = torch.stack([compose(grid, element)[:, 3].abs() for element in group.to(grid)])
    return grid[nearness[0] >= nearness.amax(dim=0) - 1e-6]
