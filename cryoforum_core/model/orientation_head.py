"""From an encoder's features to a rotation, its uncertainty, and a shift: the parametrisations of two papers.

All heads return the same quantities: ``qcqp`` and ``qcqp-psd`` make a 4x4 matrix A, whose eigenvector of the smallest
eigenvalue is the rotation (Chung 2023); ``s2s2``, ``quaternion`` and ``euler`` (CryoPoseNet, Nashed et al. 2021)
make a rotation and a concentration k, and A is ``k (I - q q')``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..geometry.bingham import isotropic_bingham, psd_from_10, symmetric_from_10
from ..geometry.rotations import relion_euler_to_quaternion, s2s2_to_quaternion, smallest_eigenvector
from .polar import SHIFT_UNIT_OF_BOX, EquivariantFeatures

# rotation parametrisations: numbers of the linear layer, a concentration included where there is no matrix
N_OUTPUTS = {"qcqp": 10, "qcqp-psd": 10, "s2s2": 7, "quaternion": 5, "euler": 4}


@dataclass(frozen=True)
class PoseEstimate:
    """Poses that the network predicts for n images."""

    quaternion: Float[Tensor, "n 4"]
    """unit, xyzw"""
    bingham: Float[Tensor, "n 4 4"]
    """``quaternion`` is the eigenvector of its smallest eigenvalue"""
    shift_angstrom: Float[Tensor, "n 2"]
    """with the sign of rlnOriginX/YAngst"""
    first_shift_angstrom: Float[Tensor, "n 2"] | None = None
    """part of the shift by which an encoder centred its images; for its loss alone"""

    def __len__(self) -> int:
        return len(self.quaternion)

    def to(self, device: torch.device | str) -> "PoseEstimate":
        """The poses, on another device."""
        return PoseEstimate(*(getattr(self, name).to(device) for name in _PREDICTED))

    @staticmethod
    def concatenate(parts: "list[PoseEstimate]") -> "PoseEstimate":
        """The poses of several batches, in order."""
        return PoseEstimate(*(torch.cat([getattr(part, name) for part in parts]) for name in _PREDICTED))


# fields that every estimate has; the rest is for the loss alone
_PREDICTED = ("quaternion", "bingham", "shift_angstrom")


class OrientationHead(nn.Module):
    """Linear layers to the numbers of one parametrisation and to a shift.

    ``box_size_angstrom``: side of the image; shifts come out in Angstrom.
    """

    def __init__(self, n_features: int, parametrisation: str, box_size_angstrom: float):
        super().__init__()
        if parametrisation not in N_OUTPUTS:
            raise ValueError(f"The head must be one of {', '.join(N_OUTPUTS)}; got {parametrisation!r}.")
        self.parametrisation, self.box_size_angstrom = parametrisation, box_size_angstrom
        self.orientation = nn.Linear(n_features, N_OUTPUTS[parametrisation])
        self.shift = nn.Linear(n_features, 2)
        # one common unit of A: precisions reach thousands while a layer's outputs are of order one
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, features: Float[Tensor, "n f"] | EquivariantFeatures) -> PoseEstimate:
        """Features, or those of several copies of each image, to poses of n images; always computed in float32."""
        of_copies = isinstance(features, EquivariantFeatures)
        values = features.values if of_copies else features
        with torch.autocast(values.device.type, enabled=False):
            values = values.float()
            bingham, quaternion = self._posterior(self.orientation(values))
            shift_of_box = SHIFT_UNIT_OF_BOX * self.shift(values)
            if of_copies:
                return self._joined(features, bingham, shift_of_box)
            quaternion = smallest_eigenvector(bingham) if quaternion is None else quaternion
            return PoseEstimate(quaternion, bingham, shift_of_box * self.box_size_angstrom)

    def _joined(self, features: EquivariantFeatures, bingham: Tensor, shift_of_box: Tensor) -> PoseEstimate:
        """Joins the copies (n, V, ...): a posterior A of the pose L q of a copy is the posterior L' A L of the image's q.

        The mean of the matrices is taken, in which concentrated posteriors count more.
        """
        left = features.pose_matrices
        bingham = (left.transpose(-1, -2) @ bingham @ left).mean(1)
        shift_of_box = (features.shift_matrices @ shift_of_box[..., None])[..., 0].mean(1) + features.centre_of_box
        return PoseEstimate(smallest_eigenvector(bingham), bingham, shift_of_box * self.box_size_angstrom,
                            features.centre_of_box * self.box_size_angstrom)

    def _posterior(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Matrices A (..., 4, 4) of the outputs (..., p), and the rotations where they are known without eigenvectors."""
        if self.parametrisation in ("qcqp", "qcqp-psd"):
            form = symmetric_from_10 if self.parametrisation == "qcqp" else psd_from_10
            return form(numbers) * self.log_scale.exp(), None
        numbers, log_concentration = numbers[..., :-1], numbers[..., -1]
        if self.parametrisation == "s2s2":
            quaternion = s2s2_to_quaternion(numbers)
        elif self.parametrisation == "quaternion":
            quaternion = nn.functional.normalize(numbers, dim=-1)
        else:
            quaternion = relion_euler_to_quaternion(torch.rad2deg(numbers))
        # exp of a bounded number: a concentration that overflows would poison the likelihood
        concentration = torch.exp(self.log_scale + log_concentration.clamp(-10, 10))
        return isotropic_bingham(quaternion, concentration), quaternion
