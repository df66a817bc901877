"""The poses that each particle may have, and their refinement against a map."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.pose_posterior import PosePosterior
from ..geometry.poses import Poses, shift_angstrom
from ..matching.likelihood import MatchingImages
from ..matching.matching_model import MatchingModel
from ..matching.refine import RefinedPoses, refine
from ..uncertainty.match_posterior import match_posterior, rotation_information

# kept for each particle: at a radius of 12 cycles per box one particle in ten of the noisiest sets fits a wrong pose better
# than its own; the details that tell come later (``docs/decisions/README.md``, Ab initio)
N_HYPOTHESES = 4
# a hypothesis is dropped when its log-likelihood is that much below the best: wrong poses were ahead by 7 at most
KEPT_WITHIN_SCORE = 15.0
# Gauss-Newton steps of a round; the next round goes on from there
_REFINE_ITERATIONS = 3


@dataclass(frozen=True)
class PoseHypotheses:
    """What is known of the pose of every particle: K hypotheses, best first, on the job's device.

    ``quaternion`` (N, K, 4); ``displacement_px`` (N, K, 2) in px of the particles' own box; ``score`` (N, K) the
    log-likelihood ratio to an empty image, -inf of those dropped; ``weight`` (N, K) their posterior, which sums to 1;
    ``information`` (N, 3, 3) about the rotation vector (rad, in the molecule's frame) near the best.
    """

    quaternion: Tensor
    displacement_px: Tensor
    score: Tensor
    weight: Tensor
    information: Tensor

    @classmethod
    def of(cls, quaternion: Tensor, displacement_px: Tensor) -> "PoseHypotheses":
        """One pose for each particle, (N, 4) and (N, 2), and nothing known about its error."""
        n = len(quaternion)
        score = quaternion.new_full((n, N_HYPOTHESES), -torch.inf)
        score[:, 0] = 0
        return cls(quaternion[:, None].repeat(1, N_HYPOTHESES, 1), displacement_px[:, None].repeat(1, N_HYPOTHESES, 1),
                   score, torch.isfinite(score).to(score.dtype), quaternion.new_zeros(n, 3, 3))

    @classmethod
    def empty(cls, n: int, device: torch.device) -> "PoseHypotheses":
        quaternion = torch.zeros(n, 4, device=device)
        quaternion[:, 3] = 1
        return cls.of(quaternion, torch.zeros(n, 2, device=device))

    def __len__(self) -> int:
        return len(self.quaternion)

    def best(self) -> tuple[Tensor, Tensor]:
        """Rotation (N, 4) and displacement in px (N, 2) of the best hypotheses."""
        return self.quaternion[:, 0], self.displacement_px[:, 0]

    def best_poses(self, pixel_size_angstrom: float) -> Poses:
        quaternion, displacement_px = self.best()
        return Poses(quaternion, shift_angstrom(displacement_px, pixel_size_angstrom))

    def posterior(self, pixel_size_angstrom: float) -> PosePosterior:
        return PosePosterior(self.quaternion, shift_angstrom(self.displacement_px, pixel_size_angstrom), self.weight,
                             self.information)

    def at(self, rows: Tensor) -> "PoseHypotheses":
        """Those of particles ``rows`` (n,); a copy."""
        return PoseHypotheses(*(values[rows] for values in vars(self).values()))

    def copy(self) -> "PoseHypotheses":
        return PoseHypotheses(*(values.clone() for values in vars(self).values()))

    def with_rows(self, rows: Tensor, others: "PoseHypotheses") -> "PoseHypotheses":
        """A copy in which those of n particles stand for particles ``rows`` (n,)."""
        changed = self.copy()
        for name, values in vars(others).items():
            getattr(changed, name)[rows] = values
        return changed

    def with_two(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> "PoseHypotheses":
        """A copy with two hypotheses for every particle, (N, 4) and (N, 2) each, as likely as its best was; the first has
        all the weight until they are refined."""
        changed = self.copy()
        for k, (q, d) in enumerate((first, second)):
            changed.quaternion[:, k], changed.displacement_px[:, k] = q, d
        changed.score[:, 1] = changed.score[:, 0]
        changed.score[:, 2:] = -torch.inf
        changed.weight[:] = 0
        changed.weight[:, 0] = 1
        return changed

    def store(self, rows: Tensor, found: RefinedPoses, scale: float, group: Tensor) -> None:
        """Puts found hypotheses, best first with fields (n, k, ...), in place; displacements in units of ``scale`` px."""
        found = found[:, :N_HYPOTHESES]
        k = found.score.shape[1]
        weight = match_posterior(found, group).weight
        dropped = (weight <= 0) | (found.score < found.score[:, :1] - KEPT_WITHIN_SCORE)
        self.score[rows] = -torch.inf
        self.weight[rows] = 0
        self.quaternion[rows, :k], self.displacement_px[rows, :k] = found.quaternion, found.displacement_px * scale
        self.score[rows, :k] = found.score.masked_fill(dropped, -torch.inf)
        self.weight[rows, :k] = weight
        self.information[rows] = rotation_information(found.information[:, 0])


def refine_hypotheses(images: MatchingImages, model: MatchingModel, quaternion: Tensor, displacement_px: Tensor,
                      score: Tensor) -> RefinedPoses:
    """Refines the hypotheses (n, K, 4), (n, K, 2) that are not dropped, ``score`` (n, K); best first."""
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
