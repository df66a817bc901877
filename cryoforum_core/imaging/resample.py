"""Maps brought to another pixel size and box."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from .fourier import crop_volume, fft_volume, ifft_volume

# boxes up to so many pixels larger are tried: among 32 even sizes one fits any ratio to within 0.1 %
_MAX_EXTRA_PADDING = 64


def resample_volume(volume: Float[Tensor, "d d d"], pixel_size_angstrom: float, new_pixel_size_angstrom: float,
                    new_box_size_px: int) -> Float[Tensor, "{new_box_size_px} {new_box_size_px} {new_box_size_px}"]:
    """A map (D, D, D) on a grid of ``new_box_size_px`` voxels of ``new_pixel_size_angstrom``, centre on centre.

    Fourier cropping and padding change the pixel size in steps of 1 / D; the map is first padded with zeros to the D that
    comes nearest to the wanted one (within 0.1 % for boxes of 64 and more). Values scale so that projections (sums over
    z) keep their grey values.
    """
    ratio = pixel_size_angstrom / new_pixel_size_angstrom
    padded_size, resampled_size = _padding_for(len(volume), ratio)
    if resampled_size != padded_size:
        volume = _in_box(volume, padded_size)
        volume = (crop_volume if resampled_size < padded_size else _pad_transform)(volume, resampled_size)
    return _in_box(volume, new_box_size_px)


def _padding_for(size: int, ratio: float) -> tuple[int, int]:
    """The even size >= ``size`` whose multiple by ``ratio`` is nearest to an even number, and that number."""
    candidates = range(size, size + _MAX_EXTRA_PADDING, 2)
    # of equally good ones the smallest: a hundredth of a percent for each step
    padded = min(candidates, key=lambda d: abs(2 * round(d * ratio / 2) / (d * ratio) - 1) + 1e-4 * (d - size) / size)
    return padded, 2 * round(padded * ratio / 2)


def _in_box(volume: Tensor, box_size_px: int) -> Tensor:
    before = box_size_px // 2 - len(volume) // 2  # negative padding crops
    return functional.pad(volume, (before, box_size_px - len(volume) - before) * 3)


def _pad_transform(volume: Tensor, new_size: int) -> Tensor:
    """A map (d, d, d) with more, smaller voxels (D, D, D): the inverse of ``crop_volume``."""
    size, half = len(volume), len(volume) // 2
    rows = torch.cat([torch.arange(half, device=volume.device),
                      torch.arange(new_size - half, new_size, device=volume.device)])
    transform = fft_volume(volume)
    padded = transform.new_zeros(new_size, new_size, new_size // 2 + 1)
    padded[rows[:, None], rows[None, :], :half + 1] = transform
    return ifft_volume(padded) * (new_size / size) ** 2
