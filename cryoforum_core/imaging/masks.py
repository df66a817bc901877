"""Soft masks in real space."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from .fourier import low_pass_volume

# in cycles per box: maps show well where the solvent begins at this radius long before they show details
_SOLVENT_MASK_RADIUS_PX = 10.0
# at better resolution the mask follows it, a little behind
_SOLVENT_MASK_OF_RESOLUTION = 0.9
# of the box
_SOLVENT_MASK_GROWTH = 0.05


def _raised_cosine(radius: Tensor, edge_start: float, edge_px: float) -> Tensor:
    """1 inside ``edge_start``, 0 beyond ``edge_start + edge_px``, a raised cosine between."""
    if edge_px <= 0:
        return (radius <= edge_start).to(radius.dtype)
    ramp = ((radius - edge_start) / edge_px).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(torch.pi * ramp)


def soft_circle(box_size_px: int, radius_px: float, edge_px: float = 3.0,
                device: torch.device | str = "cpu") -> Float[Tensor, "{box_size_px} {box_size_px}"]:
    """A disc of ``radius_px`` around the centre B // 2, falling to 0 over ``edge_px`` outside: (B, B)."""
    offset = torch.arange(box_size_px, device=device, dtype=torch.float32) - box_size_px // 2
    return _raised_cosine(torch.hypot(offset[:, None], offset[None, :]), radius_px, edge_px)


def soft_sphere(box_size_px: int, radius_px: float, edge_px: float = 3.0,
                device: torch.device | str = "cpu") -> Float[Tensor, "{box_size_px} {box_size_px} {box_size_px}"]:
    """A ball of ``radius_px`` around the centre D // 2, falling to 0 over ``edge_px`` outside: (D, D, D)."""
    squared = (torch.arange(box_size_px, device=device, dtype=torch.float32) - box_size_px // 2).square()
    radius = torch.sqrt(squared[:, None, None] + squared[None, :, None] + squared[None, None, :])
    return _raised_cosine(radius, radius_px, edge_px)


def molecule_mask(volume: Float[Tensor, "d d d"], level: float = 0.1, dilation_of_box: float = 0.05
                  ) -> Float[Tensor, "d d d"]:
    """1 where the molecule is, 0 in the solvent, with a soft edge: (D, D, D), from a low-pass filtered map.

    Voxels above ``level`` times the map's 99.5th percentile, grown by ``dilation_of_box``, edge as wide again.
    """
    size = volume.shape[-1]
    # a sample is as good for a percentile, and torch.quantile takes 16 million values at most
    strong = torch.quantile(volume.flatten()[:: max(1, volume.numel() // 4_000_000)].float(), 0.995)
    inside = (volume > level * strong).to(torch.float32)[None, None]
    reach = max(1, round(dilation_of_box * size))
    ball = (soft_sphere(2 * reach + 2, reach, 0.0, volume.device)[1:, 1:, 1:])[None, None]
    grown = (functional.conv3d(inside, ball, padding=reach) > 0.5).to(torch.float32)
    return _blurred(grown, 0.5 * reach)[0, 0].to(volume.dtype)


def solvent_mask(volume: Float[Tensor, "d d d"], resolution_radius_px: float) -> Float[Tensor, "d d d"]:
    """``molecule_mask`` of a map (D, D, D) that is good to ``resolution_radius_px`` cycles per box: drawn nearly as finely,
    and grown by a twentieth of the box. A tighter one cuts off weak density, which both half maps then lack alike
    (``docs/decisions/0037-solvent-mask.md``)."""
    radius_px = max(_SOLVENT_MASK_RADIUS_PX, _SOLVENT_MASK_OF_RESOLUTION * resolution_radius_px)
    return molecule_mask(low_pass_volume(volume, radius_px), dilation_of_box=_SOLVENT_MASK_GROWTH)


def _blurred(values: Tensor, deviation_px: float) -> Tensor:
    """A Gaussian blur of (1, 1, D, D, D), axis by axis."""
    reach = max(1, round(3 * deviation_px))
    offset = torch.arange(-reach, reach + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (offset / deviation_px).square())
    kernel = kernel / kernel.sum()
    for axis in range(3):
        shape, padding = [1] * 5, [0] * 3
        shape[2 + axis], padding[axis] = -1, reach
        values = functional.conv3d(values, kernel.reshape(shape), padding=padding)
    return values
