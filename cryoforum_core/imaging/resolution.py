"""Fourier shell correlation and the resolution read from it."""

import torch
from jaxtyping import Float
from torch import Tensor

from .fourier import fft_volume, volume_radius_px


def fourier_shell_correlation(first: Float[Tensor, "d d d"], second: Float[Tensor, "d d d"]) -> Float[Tensor, " d//2+1"]:
    """Correlation of two maps (D, D, D) in each shell of their transforms: (D // 2 + 1,), shell 0 included."""
    size = first.shape[-1]
    a, b = fft_volume(first.double()), fft_volume(second.double())
    half = torch.arange(size // 2 + 1, device=first.device)
    shells = volume_radius_px(size, first.device).round().long()
    # columns kx > 0 stand for two pixels of the full transform
    multiplicity = torch.where((half == 0) | (half == size // 2), 1.0, 2.0)
    n_shells = size // 2 + 1

    def shell_sum(values: Tensor) -> Tensor:
        return torch.bincount(shells.flatten(), (values * multiplicity).flatten())[:n_shells]

    cross = shell_sum((a * b.conj()).real)
    return cross / torch.sqrt(shell_sum(a.abs().square()) * shell_sum(b.abs().square())).clamp_min(1e-300)


def resolution_angstrom(fsc: Float[Tensor, " shells"], box_size_px: int, pixel_size_angstrom: float,
                        threshold: float = 0.143) -> float:
    """Where the FSC first falls below ``threshold``, interpolated between shells; the Nyquist limit if it never does."""
    extent_angstrom = box_size_px * pixel_size_angstrom
    for shell in range(1, len(fsc)):
        # also where it is NaN: nothing agrees there
        if not fsc[shell] >= threshold:
            before, after = float(fsc[shell - 1]), float(fsc[shell])
            fraction = (before - threshold) / (before - after) if before > after else 0.0
            return extent_angstrom / max(shell - 1 + fraction, 0.5)
    return 2.0 * pixel_size_angstrom
