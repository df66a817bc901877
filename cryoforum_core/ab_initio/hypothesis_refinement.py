"""Refinement of pose hypotheses against a map."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..geometry.pose_hypotheses import N_HYPOTHESES, PoseHypotheses
from ..matching.matching_model import MatchingModel
from ..matching.refine import RefinedPoses, refine
from ..matching.whitened_images import WhitenedImages
from ..uncertainty.match_posterior import match_posterior, rotation_information

# a hypothesis is dropped when its log-likelihood is that much below the best: wrong poses were ahead by 7 at most
KEPT_WITHIN_SCORE = 15.0
# Gauss-Newton steps of a round; the next round goes on from there
_REFINE_ITERATIONS = 3


def store_hypotheses(poses: PoseHypotheses, rows: Int[Tensor, " n"], found: RefinedPoses, scale: float,
                     group: Float[Tensor, "g 4"]) -> None:
    """Puts found hypotheses, best first with fields (n, k, ...), into ``rows`` of ``poses``, in place; their
    displacements are in units of ``scale`` px."""
    found = found[:, :N_HYPOTHESES]
    k = found.score.shape[1]
    weight = match_posterior(found, group).weight
    dropped = (weight <= 0) | (found.score < found.score[:, :1] - KEPT_WITHIN_SCORE)
    poses.score[rows] = -torch.inf
    poses.weight[rows] = 0
    poses.quaternion[rows, :k], poses.displacement_px[rows, :k] = found.quaternion, found.displacement_px * scale
    poses.score[rows, :k] = found.score.masked_fill(dropped, -torch.inf)
    poses.weight[rows, :k] = weight
    poses.information[rows] = rotation_information(found.information[:, 0])


def refine_hypotheses(images: WhitenedImages, model: MatchingModel, quaternion: Float[Tensor, "n k 4"],
                      displacement_px: Float[Tensor, "n k 2"], score: Float[Tensor, "n k"]) -> RefinedPoses:
    """Refines the hypotheses that are not dropped; best first."""
    n, k = score.shape
    image, hypothesis = torch.nonzero(torch.isfinite(score), as_tuple=True)
    refined = refine(images[image], model.volume, quaternion[image, hypothesis], displacement_px[image, hypothesis],
                     _REFINE_ITERATIONS, model.max_displacement_px)
    found = RefinedPoses(quaternion.clone(), displacement_px.clone(), torch.full_like(score, -torch.inf),
                         refined.information.new_zeros(n, k, 5, 5))
    for name in ("quaternion", "displacement_px", "score", "information"):
        getattr(found, name)[image, hypothesis] = getattr(refined, name)
    order = found.score.argsort(dim=1, descending=True, stable=True)
    return found[torch.arange(n, device=order.device)[:, None], order]
