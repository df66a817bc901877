"""Maps in another frame: turned, or of the other hand."""

import torch
from torch import Tensor

from ..geometry.rotations import quaternion_to_matrix
from .fourier import frequency_grid, ifft_volume
from .projection import FourierVolume


def turn_volume(volume: Tensor, quaternion: Tensor) -> Tensor:
    """The map ``W(r) = V(R r)`` (D, D, D) for the rotation R of ``quaternion`` (4,).

    If poses A belong to V, then A R belong to W. Interpolated in Fourier space; what lies outside the inscribed
    sphere of the transform is lost.
    """
    size = volume.shape[-1]
    ky, kx = frequency_grid(size, volume.device)
    kz = ky[:, :, None].expand(size, size, size // 2 + 1)
    k = torch.stack([kx.expand(size, size, -1), ky[None].expand(size, size, size // 2 + 1), kz], dim=-1)
    inside = k.norm(dim=-1) <= size / 2
    points = k[inside] @ quaternion_to_matrix(quaternion.to(k)).T
    turned_ft = torch.zeros(size, size, size // 2 + 1, dtype=torch.complex64, device=volume.device)
    turned_ft[inside] = FourierVolume.from_real(volume.float()).sample(points[None])[0]
    return ifft_volume(turned_ft)


def mirror_volume(volume: Tensor) -> Tensor:
    """The map mirrored in z, (D, D, D) [z, y, x] with D even: the other hand. The centre D // 2 stays in its place."""
    return torch.roll(torch.flip(volume, dims=(-3,)), shifts=1, dims=-3)
