"""Images brought to another pixel size and box, with the distortion of anisotropic magnification undone.

RELION's magnification matrix M acts on frequencies: the transform of the distorted image at k is that of the undistorted
one at ``M k``, so that the undistorted image at y shows what the recorded one shows at ``M' y`` (M' is the transpose).
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from .fourier import ifft_image

# rows of M, one after the other
Magnification = tuple[float, float, float, float]
NO_MAGNIFICATION: Magnification = (1.0, 0.0, 0.0, 1.0)
# beyond the new image's edge, where the mirrored image fades out: a step there would ring into the image
_MARGIN_PX = 12


def resample_images(images: Float[Tensor, "n b b"], pixel_size_angstrom: float, new_pixel_size_angstrom: float,
                    new_box_size_px: int, magnification: Magnification = NO_MAGNIFICATION
                    ) -> Float[Tensor, "n {new_box_size_px} {new_box_size_px}"]:
    """Images (n, B, B) on another grid, centre on centre, grey values kept, the magnification undone: (n, b, b).

    Band-limited interpolation: Fourier shears for the off-diagonal part of M, and a discrete Fourier transform at the
    frequencies of the new grid for the scales, whatever their ratio. Beyond the recorded edge the images are mirrored, so
    that noise has the same power there. The new pixels may be smaller than the recorded ones by no more than what
    magnification explains (the frequencies between the two Nyquist limits are aliases).
    """
    box_size_px = images.shape[-1]
    m00, m01, m10, m11 = magnification
    scale_y, shear_x = m11, m10 / m11
    scale_x = m00 - m10 * m01 / m11
    shear_y = m01 / scale_x
    reach = new_box_size_px * new_pixel_size_angstrom / pixel_size_angstrom * max(abs(m00) + abs(m10), abs(m01) + abs(m11))
    # mirroring can only double an image
    margin = min(max(0, math.ceil((reach - box_size_px) / 2)) + _MARGIN_PX, box_size_px - 1)
    mean = images.mean((-2, -1), keepdim=True)
    padded = functional.pad((images - mean)[:, None], (margin,) * 4, mode="reflect")[:, 0]
    fade = torch.ones(padded.shape[-1], device=images.device)
    edge = min(margin, _MARGIN_PX)
    fade[:edge] = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(edge, device=images.device) + 0.5) / edge)
    fade[-edge:] = fade[:edge].flip(0)
    padded = padded * fade * fade[:, None]
    padded = _sheared(_sheared(padded, shear_x, -1), shear_y, -2)
    size = padded.shape[-1]
    ratio = pixel_size_angstrom / new_pixel_size_angstrom
    # large enough that what lies beyond it is folded back outside the new box only
    wide = 2 * math.ceil((size * ratio / min(abs(scale_x), abs(scale_y)) + new_box_size_px) / 4 + 1)
    rows, columns = (_fourier_matrix(size, wide, ratio / scale, half, images.device)
                     for scale, half in ((scale_y, False), (scale_x, True)))
    along_x = torch.complex(padded @ columns.real.T, padded @ columns.imag.T)
    transforms = rows @ along_x * (ratio**2 / (scale_x * scale_y))
    # centre B // 2 on b // 2
    inside = slice(wide // 2 - new_box_size_px // 2, wide // 2 + new_box_size_px // 2)
    return ifft_image(transforms)[:, inside, inside] + mean


def _sheared(images: Tensor, shear: float, axis: int) -> Tensor:
    """``image(x + shear y, y)`` along the last axis, ``image(x, y + shear x)`` along the one before; centre B // 2."""
    if shear == 0.0:
        return images
    size = images.shape[-1]
    frequency = torch.fft.rfftfreq(size, device=images.device, dtype=torch.float64)
    offset = torch.arange(size, device=images.device, dtype=torch.float64) - size // 2
    angle = 2.0 * torch.pi * shear * torch.outer(offset, frequency)
    if axis == -2:
        angle = angle.T
    phase = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
    return torch.fft.irfft(torch.fft.rfft(images, dim=axis) * phase, n=size, dim=axis)


@lru_cache(maxsize=32)
def _fourier_matrix(size: int, new_size: int, ratio: float, half: bool, device: torch.device) -> Tensor:
    """The transform of ``size`` samples about their centre, at the frequencies of ``new_size`` samples whose distance is
    1 / ``ratio`` of theirs: (new_size or new_size // 2 + 1, size)."""
    frequency = (torch.fft.rfftfreq if half else torch.fft.fftfreq)(new_size, device=device, dtype=torch.float64) * ratio
    angle = -2.0 * torch.pi * torch.outer(frequency, torch.arange(size, device=device, dtype=torch.float64) - size // 2)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
