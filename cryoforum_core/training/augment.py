"""Augmentation of labelled images by rotation, shift, magnification, contrast and noise, with their poses and CTFs."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..geometry.rotations import compose, in_plane_quaternion
from ..imaging.fourier import fft_image, ifft_image

# standard deviations of the variations, each about what particles of one data set differ by
# of the shift, as a part of the box: particles as they are picked
SHIFT = 0.02
# of the logarithm of the magnification: calibration and the height in the ice
MAGNIFICATION = 0.01
# of the logarithm of the contrast: thickness of the ice
CONTRAST = 0.2
# of the amplitude of additional noise, relative to the data's own
NOISE = 0.2


def transform_images(images: Float[Tensor, "n b b"], angle_rad: Float[Tensor, " n"], displacement_px: Float[Tensor, "n 2"],
                     magnification: Float[Tensor, " n"]) -> Float[Tensor, "n b b"]:
    """Images rotated about their centres (+x towards +y) and magnified, then shifted by (x, y) in pixels.

    Sampled from the image on a grid twice as fine, so that the interpolation does not smooth the noise; what comes from
    outside is mirrored.
    """
    n, box_size_px = len(images), images.shape[-1]
    fine = _on_finer_grid(images)
    offset = torch.arange(box_size_px, device=images.device, dtype=images.dtype) - box_size_px // 2
    x, y = offset[None, None, :] - displacement_px[:, :1, None], offset[None, :, None] - displacement_px[:, 1:, None]
    cos = (torch.cos(angle_rad) / magnification)[:, None, None]
    sin = (torch.sin(angle_rad) / magnification)[:, None, None]
    source = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1)
    # pixel i of the fine grid is at i / 2 - B // 2 (even boxes)
    grid = (2 * source + 2 * (box_size_px // 2)) * (2.0 / (2 * box_size_px - 1)) - 1.0
    return functional.grid_sample(fine[:, None], grid.expand(n, -1, -1, -1), mode="bicubic", padding_mode="reflection",
                                  align_corners=True)[:, 0]


def _on_finer_grid(images: Tensor) -> Tensor:
    """Images (n, B, B) with half the pixel size: (n, 2B, 2B)."""
    box_size_px = images.shape[-1]
    half = box_size_px // 2
    coarse = fft_image(images)
    fine = coarse.new_zeros(len(images), 2 * box_size_px, box_size_px + 1)
    # the Nyquist row and column stand for both signs of the frequency, which are apart in the finer grid
    coarse[..., half] *= 0.5
    coarse[..., half, :] *= 0.5
    fine[:, :half + 1, :half + 1] = coarse[:, :half + 1]
    fine[:, -half:, :half + 1] = coarse[:, half:]
    return 4.0 * ifft_image(fine)


def transform_labels(quaternion: Float[Tensor, "n 4"], shift_angstrom: Float[Tensor, "n 2"], angle_rad: Float[Tensor, " n"],
                     displacement_angstrom: Float[Tensor, "n 2"], magnification: Float[Tensor, " n"]
                     ) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n 2"]]:
    """The pose and origin of particles after ``transform_images``: the rotation multiplies on the left, and the
    origin is minus the displacement."""
    cos, sin = (magnification * torch.cos(angle_rad)), (magnification * torch.sin(angle_rad))
    x, y = shift_angstrom.unbind(-1)
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    return compose(in_plane_quaternion(angle_rad), quaternion), turned - displacement_angstrom


def random_transforms(n: int, box_size_px: int, generator: torch.Generator
                      ) -> tuple[Float[Tensor, " {n}"], Float[Tensor, "{n} 2"], Float[Tensor, " {n}"]]:
    """Angles in radians, displacements in pixels and magnifications."""
    options = {"generator": generator, "device": generator.device}
    angle = 2 * math.pi * torch.rand(n, **options)
    displacement = SHIFT * box_size_px * torch.randn(n, 2, **options)
    return angle, displacement, torch.exp(MAGNIFICATION * torch.randn(n, **options))


def vary_grey_values(images: Float[Tensor, "n b b"], noise_amplitude: Float[Tensor, "b b//2+1"], generator: torch.Generator
                     ) -> Float[Tensor, "n b b"]:
    """Images with random contrast and some more noise of the data's own spectrum.

    noise_amplitude: standard deviation of the noise's transform over that of white noise.
    """
    n = len(images)
    options = {"generator": generator, "device": generator.device}
    contrast = torch.exp(CONTRAST * torch.randn(n, 1, 1, **options)).to(images)
    amount = (NOISE * torch.randn(n, 1, 1, **options).abs()).to(images)
    white = torch.randn(images.shape, **options).to(images)
    return contrast * images + amount * ifft_image(fft_image(white) * noise_amplitude)
