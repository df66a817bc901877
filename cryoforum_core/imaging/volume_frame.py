"""Maps in another frame: rotated, shifted, or of the other hand; and where the density of a map lies."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.rotations import quaternion_to_matrix
from .fourier import fft_volume, frequency_grid, ifft_volume
from .masks import soft_sphere
from .projection import FourierVolume

# standard deviation of the Gaussian that smooths a map before its dense part is told from noise, in cycles per box
_SMOOTHING_RADIUS_PX = 4.0
# the densest hundredth of the voxels sets the scale of density: a single voxel would be noise
_DENSEST_SHARE = 0.01
# what is below this fraction of that density counts as solvent and noise
_DENSE_FRACTION = 0.2


def rotate_volume(volume: Float[Tensor, "d d d"], quaternion: Float[Tensor, " 4"]) -> Float[Tensor, "d d d"]:
    """The map ``W(r) = V(R r)`` (D, D, D) for the rotation R of ``quaternion`` (4,).

    If poses A belong to V, then A R belong to W. Interpolated in Fourier space; what lies outside the inscribed
    sphere of the transform is lost.
    """
    size = volume.shape[-1]
    k = _frequencies(volume)
    inside = k.norm(dim=-1) <= size / 2
    points = k[inside] @ quaternion_to_matrix(quaternion.to(k)).T
    turned_ft = torch.zeros(size, size, size // 2 + 1, dtype=torch.complex64, device=volume.device)
    turned_ft[inside] = FourierVolume.from_real(volume.float()).sample(points[None])[0]
    return ifft_volume(turned_ft)


def shift_volume(volume: Float[Tensor, "d d d"], displacement_px: Float[Tensor, " 3"]) -> Float[Tensor, "d d d"]:
    """The map (D, D, D) with its content displaced by ``displacement_px`` (3,) along (x, y, z).

    Exact in Fourier space; what leaves the box comes in again on the other side.
    """
    angle = (-2.0 * torch.pi / volume.shape[-1]) * (_frequencies(volume) @ displacement_px.to(volume))
    return ifft_volume(fft_volume(volume) * torch.polar(torch.ones_like(angle), angle))


def move_volume(volume: Float[Tensor, "d d d"], quaternion: Float[Tensor, " 4"], translation_px: Float[Tensor, " 3"]
                ) -> Float[Tensor, "d d d"]:
    """The map rotated, then displaced: ``W(r) = V(R (r - t))`` with R of ``quaternion`` (4,), t (3,) = (x, y, z).

    If poses A with displacements d (2,) belong to V, then A R with ``d - (A R t)_xy`` belong to W. RELION's origins are
    minus displacements: they become ``origin + (A R t)_xy``.
    """
    # displaced first: a molecule in the middle of its box is rotated with smaller errors of interpolation
    displacement_px = quaternion_to_matrix(quaternion.to(volume)) @ translation_px.to(volume)
    return rotate_volume(shift_volume(volume, displacement_px), quaternion)


def mirror_volume(volume: Float[Tensor, "*batch d d d"]) -> Float[Tensor, "*batch d d d"]:
    """The map mirrored in z, (D, D, D) [z, y, x] with D even: the other hand. The centre D // 2 stays in its place."""
    return torch.roll(torch.flip(volume, dims=(-3,)), shifts=1, dims=-3)


def centre_of_mass_px(volume: Float[Tensor, "d d d"], mask_radius_px: float) -> Float[Tensor, " 3"]:
    """Where the dense part of a map (D, D, D) lies relative to the centre D // 2: (3,) along (x, y, z) in pixels.

    The map is smoothed, and only what is denser than 0.2 of its densest percent counts, so that noise and ripples of
    the solvent within ``mask_radius_px`` do not pull the centre to the middle of the box.
    """
    size = len(volume)
    smooth = ifft_volume(fft_volume(volume) * torch.exp(-0.5 * _frequencies(volume).square().sum(-1)
                                                        / _SMOOTHING_RADIUS_PX**2))
    mask = soft_sphere(size, mask_radius_px, device=volume.device).to(volume)
    background = smooth[mask > 0.5].median()
    dense = (smooth - background) * mask
    count = max(1, round(_DENSEST_SHARE * float(mask.sum())))
    weight = (dense - _DENSE_FRACTION * dense.flatten().topk(count).values.mean()).clamp_min(0)
    offset = torch.arange(size, device=volume.device, dtype=volume.dtype) - size // 2
    moments = [(weight.sum(axes) * offset).sum() for axes in ((0, 1), (0, 2), (1, 2))]
    return torch.stack(moments) / weight.sum().clamp_min(1e-30)


def _frequencies(volume: Tensor) -> Tensor:
    """(kx, ky, kz) in cycles per box of the map's half-complex grid: (D, D, D // 2 + 1, 3)."""
    size = volume.shape[-1]
    ky, kx = (k.to(volume.dtype) for k in frequency_grid(size, volume.device))
    shape = (size, size, size // 2 + 1)
    return torch.stack([kx.expand(shape), ky[None].expand(shape), ky[:, :, None].expand(shape)], dim=-1)
