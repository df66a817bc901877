"""Images as a microscope session gives them: molecules in ice, noise of real micrographs, and what lies beside particles.

Constants were fitted to spectra measured on micrographs of beta-galactosidase (``docs/decisions/0061-like-session.md``).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..imaging.fourier import fft_image, fft_volume, ifft_image, ifft_volume, low_pass_volume, radius_px, volume_radius_px
from .session_plan import SessionPlan

# the ice begins where a molecule ends, blurred by a Gaussian with this B factor (A^2): standard deviation 3.2 A
_ICE_B_FACTOR = 800.0
# the molecule is about evenly dense at this resolution
_DENSITY_RESOLUTION_ANGSTROM = 20.0
# of white noise for 1 A^2, in A of molecule of its typical density in ice: fitted to beta-galactosidase
_NOISE_DENSITY_ANGSTROM2 = 114.0
# (excess of the power over that at 6 to 9 A, A at which it has fallen to a half, steepness) of the noise of micrographs
_NOISE_EXCESS = ((0.42, 16.8, 6), (4.5, 345.0, 2))
# of the minor state's end
_DOMAIN_EDGE_PX = 1.0
# of ice crystals and carbon, in standard deviations of the clean images: strong enough to be seen
_ICE_DEPTH = (4.0, 12.0)
_CARBON_DEPTH = 3.0
# additional noise of the carbon film, relative to that of the ice
_CARBON_NOISE = 0.5
# background is measured farther from the centre than this, in boxes
_BACKGROUND_RADIUS_BOXES = 0.45


def in_ice(volume: Float[Tensor, "d d d"], pixel_size_angstrom: float, ice_density: float) -> Float[Tensor, "d d d"]:
    """The potential of a molecule in vacuum less that of the ice it displaces, ``ice_density`` of its own blurred one."""
    k = volume_radius_px(len(volume)) / (len(volume) * pixel_size_angstrom)
    return ifft_volume(fft_volume(volume) * (1 - ice_density * torch.exp(-_ICE_B_FACTOR / 4 * k.square())))


def real_scale(volume: Float[Tensor, "d d d"], pixel_size_angstrom: float) -> float:
    """Factor that gives the map the signal that it would have in typical micrographs, in noise of variance 1.

    The noise of an area depends on the dose alone, the signal on the length of molecule along the beam; so the map's
    grey values are compared with the typical density of the molecule, a mean weighted by density.
    """
    box = len(volume)
    dense = low_pass_volume(volume, box * pixel_size_angstrom / _DENSITY_RESOLUTION_ANGSTROM).clamp_min(0)
    density = float(dense.square().sum() / dense.sum())
    plateau = 1 / math.sqrt(_mean_noise_power(box, pixel_size_angstrom))
    return plateau * pixel_size_angstrom**2 / (density * _NOISE_DENSITY_ANGSTROM2)


def without_domain(volume: Float[Tensor, "d d d"], direction: Float[Tensor, "3"], fraction: float) -> Float[Tensor, "d d d"]:
    """The map without its end along ``direction`` (x, y, z), which has ``fraction`` of the density; the cut is soft."""
    axis = torch.arange(len(volume)) - len(volume) // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    along = x * direction[0] + y * direction[1] + z * direction[2]
    dense = torch.where(volume > 0.15 * volume.max(), volume, 0.0).flatten()
    order = along.flatten().argsort()
    inside = dense[order].double().cumsum(0)
    cut = along.flatten()[order][torch.searchsorted(inside, (1 - fraction) * inside[-1])]
    return volume * torch.sigmoid((cut - along) / _DOMAIN_EDGE_PX)


def envelope(plan: SessionPlan, rows: Int[np.ndarray, " k"], box_size_px: int, pixel_size_angstrom: float
             ) -> Float[Tensor, "k {box_size_px} {box_size_px}//2+1"]:
    """Contrast of each particle times the fall-off by its micrograph's B factor."""
    k = radius_px(box_size_px) / (box_size_px * pixel_size_angstrom)
    return plan.contrast[rows, None, None] * torch.exp(-plan.b_factor[rows, None, None] / 4 * k.square())


def _noise_power(box_size_px: int, pixel_size_angstrom: float, excess: float | Tensor) -> Tensor:
    """Power over that of the plateau at high resolution, on the half-complex grid."""
    k = radius_px(box_size_px) / (box_size_px * pixel_size_angstrom)
    return 1 + excess * sum(size / (1 + (k * length) ** steepness) for size, length, steepness in _NOISE_EXCESS)


def _mean_noise_power(box_size_px: int, pixel_size_angstrom: float) -> float:
    """Of a typical micrograph, over all frequencies: the columns of the half that have mates count twice."""
    power = _noise_power(box_size_px, pixel_size_angstrom, 1.0)
    mates = torch.full((box_size_px // 2 + 1,), 2.0)
    mates[[0, -1]] = 1.0
    return float((power * mates).sum() / box_size_px**2)


@dataclass(frozen=True)
class SessionBackground:
    """What is added to the clean images of a plan.

    ``signal_deviation``: standard deviation of the clean images, the unit of gradient and contamination.
    """

    plan: SessionPlan
    junk_kind: Shaped[np.ndarray, " n"]
    pixel_size_angstrom: float
    signal_deviation: float
    gradient: float
    has_noise: bool

    def added_to(self, clean: Float[Tensor, "k b b"], rows: Int[np.ndarray, " k"], generator: torch.Generator
                 ) -> Float[Tensor, "k b b"]:
        """The clean images of ``rows`` with noise, gradient, ice and carbon, their background normalised as by RELION's
        extraction: mean 0 and standard deviation 1."""
        images = clean + self._gradients(*clean.shape[:2], generator)
        noise = self._noise(rows, clean.shape[-1], generator) if self.has_noise else torch.zeros_like(clean)
        for index, kind in enumerate(self.junk_kind[rows]):
            if kind == "ice":
                images[index] += self.signal_deviation * _ice(clean.shape[-1], generator)
            if kind == "carbon-edge":
                carbon = _carbon(clean.shape[-1], generator)
                images[index] += _CARBON_DEPTH * self.signal_deviation * carbon
                noise[index] *= 1 + _CARBON_NOISE * carbon
        images += noise
        return normalised(images) if self.has_noise else images

    def _noise(self, rows: np.ndarray, box_size_px: int, generator: torch.Generator) -> Tensor:
        """Noise (k, B, B) with level and spectrum of the micrographs, variance 1 in a typical one."""
        white = torch.randn(len(rows), box_size_px, box_size_px, generator=generator)
        power = _noise_power(box_size_px, self.pixel_size_angstrom, self.plan.noise_excess[rows, None, None])
        power = power / _mean_noise_power(box_size_px, self.pixel_size_angstrom)
        return self.plan.noise_level[rows, None, None] * ifft_image(fft_image(white) * power.sqrt())

    def _gradients(self, k: int, box_size_px: int, generator: torch.Generator) -> Tensor:
        y, x = _grid(box_size_px)
        slope = self.gradient * self.signal_deviation * torch.randn(k, 2, generator=generator)
        return slope[:, 0, None, None] * x + slope[:, 1, None, None] * y


def normalised(images: Float[Tensor, "k b b"]) -> Float[Tensor, "k b b"]:
    """Mean 0 and standard deviation 1 outside the inscribed circle, nearly."""
    background = images[:, torch.hypot(*_grid(images.shape[-1])) > _BACKGROUND_RADIUS_BOXES]
    return (images - background.mean(1)[:, None, None]) / background.std(1)[:, None, None]


def _grid(box_size_px: int) -> tuple[Tensor, Tensor]:
    """y and x (B, B) of each pixel, in boxes."""
    axis = (torch.arange(box_size_px) - box_size_px // 2) / box_size_px
    return torch.meshgrid(axis, axis, indexing="ij")


def _ice(box_size_px: int, generator: torch.Generator) -> Tensor:
    """An ice crystal: a flat body with a few straight sides, bright where protein is bright (both scatter)."""
    y, x = _grid(box_size_px)
    place_y, place_x, radius, depth, turn = torch.rand(5, generator=generator).tolist()
    y, x, radius = y - 0.7 * (place_y - 0.5), x - 0.7 * (place_x - 0.5), 0.1 + 0.2 * radius
    angle = 2 * math.pi * (turn + (torch.arange(6) + 0.6 * torch.rand(6, generator=generator)) / 6)
    reach = (x[..., None] * torch.cos(angle) + y[..., None] * torch.sin(angle)).amax(-1)
    body = torch.sigmoid((radius - reach) * box_size_px / 1.5)
    return (_ICE_DEPTH[0] + (_ICE_DEPTH[1] - _ICE_DEPTH[0]) * depth) * body


def _carbon(box_size_px: int, generator: torch.Generator) -> Tensor:
    """0 over the hole, 1 over the carbon film, whose edge runs through the box."""
    y, x = _grid(box_size_px)
    turn, place = torch.rand(2, generator=generator).tolist()
    angle = 2 * math.pi * turn
    return torch.sigmoid((x * math.cos(angle) + y * math.sin(angle) + 0.5 * (place - 0.5)) * box_size_px / 1.5)
