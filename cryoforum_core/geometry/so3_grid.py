"""Grids of rotations: all of SO(3), evenly, and the neighbourhood of a rotation."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .rotations import rotation_vector_to_quaternion

# the two irrational numbers of the spirals, from Alexa 2022: the square root of 2 and the positive root of psi^4 = psi + 4
_PHI = math.sqrt(2)
_PSI = 1.533751168755204288118041


def super_fibonacci(n: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
                    ) -> Float[Tensor, "{n} 4"]:
    """``n`` rotations that cover SO(3) evenly: quaternions (n, 4).

    Alexa, "Super-Fibonacci Spirals: Fast, Low-Discrepancy Sampling of SO(3)", CVPR 2022, algorithm 1.
    """
    s = torch.arange(n, dtype=torch.float64) + 0.5
    inner, outer = torch.sqrt(s / n), torch.sqrt(1 - s / n)
    alpha, beta = 2 * math.pi * s / _PHI, 2 * math.pi * s / _PSI
    grid = torch.stack([inner * torch.sin(alpha), inner * torch.cos(alpha),
                        outer * torch.sin(beta), outer * torch.cos(beta)], dim=-1)
    return grid.to(device=device, dtype=dtype)


def n_rotations_for_step(step_deg: float) -> int:
    """Size of a ``super_fibonacci`` grid whose neighbours are about ``step_deg`` apart (SO(3)'s volume is 8 pi^2)."""
    return math.ceil(8 * math.pi ** 2 / math.radians(step_deg) ** 3)


def local_offsets(radius_deg: float, step_deg: float, dtype: torch.dtype = torch.float32,
                  device: torch.device | str = "cpu") -> Float[Tensor, "m 4"]:
    """Rotations within ``radius_deg`` of the identity, the identity first, nearest first: quaternions (m, 4).

    A body-centred cubic lattice of rotation vectors, neighbours ``step_deg`` apart: of the lattices it leaves the
    smallest holes (0.65 steps from the nearest point). Compose on either side of a rotation to search around it.
    """
    edge_deg = step_deg * 2 / math.sqrt(3)
    reach = math.ceil(radius_deg / edge_deg)
    cells = torch.arange(-reach, reach + 1, dtype=torch.float64)
    corners = torch.cartesian_prod(cells, cells, cells)
    vectors_deg = torch.cat([corners, corners + 0.5]) * edge_deg
    length_deg = vectors_deg.norm(dim=-1)
    inside = length_deg <= radius_deg * (1 + 1e-9)
    vectors_deg = vectors_deg[inside][torch.argsort(length_deg[inside], stable=True)]
    return rotation_vector_to_quaternion(torch.deg2rad(vectors_deg)).to(device=device, dtype=dtype)
