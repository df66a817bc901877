"""Rotation and shift of each particle, in RELION's convention, and what a shift means in pixels.

Two quantities with opposite signs, and this module alone converts one into the other:

- ``shift_angstrom`` is RELION's origin (rlnOriginXAngst, rlnOriginYAngst), in Angstrom: what moves the particle back to
  the centre of its image. Files, poses and networks have it.
- ``displacement_px`` is where the particle lies relative to the centre of its image, in pixels of some box, along x
  (columns) and y (rows): ``-shift_angstrom / pixel_size_angstrom``. Fourier phases and matching have it.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .rotations import quaternion_to_relion_euler, relion_euler_to_quaternion

Shifts = TypeVar("Shifts", Tensor, np.ndarray)


def displacement_px(shift_angstrom: Shifts, pixel_size_angstrom: float) -> Shifts:
    """Where particles lie in their images, in pixels along (x, y), for RELION origins in Angstrom; any shape."""
    return -shift_angstrom / pixel_size_angstrom


def shift_angstrom(displacement_px: Shifts, pixel_size_angstrom: float) -> Shifts:
    """RELION origins in Angstrom of particles that lie ``displacement_px`` from the centres of their images; any shape."""
    return -displacement_px * pixel_size_angstrom


@dataclass(frozen=True, eq=False)
class Poses:
    """Orientations and shifts of N particles.

    ``quaternion`` (N, 4) is the rotation of the module ``rotations``: RELION's A, ``x_image = A @ x_molecule``.
    ``shift_angstrom`` (N, 2) is (rlnOriginXAngst, rlnOriginYAngst): see the module.
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
