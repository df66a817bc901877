"""The axes and the centre of a symmetric molecule in a map that was made without its symmetry, in an arbitrary frame.

For a symmetry operation g of the wanted frame and a rotation R, the map has g's axis at R where its transform at R k and at
R g k is the same but for a phase linear in k, which holds the centre. Amplitudes alone, which do not depend on
the centre, leave a few candidates for R; phases decide between them, find the centre and refine both. The score is the
mean correlation of the map with its images under the operations, the operations but the identity: 1 for a symmetric map
without noise, about 0 for noise, whatever the group's order.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.rotations import compose, quaternion_to_matrix, rotation_vector_to_quaternion
from ..geometry.so3_grid import local_offsets, n_rotations_for_step, super_fibonacci
from ..geometry.symmetry import nearest_equivalent
from .map_alignment import (
    COARSE_RADIUS_PX,
    COARSE_STEP_DEG,
    LEVELS_DEG,
    MIN_RADIUS_PX,
    CentredMap,
    amplitudes,
    cross_correlation_peak,
    distinct,
    half_ball,
    in_batches,
)
from .projection import FourierVolume

NO_SYMMETRY_BELOW = 0.45
"""A map whose score is lower has no such symmetry, or is not good enough at ``max_radius_px`` to tell.

Measured in a box of 32 up to shell 10. Without the symmetry: the 30S ribosome and blobs of 40 random Gaussians 0.20 to
0.39 for C2, the weakest demand, and 0.06 to 0.31 for larger groups, with and without noise. Beta-galactosidase for its
D2: 0.99 almost without noise, 0.62 to 0.66 with noise at which the FSC against the clean map is 0.5 at shell 10.
"""

# half the step of a search over all rotations: directions of one axis are few enough
_DIRECTION_STEP_DEG = 4.0
# amplitudes alone rank frames roughly: so many go on to the search with phases
_N_CANDIDATES = 24
# phases rank them well: so many go on from level to level
_N_FINALISTS = 4
# points of the transform at which a candidate is scored, counting all that are equivalent under the group
_N_SAMPLES_COARSE = 900
# the same for the levels with phases, whose differences are smaller
_N_SAMPLES = 2400
# most operations whose translations are looked for by cross-correlation; together they fix the centre
_N_OPERATIONS = 8
# steps of iteratively reweighted least squares over the operations
_REWEIGHTED_STEPS = 10
# Gauss-Newton steps of a centre that is known to within a pixel
_CENTRE_STEPS = 2


@dataclass(frozen=True, eq=False)
class SymmetryFrame:
    """``move_volume(volume, rotation, translation_px)`` has the group's axes where RELION has them."""

    rotation: Float[Tensor, " 4"]
    """Quaternion (4,), as of ``FrameAlignment`` and ``rotate_volume``."""
    translation_px: Float[Tensor, " 3"]
    """(3,) along (x, y, z) in pixels of the map."""
    score: float
    """Mean correlation, in the (whitened) shells used, of the map with its images under the operations."""


@torch.no_grad()
def symmetry_frame(volume: Float[Tensor, "b b b"], group: Float[Tensor, "g 4"], max_radius_px: float = 10.0,
                   seed: int = 0) -> SymmetryFrame:
    """Finds the axes and the centre of a map (b, b, b) that is symmetric under ``group`` (G, 4) in some frame.

    Only frequencies up to ``max_radius_px`` cycles per box count; choose it where the map's FSC is about 0.5. Of frames
    that are equivalent for the group (rotations about the axis of a C group, the three axes of D2, T's two places in O) any
    is found. Along the axis of a C group the centre of density stays in the middle; for C1 that is all there is to do.
    """
    group = group.to(device=volume.device, dtype=torch.float32)
    centred = CentredMap.of(volume, max_radius_px)
    generator = torch.Generator().manual_seed(seed)
    rotation, centre, score = volume.new_tensor([0.0, 0.0, 0.0, 1.0]).float(), centred.centre_px.new_zeros(3), 1.0
    if len(group) > 1:
        rotation, centre, score = _search(centred.transform, group, max_radius_px, generator)
    centre_px = centred.centre_px + centre * centred.pixels_per_pixel
    return SymmetryFrame(rotation, -(quaternion_to_matrix(rotation).T @ centre_px), float(score))


@torch.no_grad()
def symmetry_score(transform: FourierVolume, group: Float[Tensor, "g 4"], max_radius_px: float = 10.0, seed: int = 0
                   ) -> float:
    """How symmetric a map is under ``group`` (G, 4) in its own frame and about its centre D // 2: 1 for a symmetric one."""
    orbits = _orbits(group.float(), max_radius_px, _N_SAMPLES, torch.Generator().manual_seed(seed))
    identity = group.new_tensor([[0.0, 0.0, 0.0, 1.0]]).float()
    return float(_agreement(_samples(transform, identity, orbits))[0])


def _search(transform: FourierVolume, group: Tensor, max_radius_px: float, generator: torch.Generator
            ) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation (4,), centre (3,) in the map's own axes and pixels, and score."""
    coarse_px = min(max_radius_px, COARSE_RADIUS_PX)
    rotations = _candidates(transform, group, _orbits(group, coarse_px, _N_SAMPLES_COARSE, generator))
    centres = torch.stack([_centre_by_correlation(transform, r, group, coarse_px, generator) for r in rotations])
    for level, (radius_deg, step_deg) in enumerate(LEVELS_DEG):
        orbits = _orbits(group, coarse_px if level == 0 else max_radius_px, _N_SAMPLES, generator)
        offsets = local_offsets(radius_deg, step_deg, device=rotations.device)
        rotations, centres, scores = _best_nearby(transform, rotations, centres, offsets, orbits)
        order = scores.argsort(descending=True)[:_N_FINALISTS]
        rotations, centres, scores = rotations[order], centres[order], scores[order]
    return rotations[0], centres[0], scores[0]


def _orbits(group: Tensor, max_radius_px: float, n_samples: int, generator: torch.Generator) -> Tensor:
    """Random frequencies, even over the ball, and all their equivalents under the group: (G, m, 3)."""
    count = max(40, math.ceil(n_samples / len(group)))
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    # one point in each of ``count`` shells of equal volume
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    radius = (MIN_RADIUS_PX**3 + share * (max_radius_px**3 - MIN_RADIUS_PX**3)).clamp_max(max_radius_px**3) ** (1 / 3)
    points = (direction * radius[:, None] * (1 - 1e-6)).to(group)
    return points @ quaternion_to_matrix(group).mT


def _agreement(values: Tensor) -> Tensor:
    """Mean correlation of values (n, G, m) at equivalent points with each other: (n,)."""
    own = values.abs().square().sum((1, 2))
    together = values.sum(1).abs().square().sum(-1)
    return (together - own) / ((values.shape[1] - 1) * own.clamp_min(1e-30))


def _frames(group: Tensor) -> Tensor:
    """Rotations (n, 4), one for each frame that differs for the group."""
    if group[:, :2].abs().max() < 1e-6:  # a C group: only where its axis lies matters, and not which end is up
        count = math.ceil(2 * math.pi / math.radians(_DIRECTION_STEP_DEG) ** 2)
        z = (torch.arange(count, device=group.device) + 0.5) / count
        around = math.pi * (3 - math.sqrt(5)) * torch.arange(count, device=group.device)
        # rotating z to the direction: about the horizontal axis at a right angle to it
        axis = torch.stack([-torch.sin(around), torch.cos(around), torch.zeros_like(z)], dim=-1)
        return rotation_vector_to_quaternion(axis * torch.acos(z)[:, None])
    grid = super_fibonacci(n_rotations_for_step(COARSE_STEP_DEG), device=group.device)
    overlap = (grid @ group.T).abs()
    return grid[overlap[:, 0] >= overlap.max(dim=-1).values - 1e-6]


def _candidates(transform: FourierVolume, group: Tensor, orbits: Tensor) -> Tensor:
    variation, frames = amplitudes(transform), _frames(group)
    scores = torch.cat([_agreement(_samples(variation, some, orbits).real)
                        for some in in_batches(frames, orbits[..., 0].numel())])
    near_identity = nearest_equivalent(frames, frames.new_tensor([0.0, 0.0, 0.0, 1.0]), group)
    return frames[distinct(near_identity, scores, _N_CANDIDATES, COARSE_STEP_DEG)]


def _samples(transform: FourierVolume, rotations: Tensor, orbits: Tensor) -> Tensor:
    """Values (n, G, m) at the equivalent points for each frame (n, 4)."""
    return transform.sample(_places(rotations, orbits)).unflatten(1, orbits.shape[:2])


def _places(rotations: Tensor, orbits: Tensor) -> Tensor:
    return orbits.flatten(0, 1) @ quaternion_to_matrix(rotations).mT


def _centre_by_correlation(transform: FourierVolume, rotation: Tensor, group: Tensor, max_radius_px: float,
                           generator: torch.Generator) -> Tensor:
    """The point (3,) that the operations leave in place, by robust least squares over their translations.

    An operation h about the point c takes r to ``h r + (1 - h) c``; cross-correlations peak at that translation.
    """
    some = 1 + torch.randperm(len(group) - 1, generator=generator)[:_N_OPERATIONS].to(group.device)
    frame = quaternion_to_matrix(rotation)
    operations = frame @ quaternion_to_matrix(group[some]) @ frame.T
    k = half_ball(max_radius_px, group.device)
    cross = transform.sample(k[None]) * transform.sample(k @ operations.mT).conj()
    shift = cross_correlation_peak(cross, k, transform.box_size_px)[0]
    # V(k) conj(V(h k)) has the phase of a displacement by (1 - h^T) c
    moved = torch.eye(3, device=k.device) - operations.mT
    weight = torch.ones(len(moved), 1, 1, device=k.device)
    for _ in range(_REWEIGHTED_STEPS):
        normal = (weight * moved.mT @ moved).sum(0)
        # along the axis of a C group nothing is determined: the smallest solution leaves the centre where it is
        centre = torch.linalg.pinv(normal, rtol=1e-3, hermitian=True) @ (weight * moved.mT @ shift[..., None]).sum(0)
        residual = (moved @ centre - shift[..., None]).norm(dim=1, keepdim=True)
        weight = 1 / residual.clamp_min(0.3)
    return centre[:, 0]


def _best_nearby(transform: FourierVolume, rotations: Tensor, centres: Tensor, offsets: Tensor, orbits: Tensor
                 ) -> tuple[Tensor, Tensor, Tensor]:
    """For each frame the best of its neighbours: rotations (n, 4), centres (n, 3) and scores (n,)."""
    found = []
    for rotation, centre in zip(rotations, centres, strict=True):
        nearby = compose(rotation, offsets)
        result = [_with_better_centre(transform, some, centre.expand(len(some), 3), orbits)
                  for some in in_batches(nearby, orbits[..., 0].numel())]
        better, scores = (torch.cat(parts) for parts in zip(*result, strict=True))
        best = scores.argmax()
        found.append((nearby[best], better[best], scores[best]))
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def _with_better_centre(transform: FourierVolume, rotations: Tensor, centres: Tensor, orbits: Tensor
                        ) -> tuple[Tensor, Tensor]:
    """Centres (n, 3) after some steps by the phases of equivalent points, and the scores there (n,)."""
    values, places = _samples(transform, rotations, orbits), _places(rotations, orbits).unflatten(1, orbits.shape[:2])
    to_rad = 2 * torch.pi / transform.box_size_px
    # only what differs within an orbit tells of the centre: all along the axis of a C group does not
    lever = (places - places.mean(1, keepdim=True)).flatten(1, 2) * to_rad
    for step in range(_CENTRE_STEPS + 1):
        angle = to_rad * (places @ centres[:, None, :, None])[..., 0]
        centred = values * torch.polar(torch.ones_like(angle), angle)
        if step == _CENTRE_STEPS:
            return centres, _agreement(centred)
        # V(k) = S(k) exp(-i k c): the phase against the orbit's mean is minus the lever times the error of c
        against = (centred * (centred.sum(1, keepdim=True) - centred).conj()).flatten(1, 2)
        normal = (lever.mT * against.abs()[:, None]) @ lever
        slope = -(lever.mT @ against.imag[..., None])
        move = (torch.linalg.pinv(normal, rtol=1e-2, hermitian=True) @ slope)[..., 0]
        centres = centres + move * (0.5 / move.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    raise AssertionError("the last step returns")
