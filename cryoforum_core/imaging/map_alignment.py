"""One map brought onto another of the same or a similar molecule: rotation, translation and hand.

The amplitudes of a map's transform depend neither on its position nor on its hand, so one coarse search over all
rotations serves both hands; phases decide between the candidates it leaves. Transforms are whitened (unit power in each
shell) throughout: fine shells, which distinguish orientations, count as much per voxel as coarse ones. What is the same
in all directions is taken out, since it agrees whatever the rotation.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from ..geometry.rotations import angular_distance_deg, compose, quaternion_to_matrix
from ..geometry.so3_grid import local_offsets, n_rotations_for_step, super_fibonacci
from .fourier import crop_volume, ifft_volume
from .masks import soft_sphere
from .projection import FourierVolume
from .volume_frame import centre_of_mass_px, shift_volume

# shells below, in cycles per box, hold hardly more than the size of the molecule
MIN_RADIUS_PX = 1.5
# largest radius of coarse searches, cycles per box: a step of 8 degrees moves it by one cycle
COARSE_RADIUS_PX = 7.0
# step of coarse searches over all rotations
COARSE_STEP_DEG = 8.0
# radius and step of each level of a local search; the first is for the coarse radius, the others for the full one
LEVELS_DEG = ((6.0, 3.0), (3.0, 1.2), (1.2, 0.5), (0.5, 0.2))
# radius of the mask in boxes: nearly the sphere inscribed in the box
_MASK_BOXES = 0.47
# density beyond this radius, in boxes, does not count for the centre of the map
_CENTRING_BOXES = 0.45
# amplitudes alone rank rotations roughly: so many go on to the search with phases
_N_CANDIDATES = 24
# phases rank them well: so many go on from level to level
_N_FINALISTS = 4
# complex values sampled in one piece: some 16 MB
_SAMPLES_AT_ONCE = 2_000_000
# the rotation by 180 degrees about z: a map mirrored in z, rotated by it, is the map inverted through its centre
HALF_TURN_Z = (0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, eq=False)
class ReferenceAlignment:
    """``move_volume(volume, rotation, translation_px)`` lies on the reference; where ``is_mirrored``,
    ``move_volume(mirror_volume(volume), ...)`` does."""

    score_as_is: float
    """Correlation of the map with the reference, the mean over the voxels of the shells used (whitened)."""
    score_mirrored: float
    """The same for the mirrored map."""
    rotation: Float[Tensor, " 4"]
    """Quaternion (4,), as of ``FrameAlignment`` and ``rotate_volume``."""
    translation_px: Float[Tensor, " 3"]
    """(3,) along (x, y, z) in pixels of the map."""
    is_mirrored: bool


@dataclass(frozen=True, eq=False)
class CentredMap:
    """A map centred on its density, masked, cropped in Fourier space and whitened, ready to be sampled."""

    transform: FourierVolume
    centre_px: Float[Tensor, " 3"]
    """(3,): the centre of density, in pixels of the original map."""
    pixels_per_pixel: float
    """Pixels of the original map in one of the cropped one."""

    @classmethod
    def of(cls, volume: Float[Tensor, "d d d"], max_radius_px: float) -> "CentredMap":
        """From a map (b, b, b); ``max_radius_px``: the largest radius that will be sampled, cycles per box."""
        size, volume = len(volume), volume.float()
        centre = centre_of_mass_px(volume, _CENTRING_BOXES * size)
        masked = shift_volume(volume, -centre) * soft_sphere(size, _MASK_BOXES * size, device=volume.device)
        cropped_size = min(size, 2 * int(1.5 * max_radius_px + 1))
        transform = FourierVolume.from_real(crop_volume(masked, cropped_size), max_radius_px=max_radius_px)
        return cls(_whitened(transform), centre, size / cropped_size)


def _shell_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Means of real values over shells of the padded grid, and the index of each voxel's shell."""
    reach = (values.shape[0] - 1) // 2
    k = torch.arange(-reach, reach + 1, device=values.device).square()
    kx = torch.arange(values.shape[-1], device=values.device).square()
    shells = torch.sqrt((k[:, None, None] + k[:, None] + kx).float()).round().long()
    sums = torch.bincount(shells.flatten(), values.flatten())
    return (sums / torch.bincount(shells.flatten()).clamp_min(1)).to(values.dtype), shells


def _whitened(transform: FourierVolume) -> FourierVolume:
    spherical, shells = _shell_mean(transform.data[0, 0])
    data = torch.stack([transform.data[0, 0] - spherical[shells], transform.data[0, 1]])
    power, _ = _shell_mean(data.square().sum(0))
    data = data / torch.sqrt(power.clamp_min(1e-30))[shells]
    return FourierVolume(data[None], transform.box_size_px, transform.padding, transform.max_radius_px)


def amplitudes(transform: FourierVolume) -> FourierVolume:
    """The amplitudes of a transform less their mean in each shell, as a (real) transform that can be sampled."""
    amplitude = torch.linalg.vector_norm(transform.data[0], dim=0)
    mean, shells = _shell_mean(amplitude)
    variation = amplitude - mean[shells]
    data = torch.stack([variation, torch.zeros_like(variation)])[None]
    return FourierVolume(data, transform.box_size_px, transform.padding, transform.max_radius_px)


def half_ball(max_radius_px: float, device: torch.device | str = "cpu") -> Float[Tensor, "m 3"]:
    """Whole frequencies (kx, ky, kz) (m, 3), kx >= 0, in the shells used that are not each other's Friedel mates."""
    reach = int(max_radius_px)
    axis = torch.arange(-reach, reach + 1, device=device, dtype=torch.float32)
    k = torch.cartesian_prod(axis, axis, axis)
    first = (k * k.new_tensor([1.0, 1e-2, 1e-4])).sum(-1) > 0  # the sign of the first component that is not zero
    radius = k.norm(dim=-1)
    return k[first & (radius >= MIN_RADIUS_PX) & (radius <= max_radius_px)]


def turned_samples(transform: FourierVolume, quaternion: Float[Tensor, "n 4"], k: Float[Tensor, "m 3"]
                   ) -> Complex[Tensor, "n m"]:
    """Values (n, m) of the transforms of the map rotated by each of (n, 4), at ``k`` (m, 3)."""
    return transform.sample(k @ quaternion_to_matrix(quaternion).mT)


def cross_correlation_peak(cross: Complex[Tensor, "n m"], k: Float[Tensor, "m 3"], box_size_px: int
                           ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    """Where ``sum_k Re(cross(k) exp(2 pi i k t / box))`` is largest: t (n, 3) in whole pixels, and the mean there (n,).

    cross: (n, m) at ``k`` (m, 3) of ``half_ball``.
    """
    index = k.long()
    grid = cross.new_zeros(len(cross), box_size_px, box_size_px, box_size_px // 2 + 1)
    grid[:, index[:, 2], index[:, 1], index[:, 0]] = cross
    mate = index[:, 0] == 0
    grid[:, -index[mate, 2], -index[mate, 1], 0] = cross[:, mate].conj()
    best = ifft_volume(grid).flatten(1).argmax(dim=-1)
    zyx = torch.stack([best // box_size_px**2, best // box_size_px % box_size_px, best % box_size_px], dim=-1)
    shift = zyx.flip(-1).to(k.dtype) - box_size_px // 2
    return shift, _displaced(cross, k, shift, box_size_px).real.mean(-1)


def _displaced(cross: Tensor, k: Tensor, shift_px: Tensor, box_size_px: int) -> Tensor:
    """``cross`` (n, m) with displacements of ``shift_px`` (n, 3) undone."""
    angle = (2 * torch.pi / box_size_px) * (shift_px @ k.T)
    return cross * torch.polar(torch.ones_like(angle), angle)


def distinct(quaternion: Float[Tensor, "n 4"], score: Float[Tensor, " n"], most: int, apart_deg: float
             ) -> Int[Tensor, " kept"]:
    """Indices of the best-scored rotations (n, 4) that are at least ``apart_deg`` from each other, at most ``most``."""
    kept: list[int] = []
    for index in score.argsort(descending=True)[:20 * most].tolist():
        if not kept or angular_distance_deg(quaternion[index], quaternion[kept]).min() >= apart_deg:
            kept.append(index)
        if len(kept) == most:
            break
    return torch.tensor(kept)


def in_batches(quaternion: Float[Tensor, "n 4"], samples_each: int) -> tuple[Float[Tensor, "_ 4"], ...]:
    """Rotations (n, 4) in pieces of about a million samples."""
    return quaternion.split(max(1, _SAMPLES_AT_ONCE // samples_each))


@torch.no_grad()
def align_to_reference(volume: Float[Tensor, "b b b"], reference: Float[Tensor, "b b b"],
                       max_radius_px: float = 10.0) -> ReferenceAlignment:
    """The rotation, translation and hand that bring ``volume`` onto ``reference``, two maps (b, b, b) of one pixel size.

    Only frequencies up to ``max_radius_px`` cycles per box count. The molecule may lie anywhere in the box; the maps
    may be noisy and of similar molecules. Where the two scores are close the hand is not determined (a molecule that is
    its own mirror image at this resolution, or another one).
    """
    maps = [CentredMap.of(v, max_radius_px) for v in (volume, reference)]
    candidates = _coarse_candidates(maps[0].transform, maps[1].transform, min(max_radius_px, COARSE_RADIUS_PX))
    mirrored = _mirrored(maps[0])
    half_turn = candidates.new_tensor(HALF_TURN_Z)
    found = [_align_one_hand(maps[0], maps[1], candidates, max_radius_px),
             _align_one_hand(mirrored, maps[1], compose(half_turn, candidates), max_radius_px)]
    best = max(found, key=lambda hand: hand[0])
    return ReferenceAlignment(found[0][0], found[1][0], best[1], best[2], best is found[1])


def _mirrored(centred: CentredMap) -> CentredMap:
    flip = centred.centre_px.new_tensor([1.0, 1.0, -1.0])
    transform = centred.transform
    return CentredMap(FourierVolume(transform.data.flip(-3), transform.box_size_px, transform.padding,
                                    transform.max_radius_px), centred.centre_px * flip, centred.pixels_per_pixel)


def _coarse_candidates(transform: FourierVolume, reference: FourierVolume, max_radius_px: float) -> Tensor:
    k = half_ball(max_radius_px, transform.data.device)
    variation = amplitudes(transform)
    known = amplitudes(reference).sample(k[None])[0].real
    grid = super_fibonacci(n_rotations_for_step(COARSE_STEP_DEG), device=k.device)
    score = torch.cat([turned_samples(variation, some, k).real @ known for some in in_batches(grid, len(k))])
    return grid[distinct(grid, score, _N_CANDIDATES, COARSE_STEP_DEG)]


def _align_one_hand(centred: CentredMap, reference: CentredMap, candidates: Tensor, max_radius_px: float
                    ) -> tuple[float, Tensor, Tensor]:
    """Score, rotation (4,) and translation (3,) in pixels of the original map."""
    best = [candidates, None, None]
    for level, (radius_deg, step_deg) in enumerate(LEVELS_DEG):
        radius_px = min(max_radius_px, COARSE_RADIUS_PX) if level == 0 else max_radius_px
        best = _best_nearby(centred, reference, best[0], local_offsets(radius_deg, step_deg), radius_px)
        order = best[2].argsort(descending=True)[:_N_FINALISTS]
        best = [values[order] for values in best]
    rotation, shift, score = best[0][0], best[1][0], best[2][0]
    # the centred, rotated map is displaced by ``shift`` from the centred reference
    turned_centre = quaternion_to_matrix(rotation).T @ centred.centre_px
    translation = reference.centre_px - shift * centred.pixels_per_pixel - turned_centre
    return float(score), rotation, translation


def _best_nearby(centred: CentredMap, reference: CentredMap, rotations: Tensor, offsets: Tensor, max_radius_px: float
                 ) -> list[Tensor]:
    """For each rotation (n, 4) the best of its neighbours: rotations (n, 4), shifts (n, 3) and scores (n,)."""
    k = half_ball(max_radius_px, rotations.device)
    box = centred.transform.box_size_px
    known = reference.transform.sample(k[None])
    found = []
    for rotation in rotations:
        nearby = compose(rotation, offsets.to(rotation))
        values = torch.cat([turned_samples(centred.transform, some, k) for some in in_batches(nearby, len(k))])
        cross = values * known.conj()
        # a transform finds the translation to within a pixel, phases refine it
        shift = cross_correlation_peak(cross, k, box)[0]
        for _ in range(3):
            shift = shift + _shift_step(cross, k, shift, box)
        norm = (values.abs().square().mean(-1) * known.abs().square().mean(-1)).sqrt()
        score = _displaced(cross, k, shift, box).real.mean(-1) / norm
        best = score.argmax()
        found.append((nearby[best], shift[best], score[best]))
    return [torch.stack(values) for values in zip(*found, strict=True)]


def _shift_step(cross: Tensor, k: Tensor, shift_px: Tensor, box_size_px: int) -> Tensor:
    """A Newton step (n, 3), at most half a pixel long, towards the shift at which the phases of ``cross`` are flat."""
    centred = _displaced(cross, k, shift_px, box_size_px)
    # whitened shells make the curvature the same in all directions
    curvature = (centred.real @ k.square().sum(-1)) / 3
    step = -(box_size_px / (2 * torch.pi)) * (centred.imag @ k) / curvature.clamp_min(1e-12)[:, None]
    return step * (0.5 / step.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
