"""From refined hypotheses to the posterior of each pose: a local Gaussian, alternative poses, and the probability of
misassignment."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.symmetry import symmetric_distance_rad
from ..matching.refine import RefinedPoses

# hypotheses closer than this are the same pose (3 degrees)
SAME_POSE_RAD = 0.05
# rad^-2, of an image without information: a standard deviation of about half a turn
MIN_INFORMATION = 0.1
# px^-2, of an image without information: a standard deviation of ten pixels
MIN_SHIFT_INFORMATION = 0.01
# a particle's own scale of its local error is drawn to the set's with the weight of so many degrees of freedom; its split error
# has three. Of 3 to 10 all cover minor states and neighbours of a ribosome about as well (docs/decisions/0062-split-error.md)
SCALE_DEGREES_OF_FREEDOM = 5.0
# of three squared standard normal numbers
_CHI_SQUARED_3_MEDIAN = 2.366
# times the usual one: a split error that large says that a half has lost the pose, not how far off the whole may be
_LARGEST_SQUARED_RATIO = 50.0
# standard deviations below the population's usual fit at which a pose is as likely wrong as right
MISASSIGNED_AT_DEVIATIONS = 4.5


@dataclass(frozen=True)
class MatchPosterior:
    """The posterior of n poses from each match alone, before the particles are seen as a population.

    ``weight``: of the hypotheses, 0 for repetitions, sums to 1; ``alternative_angle_rad``: from the best pose to each;
    ``local_deviation_rad``: principal standard deviations of the best pose's rotation.
    """

    weight: Float[Tensor, "n k"]
    alternative_angle_rad: Float[Tensor, "n k"]
    local_deviation_rad: Float[Tensor, "n 3"]


def bingham_from_information(quaternion: Float[Tensor, "n 4"], information: Float[Tensor, "n 3 3"]
                             ) -> Float[Tensor, "n 4 4"]:
    """The Bingham matrix with mode ``quaternion`` that has the local precision ``information``.

    For a small rotation vector w in the molecule's frame, q(w) = q (w / 2, 1), so ``w' I w / 2 = q(w)' A q(w)`` for
    ``A = 2 T I T'``, T the 4x3 matrix of the directions ``q (e_i, 0)``.
    """
    x, y, z, w = quaternion.unbind(-1)
    tangent = torch.stack([torch.stack([w, z, -y, -x], -1), torch.stack([-z, w, x, -y], -1),
                           torch.stack([y, -x, w, -z], -1)], dim=-1)
    return 2.0 * tangent @ information.to(tangent.dtype) @ tangent.transpose(-1, -2)


def rotation_information(information: Float[Tensor, "*batch 5 5"]) -> Float[Tensor, "*batch 3 3"]:
    """Information about the rotation alone, of that about rotation and displacement together."""
    turn, cross, move = information[..., :3, :3], information[..., :3, 3:], information[..., 3:, 3:]
    scale = torch.diagonal(move, dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-12)
    ridge = 1e-6 * scale * torch.eye(2, dtype=move.dtype, device=move.device)
    return turn - cross @ torch.linalg.solve(move + ridge, cross.transpose(-1, -2))


def match_posterior(hypotheses: RefinedPoses, group: Float[Tensor, "g 4"]) -> MatchPosterior:
    """From hypotheses, best first (fields (n, K, ...)): Laplace weights, repetitions of one pose counted once."""
    n, k = hypotheses.score.shape
    ridge = 1e-3 * torch.eye(5, dtype=torch.float64, device=hypotheses.score.device)
    evidence = hypotheses.score.double() - 0.5 * torch.logdet(hypotheses.information.double() + ridge)
    angle = torch.stack([symmetric_distance_rad(hypotheses.quaternion[:, j], hypotheses.quaternion[:, 0], group)
                         for j in range(k)], dim=1)
    for j in range(1, k):
        earlier = torch.stack([symmetric_distance_rad(hypotheses.quaternion[:, j], hypotheses.quaternion[:, i], group)
                               for i in range(j)], dim=1)
        evidence[:, j] = evidence[:, j].masked_fill((earlier < SAME_POSE_RAD).any(1), -torch.inf)
    precision = torch.linalg.eigvalsh(rotation_information(hypotheses.information[:, 0].double()))
    deviation = precision.clamp_min(MIN_INFORMATION).rsqrt()
    return MatchPosterior(torch.softmax(evidence, dim=1).float(), angle.float(), deviation.float())


def local_scale(split_error_rad: Float[Tensor, " n"], local_deviation_rad: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """How many times larger than stated the local error of each of n poses is, by their split errors.

    A pose's variance is s times the stated one, s with the scaled inverse chi-squared distribution of the set; the split
    error is one draw with that variance. The posterior mean of 1 / s is that of the conjugate model (Gelman et al.,
    Bayesian Data Analysis, section 2.6). The median of the set's ratios, which misassigned poses do not move, gives its scale.
    """
    squared = 3 * split_error_rad.double().square() / local_deviation_rad.double().square().sum(1)
    of_set = (squared.median() / _CHI_SQUARED_3_MEDIAN).clamp_min(1e-6)
    squared = squared.clamp_max(_LARGEST_SQUARED_RATIO * float(of_set))
    return ((SCALE_DEGREES_OF_FREEDOM * of_set + squared) / (SCALE_DEGREES_OF_FREEDOM + 3)).sqrt().float()


def local_deviation_of_bingham(bingham: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n 3"]:
    """Principal standard deviations in rad of the rotation around the mode."""
    eigenvalues = torch.linalg.eigvalsh(bingham.double())
    information = (eigenvalues[:, 1:] - eigenvalues[:, :1]) / 2
    return information.clamp_min(MIN_INFORMATION).rsqrt().float()


def shift_deviation_px(information: Float[Tensor, "n 5 5"]) -> Float[Tensor, "n 2"]:
    """Principal standard deviations of the displacement, the rotation being unknown."""
    turn, cross, move = information[..., :3, :3], information[..., :3, 3:], information[..., 3:, 3:]
    scale = torch.diagonal(turn, dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-12)
    ridge = 1e-6 * scale * torch.eye(3, dtype=turn.dtype, device=turn.device)
    of_move = move - cross.transpose(-1, -2) @ torch.linalg.solve(turn + ridge, cross)
    return torch.linalg.eigvalsh(of_move).clamp_min(MIN_SHIFT_INFORMATION).rsqrt()


def misassignment_probability(fit: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Probability that a pose is wrong or the image is no particle, from the standardised fit."""
    deficit = (-fit).clamp_min(0)
    return torch.sigmoid(0.5 * (deficit.square() - MISASSIGNED_AT_DEVIATIONS ** 2))


def uniform_angles_rad(group: Float[Tensor, "g 4"], n: int = 64) -> Float[Tensor, " {n}"]:
    """Quantiles of the angle between two random rotations, the smallest over the symmetry ``group``."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.nn.functional.normalize(torch.randn(4096, 4, generator=generator), dim=-1)
    identity = torch.tensor([0.0, 0.0, 0.0, 1.0])
    angles = symmetric_distance_rad(normal, identity.expand_as(normal), group.cpu())
    return torch.quantile(angles, (torch.arange(n) + 0.5) / n)
