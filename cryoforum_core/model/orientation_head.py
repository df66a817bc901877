"""From an encoder's features to a rotation, its uncertainty, and a shift: the parametrisations of both papers.

All heads answer alike, so that everything after them is the same: ``qcqp`` and ``qcqp-psd`` make a 4x4 matrix A, whose
smallest eigenvector is the rotation (Cryo-forum); ``s2s2``, ``quaternion`` and ``euler`` (CryoPoseNet) make a rotation
and a concentration k, and A is ``k (I - q q')``.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from ..geometry.orientation_posterior import isotropic_bingham, psd_from_10, symmetric_from_10
from ..geometry.rotations import relion_euler_to_quaternion, s2s2_to_quaternion, smallest_eigenvector

N_OUTPUTS = {"qcqp": 10, "qcqp-psd": 10, "s2s2": 7, "quaternion": 5, "euler": 4}


@dataclass(frozen=True)
class PoseEstimate:
    """What the network says of n images."""

    quaternion: Tensor
    """(n, 4) unit, xyzw."""
    bingham: Tensor
    """(n, 4, 4); its smallest eigenvector is ``quaternion``."""
    shift_angstrom: Tensor
    """(n, 2) with the sign of rlnOriginX/YAngst."""

    def __len__(self) -> int:
        return len(self.quaternion)

    def to(self, device: torch.device | str) -> "PoseEstimate":
        return PoseEstimate(*(getattr(self, field.name).to(device) for field in fields(self)))

    @staticmethod
    def concatenate(parts: "list[PoseEstimate]") -> "PoseEstimate":
        return PoseEstimate(*(torch.cat([getattr(part, field.name) for part in parts])
                              for field in fields(PoseEstimate)))


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

    def forward(self, features: Tensor) -> PoseEstimate:
        """Features (n, F) to poses of n images; always computed in float32."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            quaternion, bingham = self._rotation(self.orientation(features))
            # a quarter of the box is a large shift: outputs of order one
            return PoseEstimate(quaternion, bingham, self.shift(features) * (0.25 * self.box_size_angstrom))

    def _rotation(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        if self.parametrisation in ("qcqp", "qcqp-psd"):
            form = symmetric_from_10 if self.parametrisation == "qcqp" else psd_from_10
            bingham = form(numbers) * self.log_scale.exp()
            return smallest_eigenvector(bingham), bingham
        numbers, log_concentration = numbers[:, :-1], numbers[:, -1]
        if self.parametrisation == "s2s2":
            quaternion = s2s2_to_quaternion(numbers)
        elif self.parametrisation == "quaternion":
            quaternion = nn.functional.normalize(numbers, dim=-1)
        else:
            quaternion = relion_euler_to_quaternion(torch.rad2deg(numbers))
        # exp of a bounded number: a concentration that overflows would poison the likelihood
        concentration = torch.exp(self.log_scale + log_concentration.clamp(-10, 10))
        return quaternion, isotropic_bingham(quaternion, concentration)
