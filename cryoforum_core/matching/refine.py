"""Gauss-Newton matching on SO(3) x R^2, and the Fisher information of a pose.

A pose is moved by a rotation vector w in the molecule's frame, ``A <- A R(w)``, and by a displacement in pixels.
A point p of the slice then moves by ``-w x p``, so the slice's derivative along w is ``grad P x p``; the gradient of
the map's transform is stored beside the transform (``FourierVolume.from_real(with_gradient=True)``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ..geometry.rotations import compose, rotation_vector_to_quaternion
from ..imaging.projection import FourierVolume, slice_points
from .whitened_images import WhitenedImages

# longest step of a rotation, 9 degrees: beyond, the linear approximation of a slice does not hold
MAX_STEP_RAD = 0.15
# longest step of a displacement, for the same reason
MAX_STEP_PX = 1.5
# images whose derivatives are in memory at a time
_CHUNK = 64


@dataclass(frozen=True)
class RefinedPoses:
    """``quaternion`` (n, 4), ``displacement_px`` (n, 2), ``score`` (n,) the log-likelihood ratio to an empty image,
    ``information`` (n, 5, 5) the Fisher information of (rotation vector in rad, displacement in px)."""

    quaternion: Float[Tensor, "*batch 4"]
    displacement_px: Float[Tensor, "*batch 2"]
    score: Float[Tensor, " *batch"]
    information: Float[Tensor, "*batch 5 5"]

    @classmethod
    def concatenate(cls, parts: Sequence["RefinedPoses"], dim: int = 0) -> "RefinedPoses":
        """All fields of the parts, one after the other along an axis of the poses."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts], dim=dim) for field in fields(cls)))

    def __getitem__(self, index) -> "RefinedPoses":
        return RefinedPoses(self.quaternion[index], self.displacement_px[index], self.score[index],
                            self.information[index])


def _predicted_with_jacobian(images: WhitenedImages, volume: FourierVolume, quaternion: Tensor,
                             displacement_px: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions (n, m), and their derivatives (n, 5, 2 m), real and imaginary part of each pixel beside each other."""
    points = slice_points(quaternion, images.k)
    slices, (gx, gy, gz) = volume.sample_with_gradient(points)
    factor = images.transfer * images.displacement_phase(displacement_px)
    model = factor * slices
    px, py, pz = points.unbind(-1)
    wave = model * (-2j * torch.pi / images.box_size_px)
    jacobian = torch.stack([(gy * pz - gz * py) * factor, (gz * px - gx * pz) * factor, (gx * py - gy * px) * factor,
                            wave * images.k[:, 0], wave * images.k[:, 1]], dim=1)
    return model, torch.view_as_real(jacobian).flatten(2)


def _linearise(images: WhitenedImages, volume: FourierVolume, quaternion: Tensor,
               displacement_px: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score (n,), right-hand side (n, 5) and information (n, 5, 5) of the log-likelihood around poses."""
    model, jacobian = _predicted_with_jacobian(images, volume, quaternion, displacement_px)
    residual = torch.view_as_real(images.data - model).flatten(1)
    score = torch.view_as_real(images.data).square().sum((1, 2)) - residual.square().sum(-1)
    return score, 2.0 * (jacobian @ residual[..., None])[..., 0], 2.0 * (jacobian @ jacobian.transpose(1, 2))


def fisher_information(images: WhitenedImages, volume: FourierVolume, quaternion: Float[Tensor, "n 4"],
                       displacement_px: Float[Tensor, "n 2"]) -> Float[Tensor, "n 5 5"]:
    """Fisher information (n, 5, 5) of (rotation vector in rad, displacement in px) at given poses.

    Its inverse is the Cramer-Rao bound for a known map and known noise.
    """
    return _linearise(images, volume, quaternion, displacement_px)[2]


def predicted_at_refined(images: WhitenedImages, volume: FourierVolume, poses: RefinedPoses
                         ) -> tuple[Complex[Tensor, "n m"], Float[Tensor, "n m"]]:
    """``likelihood.predicted`` (n, m) at refined poses (n, ...), and what these have gained from the noise: the part (n, m)
    of ``Re(conj(data) predicted)`` that regressions of images on their predictions must leave out.

    With derivatives J (5, 2 m) of the prediction and information I = 2 J J', noise e of variance 1/2 in each component
    moves a pose by I^-1 2 J e and its prediction by J' I^-1 2 J e, which overlaps with e by the diagonal of J' I^-1 J on
    average, 5/2 in all. Since a projection's power hardly depends on the pose, the overlap with the signal falls by half
    of that. 5/4 remain: a percent of the signal of an image at SNR 0.05, but several in the shells that determine the pose.
    """
    predictions, taken_up = [], []
    for some in torch.arange(len(images), device=poses.quaternion.device).split(_CHUNK):
        model, jacobian = _predicted_with_jacobian(images[some], volume, poses.quaternion[some], poses.displacement_px[some])
        information = 2.0 * (jacobian @ jacobian.transpose(1, 2))
        diagonal = torch.diagonal(information, dim1=-2, dim2=-1)
        # a blank image determines no pose
        ridge = torch.diag_embed((1e-6 * diagonal.amax(-1, keepdim=True) + 1e-12).expand_as(diagonal))
        followed = (jacobian * torch.linalg.solve(information + ridge, jacobian)).sum(1)
        predictions.append(model)
        taken_up.append(0.5 * followed.unflatten(-1, (-1, 2)).sum(-1))
    return torch.cat(predictions), torch.cat(taken_up)


def refine(images: WhitenedImages, volume: FourierVolume, quaternion: Float[Tensor, "n 4"],
           displacement_px: Float[Tensor, "n 2"], iterations: int = 6, max_displacement_px: float = float("inf")
           ) -> RefinedPoses:
    """Levenberg-Marquardt steps from poses (n, 4), (n, 2), one for each image; never ends below where it starts.

    ``volume`` needs gradients. Poses whose displacement would leave ``max_displacement_px`` do not take that step.
    """
    score, right, information = _linearise(images, volume, quaternion, displacement_px)
    damping = torch.full_like(score, 1e-2)
    for _ in range(iterations):
        step = _damped_step(right, information, damping)
        new_quaternion = compose(quaternion, rotation_vector_to_quaternion(step[:, :3]))
        new_displacement = displacement_px + step[:, 3:]
        new = _linearise(images, volume, new_quaternion, new_displacement)
        better = (new[0] > score) & (new_displacement.norm(dim=-1) <= max_displacement_px)
        quaternion = torch.where(better[:, None], new_quaternion, quaternion)
        displacement_px = torch.where(better[:, None], new_displacement, displacement_px)
        score = torch.where(better, new[0], score)
        right = torch.where(better[:, None], new[1], right)
        information = torch.where(better[:, None, None], new[2], information)
        damping = torch.where(better, damping * 0.2, damping * 8.0).clamp(1e-6, 1e4)
    quaternion = torch.nn.functional.normalize(quaternion, dim=-1)
    return RefinedPoses(quaternion, displacement_px, score, information)


def _damped_step(right: Tensor, information: Tensor, damping: Tensor) -> Tensor:
    diagonal = torch.diagonal(information, dim1=-2, dim2=-1)
    # a direction that the data say nothing about (a blank image) must not make the matrix singular
    diagonal = diagonal * damping[:, None] + 1e-6 * diagonal.amax(-1, keepdim=True) + 1e-12
    step = torch.linalg.solve(information + torch.diag_embed(diagonal), right)
    rotation, shift = step[:, :3], step[:, 3:]
    rotation = rotation * (MAX_STEP_RAD / rotation.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    shift = shift * (MAX_STEP_PX / shift.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return torch.cat([rotation, shift], dim=-1)
