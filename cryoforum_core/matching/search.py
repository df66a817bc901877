"""Exhaustive search over SO(3) x shifts at low resolution, and several hypotheses refined until the data decide."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ..geometry.rotations import angular_distance_rad
from ..imaging.projection import FourierVolume, slice_points
from .likelihood import MatchingImages
from .refine import RefinedPoses, refine

# distance of the displacements tried along x and y, as a fraction of the shortest wavelength: none is further than half of
# it from the nearest, where the phase is off by 56 degrees
DISPLACEMENT_STEP_OF_WAVE = 0.31
# in log-likelihood at a stage's resolution: finer resolution rarely reverses a difference of e^40
HOPELESS_SCORE = 40.0


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


def score_grid(images: MatchingImages, references: GridReferences, displacement_px: Float[Tensor, "t 2"]
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
class MarchStage:
    """Refine the best ``keep`` hypotheses of each image at radii up to ``max_radius_px``."""

    max_radius_px: float
    keep: int
    iterations: int


def march(images: MatchingImages, volume: FourierVolume, quaternion: Float[Tensor, "n k 4"],
          displacement_px: Float[Tensor, "n k 2"], stages: list[MarchStage], max_displacement_px: float,
          chunk_values: int = 1_000_000) -> RefinedPoses:
    """Refines hypotheses (n, K, 4), (n, K, 2) at growing resolution; after each stage the best go on.

    Returns those of the last stage, best first: every field has leading shape (n, keep). A hypothesis that a stage left
    ``HOPELESS_SCORE`` behind its image's best is not refined further; its score is -inf.
    """
    n, hypotheses = quaternion.shape[:2]
    image = torch.arange(n, device=quaternion.device).repeat_interleave(hypotheses)
    result, alive = None, torch.ones(n * hypotheses, dtype=torch.bool, device=quaternion.device)
    for stage in stages:
        limited = images.up_to(stage.max_radius_px)
        rows = torch.nonzero(alive)[:, 0]
        chunk = max(1, chunk_values // len(limited.radius))
        starts = quaternion.flatten(0, 1), displacement_px.flatten(0, 1)
        parts = [refine(limited[image[some]], volume, starts[0][some], starts[1][some], stage.iterations,
                        max_displacement_px) for some in rows.split(chunk)]
        refined = _scatter(RefinedPoses.concatenate(parts), rows, *starts)
        order = refined.score.reshape(n, hypotheses).argsort(dim=1, descending=True)[:, :stage.keep]
        result = refined[order + hypotheses * torch.arange(n, device=order.device)[:, None]]
        quaternion, displacement_px, hypotheses = result.quaternion, result.displacement_px, result.score.shape[1]
        image = torch.arange(n, device=rows.device).repeat_interleave(hypotheses)
        alive = (result.score >= result.score[:, :1] - HOPELESS_SCORE).flatten()
    return result


def _scatter(refined: RefinedPoses, rows: Tensor, quaternion: Tensor, displacement_px: Tensor) -> RefinedPoses:
    """Refined poses of some ``rows`` among all (N, 4), (N, 2); the others stay where they are, with score -inf."""
    score = refined.score.new_full((len(quaternion),), -torch.inf)
    information = refined.information.new_zeros(len(quaternion), 5, 5)
    return RefinedPoses(quaternion.index_copy(0, rows, refined.quaternion),
                        displacement_px.index_copy(0, rows, refined.displacement_px),
                        score.index_copy(0, rows, refined.score), information.index_copy(0, rows, refined.information))
