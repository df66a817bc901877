"""How far estimated poses are from known ones: rotation, shift, and the frame and hand that images cannot fix.

Two sets of poses of the same images may belong to maps that are rotated against each other (A_est = A_true g, one g for
all), mirrored, or shifted. ``align_frame`` finds g and the hand by a vote, so that many wrong poses do not disturb it;
``align_poses`` also finds the translation, which shows in the shifts.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .poses import Poses
from .rotations import (
    compose,
    inverse,
    mirror_hand,
    quaternion_to_matrix,
    quaternion_to_rotation_vector,
    rotation_vector_to_quaternion,
)
from .symmetry import nearest_equivalent, symmetric_distance_deg

# rotations between the frames that are put to the vote: if one pose in ten is right, some 50 of them are near the true one
_N_HYPOTHESES = 512
# poses that vote: enough for a share of agreement to within a percent or two, whatever the size of the set
_N_VOTERS = 2048
# the vote counts a pose as right within this angle
_VOTE_WIDTH_DEG = 15.0
# the refinement starts as wide as the vote and narrows down to what good poses reach
_REFINEMENT_WIDTHS_DEG = (15.0, 15.0, 10.0, 6.0, 4.0, 4.0)
# the translation is fitted to the shifts of poses that are right within this angle
_TRANSLATION_WIDTH_DEG = 10.0
# a translation could fit the shifts of fewer poses by accident
_FEWEST_FOR_TRANSLATION = 10
# steps of iteratively reweighted least squares
_REWEIGHTED_STEPS = 30


@dataclass(frozen=True)
class FrameAlignment:
    """From the frame of estimated poses to that of known ones: mirrored if ``is_mirrored``, then rotated, then shifted.

    A map V of the estimated frame becomes ``W(r) = V(R (r - t))`` (``imaging.volume_frame.move_volume``) and a pose
    (A, origin) becomes ``(A R, origin + (A R t)_xy)``: origins are minus displacements. The mirror is that in z; it
    leaves origins as they are.
    """

    rotation: Float[Tensor, " 4"]
    """Quaternion (4,) that is composed on the right of the estimated poses."""
    is_mirrored: bool
    agreement: float
    """Weighted fraction (0 to 1) of the poses that agree with the alignment within some 15 degrees."""
    translation_angstrom: Float[Tensor, " 3"] | None = None
    """(3,) along (x, y, z) of the known frame; None where shifts were not compared."""

    def apply(self, quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
        """Estimated poses (..., 4) in the frame of the known ones."""
        if self.is_mirrored:
            quaternion = mirror_hand(quaternion)
        return compose(quaternion, self.rotation.to(quaternion))

    def apply_to_poses(self, poses: Poses) -> Poses:
        """Estimated poses, with their shifts, in the frame of the known ones."""
        quaternion = self.apply(poses.quaternion)
        if self.translation_angstrom is None:
            return Poses(quaternion, poses.shift_angstrom)
        seen = _projector(quaternion) @ self.translation_angstrom.to(quaternion)
        return Poses(quaternion, poses.shift_angstrom + seen.to(poses.shift_angstrom))


def rotation_errors_deg(estimated: Float[Tensor, "n 4"], true: Float[Tensor, "n 4"], group: Float[Tensor, "g 4"]
                        ) -> Float[Tensor, " n"]:
    """Angle in degrees between poses (N, 4), the smallest over the molecule's symmetry ``group`` (G, 4): (N,)."""
    return symmetric_distance_deg(estimated, true, group)


def shift_errors_angstrom(estimated: Float[Tensor, "n 2"], true: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """Distance between shifts (N, 2) in Angstrom: (N,)."""
    return (estimated - true).norm(dim=-1)


def align_frame(estimated: Float[Tensor, "n 4"], true: Float[Tensor, "n 4"], group: Float[Tensor, "g 4"],
                allow_mirror: bool = False) -> FrameAlignment:
    """The frame of ``estimated`` (N, 4) against ``true`` (N, 4), over the symmetry ``group`` (G, 4) of the known map.

    Each pair proposes one rotation; the rotation that most pairs agree with is refined on those pairs. It stands a majority
    of wrong poses, as long as they do not agree with each other. Needs at least one pair.
    """
    estimated, true = estimated.double(), true.double()
    candidates = [_align_one_hand(estimated, true, group, is_mirrored=False)]
    if allow_mirror:
        candidates.append(_align_one_hand(mirror_hand(estimated), true, group, is_mirrored=True))
    return max(candidates, key=lambda candidate: candidate.agreement)


def align_poses(estimated: Poses, true: Poses, group: Float[Tensor, "g 4"], allow_mirror: bool = False) -> FrameAlignment:
    """As ``align_frame``, and the translation between the two maps, from the shifts of the poses that agree.

    Robust: least absolute distances, so that up to nearly half of those shifts may be wrong. The translation is zero
    where fewer than 10 poses agree within 10 degrees, and zero along a direction that no image shows.
    """
    alignment = align_frame(estimated.quaternion, true.quaternion, group, allow_mirror)
    quaternion = alignment.apply(estimated.quaternion.double())
    agree = symmetric_distance_deg(quaternion, true.quaternion.double(), group) <= _TRANSLATION_WIDTH_DEG
    translation = quaternion.new_zeros(3)
    if agree.sum() >= _FEWEST_FOR_TRANSLATION:
        missing = (true.shift_angstrom.double() - estimated.shift_angstrom.double())[agree]
        translation = _translation(_projector(quaternion[agree]), missing)
    return replace(alignment, translation_angstrom=translation)


def _projector(quaternion: Tensor) -> Tensor:
    """What takes points of the molecule to places in the images of poses (N, 4): (N, 2, 3)."""
    return quaternion_to_matrix(quaternion)[..., :2, :]


def _translation(projector: Tensor, seen: Tensor) -> Tensor:
    """t (3,) that makes the sum of ``|projector t - seen|`` least, for (N, 2, 3) and (N, 2); by reweighting."""
    weight = torch.ones_like(seen[:, 0])
    for _ in range(_REWEIGHTED_STEPS):
        normal = torch.einsum("n,nij,nik->jk", weight, projector, projector)
        right = torch.einsum("n,nij,ni->j", weight, projector, seen)
        translation = torch.linalg.pinv(normal, rtol=1e-4, hermitian=True) @ right
        distance = (projector @ translation - seen).norm(dim=-1)
        # near its middle the distance counts squared: a floor keeps the weights finite
        weight = 1 / distance.clamp_min(0.1 * float(distance.median()) + 1e-6)
    return translation


def _align_one_hand(estimated: Tensor, true: Tensor, group: Tensor, is_mirrored: bool) -> FrameAlignment:
    group = group.to(true)
    # A_est g = A_true for each pair; with symmetry g h, h of the group, is as good
    pairwise = compose(inverse(estimated), true)
    rotation = _vote(pairwise, group)
    for width_deg in _REFINEMENT_WIDTHS_DEG:
        rotation = _refine(rotation, pairwise, group, width_deg)
    return FrameAlignment(rotation, is_mirrored, float(_agreement(rotation[None], pairwise, group)[0]))


def _evenly(values: Tensor, most: int) -> Tensor:
    return values[torch.linspace(0, len(values) - 1, min(most, len(values))).round().long()]


def _agreement(hypotheses: Tensor, pairwise: Tensor, group: Tensor) -> Tensor:
    """Mean over the pairs' rotations (N, 4) of a Gaussian of their distance to each hypothesis (H, 4): (H,)."""
    distance_deg = symmetric_distance_deg(_evenly(pairwise, _N_VOTERS), hypotheses[:, None], group)
    return torch.exp(-0.5 * (distance_deg / _VOTE_WIDTH_DEG) ** 2).mean(dim=-1)


def _vote(pairwise: Tensor, group: Tensor) -> Tensor:
    hypotheses = _evenly(pairwise, _N_HYPOTHESES)
    votes = torch.cat([_agreement(some, pairwise, group) for some in hypotheses.split(16)])
    return hypotheses[votes.argmax()]


def _refine(rotation: Tensor, pairwise: Tensor, group: Tensor, width_deg: float) -> Tensor:
    """One step of the mean of the pairs' rotations near ``rotation`` (4,); Tukey's weights leave out what is far off."""
    near = nearest_equivalent(pairwise, rotation, group)
    residual = quaternion_to_rotation_vector(compose(inverse(rotation), near))
    share = torch.rad2deg(residual.norm(dim=-1)) / (3 * width_deg)
    weight = (1 - share.square()).clamp_min(0).square()
    step = (weight[:, None] * residual).sum(0) / weight.sum().clamp_min(1e-12)
    return compose(rotation, rotation_vector_to_quaternion(step))


def error_summary(errors_deg: Float[Tensor, " n"]) -> dict[str, float]:
    """Median, mean, and the fractions below 5 and 10 degrees of rotation errors (N,), N > 0."""
    return {
        "median_error_deg": float(errors_deg.median()),
        "mean_error_deg": float(errors_deg.mean()),
        "fraction_below_5deg": float((errors_deg < 5).double().mean()),
        "fraction_below_10deg": float((errors_deg < 10).double().mean()),
    }
