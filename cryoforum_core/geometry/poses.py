"""Where each particle is turned and shifted, in RELION's convention."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .rotations import quaternion_to_relion_euler, relion_euler_to_quaternion


@dataclass(frozen=True, eq=False)
class Poses:
    """Orientations and shifts of N particles.

    ``quaternion`` (N, 4) is the rotation of the module ``rotations``: RELION's A, ``x_image = A @ x_molecule``.
    ``shift_angstrom`` (N, 2) has the sign of (rlnOriginXAngst, rlnOriginYAngst): the particle is displaced from the
    image's centre by **minus** this, along x (columns) and y (rows).
    """

    quaternion: Float[Tensor, "n 4"]
    shift_angstrom: Float[Tensor, "n 2"]

    def __post_init__(self):
        n = len(self.quaternion)
        if self.quaternion.shape != (n, 4) or self.shift_angstrom.shape != (n, 2):
            raise ValueError("poses are quaternions (N, 4) and shifts (N, 2); got "
                             f"{tuple(self.quaternion.shape)} and {tuple(self.shift_angstrom.shape)}")

    @classmethod
    def from_relion(cls, euler_deg: Float[Tensor, "n 3"], shift_angstrom: Float[Tensor, "n 2"]) -> "Poses":
        """From RELION's (rot, tilt, psi) in degrees (N, 3) and origins in Angstrom (N, 2)."""
        return cls(relion_euler_to_quaternion(euler_deg), shift_angstrom)

    def euler_deg(self) -> Float[Tensor, "n 3"]:
        """RELION's (rot, tilt, psi) in degrees (N, 3)."""
        return quaternion_to_relion_euler(self.quaternion)

    def __len__(self) -> int:
        return len(self.quaternion)

    def __getitem__(self, index) -> "Poses":
        """The poses of some particles: ``index`` is a slice, or indices or a mask (k,)."""
        return Poses(self.quaternion[index], self.shift_angstrom[index])

    def to(self, device: torch.device | str) -> "Poses":
        return Poses(self.quaternion.to(device), self.shift_angstrom.to(device))
