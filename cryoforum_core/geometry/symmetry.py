"""Point groups of molecules, with RELION's axes: C and D (fold axis z, two-fold axis x), T, O, I1 to I4 (I = I2).

A symmetry operation g moves the molecule into itself, so the poses A and A g give the same image. The axes are those
of RELION 3.1 (``symmetries.cpp``; ``relion_refine --sym NAME --print_symmetry_ops`` prints the same matrices).
"""

import functools
import math
import re

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .rotations import angular_distance_rad, compose, inverse, rotation_vector_to_quaternion

KNOWN_GROUPS = "c1, c2, ... (any cN), d1, d2, ... (any dN), t, o, i (= i2), i1, i2, i3, i4"

# the golden ratio: corners of an icosahedron are at (0, 1, golden ratio) and its cyclic permutations
_GOLDEN = (1 + math.sqrt(5)) / 2
_X = (1.0, 0.0, 0.0)
_Z = (0.0, 0.0, 1.0)
# fold and axis of the generators; the axes need not have unit length
_GENERATORS = {
    "t": [(3, _Z), (2, (0.0, math.sqrt(2), 1.0))],
    "o": [(3, (1.0, 1.0, 1.0)), (4, _Z)],
    "i1": [(2, _X), (5, (_GOLDEN, 0.0, -1.0))],
    "i2": [(2, _Z), (5, (1.0, 0.0, _GOLDEN))],
    "i3": [(2, (-1.0, 0.0, _GOLDEN)), (5, _Z)],
    "i4": [(2, (1.0, 0.0, _GOLDEN)), (5, _Z)],
}


def normalise_name(name: str) -> str:
    """``"C3"`` -> ``"c3"``, ``"I"`` -> ``"i2"``. Raises InputError for a name that is no point group."""
    found = name.strip().lower()
    found = {"i": "i2"}.get(found, found)
    if found not in _GENERATORS and not re.fullmatch(r"[cd][1-9]\d*", found):
        raise InputError(f"The symmetry must be a point group in RELION's notation; {name!r} is none. "
                         f"Known: {KNOWN_GROUPS}.")
    return found


def symmetry_group(name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
                   ) -> Float[Tensor, "g 4"]:
    """The rotations of a point group as quaternions (G, 4), the identity first.

    ``name``: cN, dN, t, o, i, i1, i2, i3 or i4 in either case. Raises InputError for any other name.
    """
    return _group(normalise_name(name)).to(device=device, dtype=dtype)


@functools.lru_cache(maxsize=32)
def _group(name: str) -> Tensor:
    if name in _GENERATORS:
        generators = _GENERATORS[name]
    else:
        fold = int(name[1:])
        generators = [(fold, _Z)] + ([(2, _X)] if name[0] == "d" else [])
    return _closure([_turn(fold, axis) for fold, axis in generators])


def _turn(fold: int, axis: tuple[float, float, float]) -> Tensor:
    direction = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    return rotation_vector_to_quaternion(direction * (2 * math.pi / fold))


def _closure(generators: list[Tensor]) -> Tensor:
    """All products of the generators: elements are multiplied until nothing new appears."""
    elements = [torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)]
    for element in elements:  # grows while it is walked through
        for generator in generators:
            product = compose(element, generator)
            if torch.stack(elements).mv(product).abs().max() < 1 - 1e-6:
                elements.append(product)
    return torch.stack(elements)


def nearest_equivalent(quaternion: Float[Tensor, "*#batch 4"], reference: Float[Tensor, "*#batch 4"],
                       group: Float[Tensor, "g 4"]) -> Float[Tensor, "... 4"]:
    """Of the equivalent poses q g, the one nearest to the reference, with the sign that makes their dot product >= 0.

    quaternion, reference: (..., 4), broadcast; group: (G, 4). Returns (..., 4), differentiable in ``quaternion``.
    """
    quaternion, reference = torch.broadcast_tensors(quaternion, reference)
    group = group.to(quaternion)
    with torch.no_grad():
        # <q g, r> = <g, q^-1 r>: one matrix product instead of G compositions
        overlap = compose(inverse(quaternion), reference) @ group.T
        best = overlap.abs().argmax(dim=-1, keepdim=True)
        sign = torch.where(overlap.gather(-1, best) < 0, -1.0, 1.0)
    return compose(quaternion, group[best.squeeze(-1)] * sign)


def symmetric_distance_rad(first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"], group: Float[Tensor, "g 4"]
                           ) -> Float[Tensor, "..."]:
    """Smallest angle in radians between poses over the molecule's symmetry: (..., 4), (..., 4), (G, 4) -> (...,)."""
    if len(group) > 1:
        first = nearest_equivalent(first, second, group)
    return angular_distance_rad(first, second)


def symmetric_distance_deg(first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"], group: Float[Tensor, "g 4"]
                           ) -> Float[Tensor, "..."]:
    """As ``symmetric_distance_rad``, in degrees."""
    return torch.rad2deg(symmetric_distance_rad(first, second, group))
