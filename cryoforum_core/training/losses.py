"""Losses of poses: pure functions, unreduced, in radians. Symmetry enters as the group's quaternions.

A symmetry operation acts on the right, so every distance is the smallest over ``q g`` (``geometry.symmetry``).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.bingham import bingham_log_normalizer
from ..geometry.rotations import compose
from ..geometry.symmetry import nearest_equivalent, symmetric_distance_rad
from ..model.orientation_head import PoseEstimate
from .schedules import orientation_weights


def own_error(estimate: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"], group: Float[Tensor, "g 4"]
              ) -> Float[Tensor, " n"]:
    """Angle in radians between each rotation and its true one."""
    return symmetric_distance_rad(estimate, truth, group)


def pairwise_error(estimate: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"], group: Float[Tensor, "g 4"]
                   ) -> Float[Tensor, "n n"]:
    """``|d(q_a, q_b) - d_true(a, b)|`` in radians for all pairs inside a batch, zero on the diagonal.

    The loss of Chung (2023) without its list of pairs: a batch of n holds n (n - 1) / 2 of them. It fixes the orientations
    up to one common rotation and the hand, which the own error then decides.
    """
    with torch.no_grad():
        wanted = symmetric_distance_rad(truth[:, None], truth[None, :], group)
    found = symmetric_distance_rad(estimate[:, None], estimate[None, :], group)
    return (found - wanted).abs()


def chordal_error(estimate: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"], group: Float[Tensor, "g 4"]
                  ) -> Float[Tensor, " n"]:
    """Squared Frobenius distance of the rotation matrices: ``8 sin^2(angle / 2)`` = ``8 (1 - (q . p)^2)``."""
    nearest = nearest_equivalent(truth, estimate.detach(), group)
    return 8 * (1 - (estimate * nearest).sum(-1).square())


def bingham_loss(bingham: Float[Tensor, "n 4 4"], truth: Float[Tensor, "n 4"], group: Float[Tensor, "g 4"]
                 ) -> Float[Tensor, " n"]:
    """Negative log-likelihood of the true rotations under ``exp(-q'Aq) / F(A)``, of the likeliest equivalent."""
    equivalents = compose(truth[:, None, :], group.to(truth)[None]) if len(group) > 1 else truth[:, None, :]
    energy = torch.einsum("ngi,nij,ngj->ng", equivalents, bingham, equivalents).amin(1)
    eigenvalues = torch.linalg.eigvalsh(bingham)
    # relative to the smallest eigenvalue, which cancels: float32 keeps its digits
    lowest = eigenvalues[:, 0]
    return energy - lowest + bingham_log_normalizer(eigenvalues - lowest[:, None])


def shift_error(estimate_angstrom: Float[Tensor, "n 2"], truth_angstrom: Float[Tensor, "n 2"], box_size_angstrom: float
                ) -> Float[Tensor, " n"]:
    """Length of the shift's error, in quarters of the box.

    A rotation by one radian moves a point a quarter of the box off the axis by as much: comparable with angles.
    """
    difference = (estimate_angstrom - truth_angstrom) * (4.0 / box_size_angstrom)
    return torch.sqrt(difference.square().sum(-1) + 1e-8)


def displacement_error(estimate: PoseEstimate, truth_angstrom: Float[Tensor, "n 2"], box_size_angstrom: float
                       ) -> Float[Tensor, " n"]:
    """``shift_error`` of an estimate, and of the centring where the encoder centres its images: it has no other
    loss."""
    error = shift_error(estimate.shift_angstrom, truth_angstrom, box_size_angstrom)
    if estimate.first_shift_angstrom is not None:
        error = error + shift_error(estimate.first_shift_angstrom, truth_angstrom, box_size_angstrom)
    return error


def orientation_loss(loss: str, progress: float, estimate: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"],
                     group: Float[Tensor, "g 4"]) -> Float[Tensor, " n"]:
    """The weighted orientation loss of each image; pairs are averaged over the image's partners."""
    total = torch.zeros(len(truth), dtype=estimate.dtype, device=estimate.device)
    for term, weight in orientation_weights(loss, progress).items():
        if weight == 0:
            continue
        if term == "pairwise":
            value = pairwise_error(estimate, truth, group).sum(1) / max(len(truth) - 1, 1)
        else:
            value = (own_error if term == "own" else chordal_error)(estimate, truth, group)
        total = total + weight * value
    return total
