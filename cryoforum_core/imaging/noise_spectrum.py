"""The power spectrum of the noise, from the background of the images, and weights by it."""

import torch
from jaxtyping import Float
from torch import Tensor

from .fourier import fft_image, shell_average, shell_index
from .masks import soft_circle


def background_mask(box_size_px: int, particle_radius_px: float, edge_px: float = 3.0,
                    device: torch.device | str = "cpu") -> Float[Tensor, "{box_size_px} {box_size_px}"]:
    """1 in the background, 0 within the particle's circle: (B, B)."""
    return 1.0 - soft_circle(box_size_px, particle_radius_px, edge_px, device)


def noise_power_spectrum(images: Float[Tensor, "n b b"], particle_radius_px: float) -> Float[Tensor, " b//2+1"]:
    """Mean of |fft_image(noise)|^2 over each shell (B // 2 + 1,), from the background of images (N, B, B).

    The background is what lies outside the particle's circle, less a plane fitted to it: a gradient would reach all low
    shells. Masking smooths the spectrum over a few shells; the mask's energy, and the part of white noise's power that the
    plane takes in each shell, are divided out. White noise of variance v gives B^2 v in every shell.
    """
    power, mask = _background_power(images, particle_radius_px)
    return _spectrum(power.mean(0), mask)


def noise_power_spectra(images: Float[Tensor, "n b b"], particle_radius_px: float) -> Float[Tensor, "n b//2+1"]:
    """``noise_power_spectrum`` of each image."""
    return _spectrum(*_background_power(images, particle_radius_px))


def _background_power(images: Tensor, particle_radius_px: float) -> tuple[Tensor, Tensor]:
    """Power of the transforms (n, B, B // 2 + 1) of what the mask (B, B) leaves of images less their planes."""
    mask = background_mask(images.shape[-1], particle_radius_px, device=images.device)
    return fft_image((images - fitted_plane(images, mask)) * mask).abs().square(), mask


def fitted_plane(images: Float[Tensor, "n b b"], mask: Float[Tensor, "b b"]) -> Float[Tensor, "n b b"]:
    """The plane fitted by least squares to each image (B, B), its pixels weighted by the mask."""
    # not as matrix products, whose last digit depends on the number of images
    return sum((images * (mask * each)).sum((-2, -1), keepdim=True) * each for each in _planes(mask))


def _planes(mask: Tensor) -> Float[Tensor, "3 b b"]:
    """A constant and two slopes that are orthonormal where pixels have the mask as weight."""
    axis = torch.arange(len(mask), dtype=torch.float64, device=mask.device) - len(mask) // 2
    planes = torch.stack([torch.ones_like(mask, dtype=torch.float64), *torch.meshgrid(axis, axis, indexing="ij")])
    products = torch.einsum("iyx,jyx,yx->ij", planes, planes, mask.double())
    lower = torch.linalg.cholesky(products)
    return torch.linalg.solve_triangular(lower, planes.flatten(1), upper=False).reshape(planes.shape).to(mask.dtype)


def _white_power(mask: Tensor) -> Float[Tensor, " shells"]:
    """Mean power in each shell that white noise of variance 1 has after mask and plane.

    With g_j the mask times plane j, noise n becomes mask n - sum_j g_j <g_j, n>."""
    weighted = mask * _planes(mask)
    transforms, again = fft_image(weighted), fft_image(mask * weighted)
    products = torch.einsum("iyx,jyx->ij", weighted, weighted)
    taken = 2 * (transforms.conj() * again).real.sum(0) - torch.einsum(
        "ij,iyx,jyx->yx", products.to(transforms.dtype), transforms, transforms.conj()).real
    return shell_average(mask.square().sum() - taken, len(mask))


def _spectrum(power: Tensor, mask: Tensor) -> Tensor:
    box_size_px = len(mask)
    spectrum = shell_average(power, box_size_px) * box_size_px ** 2 / _white_power(mask)
    # the plane and the mask empty the first shells; the next one is the best guess of them
    first = spectrum[..., 2:3]
    return torch.cat([first, first, spectrum[..., 2:]], -1).clamp_min(torch.finfo(spectrum.dtype).tiny)


def noise_weight(spectrum: Float[Tensor, " {box_size_px}//2+1"], box_size_px: int
                 ) -> Float[Tensor, "{box_size_px} {box_size_px}//2+1"]:
    """1 / noise power on the grid of ``fft_image``: (B, B // 2 + 1)."""
    return 1.0 / spectrum[shell_index(box_size_px, spectrum.device)]
