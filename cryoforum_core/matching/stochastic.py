"""A first map from a random start: posterior-weighted back-projection of mini-batches, resolution growing.

Each step scores a batch of images against slices of the current map at fresh random rotations and displacements,
weights the images by the posterior, and inserts them into running sums of which earlier steps are forgotten slowly
(stochastic expectation maximisation; Punjani et al. 2017 and RELION's gradient refinement start in the same way).
The map is the posterior mean under a Gaussian prior whose power per shell is known before any pose is: it is what the
images hold beyond their noise. With a point group every step's sums are symmetrised, so that the map has the group's axes
where RELION has them from the random start on.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ..geometry.rotations import compose, quaternion_to_matrix, random_quaternions
from ..geometry.so3_grid import super_fibonacci
from ..imaging.masks import soft_sphere
from ..imaging.projection import FourierVolume, Reconstructor, slice_points
from .exhaustive_search import DISPLACEMENT_STEP_OF_WAVE, displacement_grid
from .likelihood import predicted
from .whitened_images import WhitenedImages

# posterior weights below this fraction of an image's largest are left out
SMALLEST_WEIGHT = 1e-3
# the prior's power in a shell is at least this fraction of its largest: shells that show no signal yet stay open to it
_MIN_PRIOR_OF_LARGEST = 1e-3
# weight of earlier steps in the running estimate of the noise: a memory of some ten steps
NOISE_MOMENTUM = 0.9
# entries of the posterior for each rotation above which matrix products beat picking single entries
_DENSE_ABOVE = 30


@dataclass(frozen=True)
class StochasticSettings:
    """How the search goes. Radii in cycles per box, lengths in pixels of the search's images."""

    steps: int = 400
    batch_images: int = 200
    first_radius_px: float = 6.0
    last_radius_px: float = 11.0
    hold_until: float = 0.15
    """Part of the search that stays at the first radius"""
    full_from: float = 0.85
    """Part of the search after which the last radius is used"""
    first_rotations: int = 1000
    last_rotations: int = 2000
    momentum: float = 0.9
    max_displacement_px: float = 4.0
    local_displacement_px: float = 1.5
    """Images are centred by what was found for them before; displacements so far from there are tried"""
    mask_radius_px: float = 14.0

    def march(self, step: int) -> float:
        """How far the resolution has grown at a step, in [0, 1]."""
        return min(1.0, max(0.0, (step / self.steps - self.hold_until) / (self.full_from - self.hold_until)))

    def radius_px(self, step: int) -> float:
        return self.first_radius_px + (self.last_radius_px - self.first_radius_px) * self.march(step)

    def n_rotations(self, step: int) -> int:
        return round(self.first_rotations + (self.last_rotations - self.first_rotations) * self.march(step))


@dataclass(frozen=True)
class StepFigures:
    """What a step found: mean log-evidence of its images against an empty map, and the posterior's mean largest
    weight."""

    log_evidence: float
    largest_weight: float
    radius_px: float


class StochasticSearch:
    """The state of a search: running sums, displacements found so far, and the step.

    Everything random in a step is drawn from a generator seeded with (seed, step), so a resumed search goes on alike.
    ``images``: at a box that the last radius just fills. ``group`` (G, 4): the point group of the map, none by default.
    """

    def __init__(self, images: WhitenedImages, settings: StochasticSettings, seed: int,
                 group: Float[Tensor, "g 4"] | None = None):
        self.images, self.settings, self.seed, self.step_number, self.group = images, settings, seed, 0, group
        self.device = images.data.device
        box = images.box_size_px
        self.prior_power = signal_power(images)
        self.mask = soft_sphere(box, settings.mask_radius_px, 0.05 * box, self.device)
        self.displacement_px = torch.zeros(len(images), 2, device=self.device)
        self.effective_images = 0.0
        self.noise_factor = self._shell_mean(images.data.abs().square().mean(0), images.radius).clamp_min(1.0)
        self.sums = self._random_start()

    def _generator(self, purpose: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.step_number) * 4 + purpose)

    def _reconstructor(self) -> Reconstructor:
        return Reconstructor(self.images.box_size_px, 1, self.settings.last_radius_px, device=self.device)

    def _random_start(self) -> Tensor:
        """Sums of some images at random poses: a blob with the images' radial profile, and random lumps."""
        generator, n = self._generator(3), min(len(self.images), 2000)
        rows = torch.randperm(len(self.images), generator=generator)[:n].to(self.device)
        low = self.images.up_to(self.settings.first_radius_px)[rows]
        quaternion = random_quaternions(n, generator).to(self.device)
        reconstructor = self._reconstructor()
        reconstructor.insert_points(low.transfer * low.data, low.transfer.square(), slice_points(quaternion, low.k))
        return self._symmetrised(reconstructor)

    def _symmetrised(self, reconstructor: Reconstructor) -> Tensor:
        """Its sums, as they are without a point group."""
        has_group = self.group is not None and len(self.group) > 1
        return symmetrised_sums(reconstructor, self.group) if has_group else reconstructor.sums

    def _shell_mean(self, values: Tensor, radius: Tensor) -> Tensor:
        """Means of values (m,) over shells (b // 2 + 1,), 1 where there are none."""
        n_shells = self.images.box_size_px // 2 + 1
        shells = radius.round().long().clamp_max(n_shells - 1)
        sums = torch.zeros(n_shells, device=values.device).index_add_(0, shells, values)
        counts = torch.bincount(shells, minlength=n_shells)
        return torch.where(counts > 0, sums / counts.clamp_min(1), 1.0)

    def _with_map_errors(self, images: WhitenedImages) -> WhitenedImages:
        """The images with what the map does not explain yet counted as noise, so that no posterior is narrower than the map
        warrants: with little noise in the images, poses would otherwise stay where the first maps put them."""
        shells = images.radius.round().long().clamp_max(len(self.noise_factor) - 1)
        scale = self.noise_factor[shells].rsqrt()
        return replace(images, data=images.data * scale, transfer=images.transfer * scale)

    def _update_noise(self, images: WhitenedImages, posterior: "GridPosterior", volume: FourierVolume) -> None:
        """Updates the noise from the power left at the best poses; it never falls below that of the background."""
        rotation, displacement_px = posterior.best_pose()
        left = (images.data - predicted(images, volume, rotation, displacement_px)).abs().square().mean(0)
        seen = images.radius.max().round().long() + 1
        fresh = self._shell_mean(left, images.radius).clamp_min(1.0)[:seen]
        self.noise_factor[:seen] = NOISE_MOMENTUM * self.noise_factor[:seen] + (1 - NOISE_MOMENTUM) * fresh

    def volume(self, max_radius_px: float | None = None) -> Float[Tensor, "b b b"]:
        """The current map (b, b, b), as if all images had been seen."""
        scale = len(self.images) / self.effective_images if self.effective_images else 1.0
        reconstructor = self._reconstructor()
        reconstructor.sums = self.sums * scale
        limit = self.settings.last_radius_px if max_radius_px is None else max_radius_px
        return reconstructor.posterior_mean(self.prior_power, limit) * self.mask

    def _batch_rows(self) -> Tensor:
        """Each pass over the images is a permutation of its own."""
        n, size = len(self.images), min(self.settings.batch_images, len(self.images))
        per_pass = n // size
        n_pass, place = divmod(self.step_number, per_pass)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + n_pass) * 4 + 1)
        return torch.randperm(n, generator=generator)[place * size:(place + 1) * size].to(self.device)

    def step(self) -> StepFigures:
        """One batch: scores, weights, insertion."""
        settings, generator = self.settings, self._generator()
        radius_px = settings.radius_px(self.step_number)
        rows = self._batch_rows()
        images = self.images.up_to(radius_px)[rows]
        volume = FourierVolume.from_real(self.volume(radius_px), max_radius_px=radius_px + 1)
        grid = super_fibonacci(settings.n_rotations(self.step_number), device=self.device)
        grid = compose(grid, random_quaternions(1, generator).to(self.device).expand_as(grid))
        step_px = DISPLACEMENT_STEP_OF_WAVE * images.box_size_px / radius_px
        jitter = (torch.rand(2, generator=generator) - 0.5) * step_px
        reach = min(settings.max_displacement_px, max(1.01 * step_px, settings.local_displacement_px))
        offsets = (displacement_grid(reach, step_px) + jitter).to(self.device)
        posterior = GridPosterior.of(self._with_map_errors(images), volume, grid, self.displacement_px[rows], offsets)
        self._insert(posterior)
        self._update_noise(images, posterior, volume)
        self._centre(rows, posterior.mean_displacement_px())
        self.step_number += 1
        return StepFigures(posterior.log_evidence.mean().item(), posterior.weight.amax((1, 2)).mean().item(), radius_px)

    def _insert(self, posterior: "GridPosterior") -> None:
        # the random start is forgotten quickly
        momentum = self.settings.momentum if self.step_number >= 3 else 0.5
        fresh = self._reconstructor()
        fresh.insert_points(*posterior.weighted_slices())
        self.sums = momentum * self.sums + self._symmetrised(fresh)
        self.effective_images = momentum * self.effective_images + len(posterior.weight)

    def _centre(self, rows: Tensor, displacement_px: Tensor) -> None:
        limit = self.settings.max_displacement_px
        length = displacement_px.norm(dim=1, keepdim=True).clamp_min(1e-6)
        self.displacement_px[rows] = displacement_px * (limit / length).clamp_max(1.0)

    def state_dict(self) -> dict:
        """What ``load_state_dict`` needs to continue; tensors and numbers only."""
        return {"sums": self.sums, "displacement_px": self.displacement_px, "step": self.step_number,
                "effective_images": self.effective_images, "noise_factor": self.noise_factor}

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.displacement_px = state["sums"].to(self.device), state["displacement_px"].to(self.device)
        self.step_number, self.effective_images = state["step"], state["effective_images"]
        self.noise_factor = state["noise_factor"].to(self.device)


def symmetrised_sums(reconstructor: Reconstructor, group: Float[Tensor, "g 4"]) -> Float[Tensor, "1 3 z z x"]:
    """The sums of ``reconstructor`` as if every slice had been inserted at all poses that ``group`` (G, 4) makes equivalent:
    numerator and weight of a voxel are summed over the voxels that the operations take it to.

    Exact where the operations map the grid onto itself (c2, c4, d2, d4, o), interpolated trilinearly otherwise. It costs
    the same for any number of slices, where insertion at all equivalent poses would multiply it by the group's order.
    """
    sums, padding = reconstructor.sums, reconstructor.padding
    completed, of_slices = reconstructor.completed()
    numerator, weight = (FourierVolume(torch.stack([*channels])[None], reconstructor.box_size_px, padding,
                                       reconstructor.max_radius_px)
                         for channels in ((completed.real, completed.imag), (of_slices, torch.zeros_like(of_slices))))
    inside = reconstructor.radius_px() <= reconstructor.max_radius_px + 1 / padding
    kz, ky, kx = torch.nonzero(inside, as_tuple=True)
    middle = (sums.shape[-3] - 1) // 2
    points = torch.stack([kx, ky - middle, kz - middle], dim=-1).to(sums) / padding
    found = sums.new_zeros(3, len(points))
    for matrix in quaternion_to_matrix(group.to(sums)):
        places = (points @ matrix.mT)[None]
        values = numerator.sample(places)[0]
        found += torch.stack([values.real, values.imag, weight.sample(places)[0].real])
    symmetric = torch.zeros_like(sums)
    symmetric[0][:, inside] = found
    symmetric[..., 0] *= 0.5
    return symmetric


def signal_power(images: WhitenedImages) -> Float[Tensor, " shells"]:
    """Power of the map's transform in each shell (b // 2 + 1,), from the power of whitened images above their noise."""
    n_shells = images.box_size_px // 2 + 1
    shells = images.radius.round().long().clamp_max(n_shells - 1)

    def shell_sum(values: Tensor) -> Tensor:
        return torch.zeros(n_shells, device=values.device).index_add_(0, shells, values)

    excess = shell_sum(images.data.abs().square().mean(0) - 1)
    power = excess / shell_sum(images.transfer.square().mean(0)).clamp_min(1e-12)
    return power.clamp_min(_MIN_PRIOR_OF_LARGEST * power.max().clamp_min(1e-12))


@dataclass(frozen=True)
class GridPosterior:
    """The posterior of n images over a grid of R rotations and T displacements around a centre of each image's own.

    ``weight`` (n, T, R) sums to 1; ``log_evidence`` (n,) is the log of the mean likelihood ratio over the grid, to an
    empty map: for images of noise alone it is 0 or less on average, whatever the map.
    """

    images: WhitenedImages
    grid: Float[Tensor, "r 4"]
    centre_px: Float[Tensor, "n 2"]
    offsets_px: Float[Tensor, "t 2"]
    weight: Float[Tensor, "n t r"]
    log_evidence: Float[Tensor, " n"]
    centred: Complex[Tensor, "n t m"]
    """(n, T, m) complex: transfer x data, moved back by centre and offset"""

    @classmethod
    def of(cls, images: WhitenedImages, volume: FourierVolume, grid: Float[Tensor, "r 4"],
           centre_px: Float[Tensor, "n 2"], offsets_px: Float[Tensor, "t 2"]) -> "GridPosterior":
        """grid: (R, 4); centre_px: (n, 2); offsets_px: (T, 2)."""
        n, t, r = len(images), len(offsets_px), len(grid)
        slices = volume.sample(slice_points(grid, images.k))
        parts = torch.cat([slices.real, slices.imag], dim=1).T.contiguous()
        norm = images.transfer.square() @ slices.abs().square().T
        moved = images.transfer * images.data * images.displacement_phase(centre_px).conj()
        centred = moved[:, None] * images.displacement_phase(offsets_px).conj()
        rows = torch.cat([centred.real, centred.imag], dim=-1).flatten(0, 1)
        score = torch.addmm(norm.repeat_interleave(t, 0), rows, parts, beta=-1.0, alpha=2.0).reshape(n, t * r)
        largest = score.amax(1, keepdim=True)
        weight = score.sub_(largest).exp_()
        total = weight.sum(1, keepdim=True)
        evidence = (largest + total.log())[:, 0] - math.log(t * r)
        return cls(images, grid, centre_px, offsets_px, (weight / total).reshape(n, t, r), evidence, centred)

    def mean_displacement_px(self) -> Float[Tensor, "n 2"]:
        """(n, 2)"""
        return self.centre_px + self.weight.sum(2) @ self.offsets_px

    def best_rotation(self) -> Float[Tensor, "n 4"]:
        """The rotation (n, 4) with the largest weight over all displacements."""
        return self.grid[self.weight.sum(1).argmax(1)]

    def best_pose(self) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n 2"]]:
        """The rotation (n, 4) and displacement (n, 2) of the largest weight."""
        best = self.weight.flatten(1).argmax(1)
        offset, rotation = best // len(self.grid), best % len(self.grid)
        return self.grid[rotation], self.centre_px + self.offsets_px[offset]

    def weighted_slices(self) -> tuple[Complex[Tensor, "r m"], Float[Tensor, "r m"], Float[Tensor, "r m 3"]]:
        """Numerators (r, m), weights (r, m) and points (r, m, 3) to insert: each rotation's share of every image."""
        kept = torch.where(self.weight > SMALLEST_WEIGHT * self.weight.amax((1, 2), keepdim=True), self.weight, 0)
        kept = kept / kept.sum((1, 2), keepdim=True)
        power = self.images.transfer.square()
        if int((kept > 0).sum()) > _DENSE_ABOVE * len(self.grid):
            rows = torch.cat([self.centred.real, self.centred.imag], dim=-1).flatten(0, 1)
            real, imaginary = (kept.flatten(0, 1).T @ rows).chunk(2, dim=1)
            return torch.complex(real, imaginary), kept.sum(1).T @ power, slice_points(self.grid, self.images.k)
        image, offset, rotation = kept.nonzero(as_tuple=True)
        used, place = rotation.unique(return_inverse=True)
        weight = kept[image, offset, rotation][:, None]
        numerator = self.centred.new_zeros(len(used), len(self.images.radius))
        numerator.index_add_(0, place, weight * self.centred[image, offset])
        denominator = power.new_zeros(numerator.shape).index_add_(0, place, weight * power[image])
        return numerator, denominator, slice_points(self.grid[used], self.images.k)
