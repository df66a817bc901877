"""Soft masks in real space."""

import torch
from torch import Tensor


def _raised_cosine(radius: Tensor, edge_start: float, edge_px: float) -> Tensor:
    """1 inside ``edge_start``, 0 beyond ``edge_start + edge_px``, a raised cosine between."""
    if edge_px <= 0:
        return (radius <= edge_start).to(radius.dtype)
    ramp = ((radius - edge_start) / edge_px).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(torch.pi * ramp)


def soft_circle(box_size_px: int, radius_px: float, edge_px: float = 3.0,
                device: torch.device | str = "cpu") -> Tensor:
    """A disc of ``radius_px`` around the centre B // 2, falling to 0 over ``edge_px`` outside: (B, B)."""
    offset = torch.arange(box_size_px, device=device, dtype=torch.float32) - box_size_px // 2
    return _raised_cosine(torch.hypot(offset[:, None], offset[None, :]), radius_px, edge_px)


def soft_sphere(box_size_px: int, radius_px: float, edge_px: float = 3.0,
                device: torch.device | str = "cpu") -> Tensor:
    """A ball of ``radius_px`` around the centre D // 2, falling to 0 over ``edge_px`` outside: (D, D, D)."""
    squared = (torch.arange(box_size_px, device=device, dtype=torch.float32) - box_size_px // 2).square()
    radius = torch.sqrt(squared[:, None, None] + squared[None, :, None] + squared[None, None, :])
    return _raised_cosine(radius, radius_px, edge_px)
