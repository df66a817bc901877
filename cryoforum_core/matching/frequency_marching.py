"""Several hypotheses of each image, refined at growing resolution until the data decide."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..imaging.projection import FourierVolume
from .refine import RefinedPoses, refine
from .whitened_images import WhitenedImages

# in log-likelihood at a stage's resolution: finer resolution rarely reverses a difference of e^40
HOPELESS_SCORE = 40.0


@dataclass(frozen=True)
class MarchStage:
    """Refine the best ``keep`` hypotheses of each image at radii up to ``max_radius_px``."""

    max_radius_px: float
    keep: int
    iterations: int


def march(images: WhitenedImages, volume: FourierVolume, quaternion: Float[Tensor, "n k 4"],
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
