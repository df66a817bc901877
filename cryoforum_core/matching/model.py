"""A map as a statistical model of the images: what matching needs, estimated from the images themselves."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..geometry.rotations import compose, random_quaternions
from ..geometry.so3_grid import n_rotations_for_step, super_fibonacci
from ..imaging.fourier import shell_average
from ..imaging.projection import FourierVolume
from .likelihood import MatchingImages, amplitude_from_poses, amplitude_from_power, predicted
from .refine import RefinedPoses, predicted_at_refined
from .search import GridReferences, MarchStage, displacement_grid, distinct_best, march, score_grid

# radius of the exhaustive search in cycles per box: a particle that fills two thirds of its box turns its outermost
# features by one pixel there in some 4 degrees, the distance to the nearest node of a 7.5-degree grid
SEARCH_RADIUS_PX = 10.0
SEARCH_STEP_DEG = 7.5
# Of the 70S ribosome's poses at SNR 0.05 that the search above leaves wrong, one at radius 12 finds 90 % (6 degrees, 64
# hypotheses), at radius 14 98 % (7.5 degrees) and 99 % (5 degrees, in twice the time).
FINE_SEARCH_RADIUS_PX, FINE_SEARCH_STEP_DEG, N_FINE_HYPOTHESES = 14.0, 7.5, 64
# below, ice and gradients may hold more power than any particle
RESIDUAL_MIN_RADIUS_PX = 2.0


@dataclass(frozen=True)
class MatchingModel:
    """A map (with gradients), the noise power and the signal's amplitude in each shell, and the limits of matching."""

    volume: FourierVolume
    noise_spectrum: Tensor
    amplitude: Tensor
    map_power: Tensor
    """(B // 2 + 1,) mean of |P|^2 over views, in each shell"""
    group: Tensor
    max_radius_px: float
    max_displacement_px: float

    @classmethod
    def estimate(cls, volume: Tensor, images_ft: Tensor, ctf: Tensor, noise_spectrum: Tensor, group: Tensor,
                 max_radius_px: float, max_displacement_px: float) -> "MatchingModel":
        """From a map (B, B, B) and a sample of the images' transforms and CTFs (n, B, B // 2 + 1)."""
        fourier_volume = FourierVolume.from_real(volume, max_radius_px=max_radius_px + 1, with_gradient=True)
        views = random_quaternions(200, torch.Generator().manual_seed(0), device=volume.device)
        map_power = shell_average(fourier_volume.project(views).abs().square().mean(0), volume.shape[-1])
        amplitude = amplitude_from_power(images_ft, ctf, noise_spectrum, map_power, min(16.0, max_radius_px))
        return cls(fourier_volume, noise_spectrum, amplitude, map_power, group, max_radius_px, max_displacement_px)

    def images(self, images_ft: Tensor, ctf: Tensor) -> MatchingImages:
        """Transforms and CTFs (n, B, B // 2 + 1) as the likelihood sees them."""
        return MatchingImages.from_transforms(images_ft, ctf, self.noise_spectrum, self.max_radius_px, self.amplitude)

    def adapted(self, images: MatchingImages, poses: RefinedPoses) -> tuple["MatchingModel", float]:
        """The model with amplitudes and noise power regressed on matched images, and the overall amplitude factor.

        A factor well below 1 says that the map does not explain the power that the images have above their noise.
        """
        model, taken_up = predicted_at_refined(images, self.volume, poses)
        overall = float(((images.data.conj() * model).real - taken_up).sum() / model.abs().square().sum())
        factor = amplitude_from_poses(images, model, taken_up)
        shells = images.radius.round().long().clamp_max(len(factor) - 1)
        residual = (images.data - factor[shells] * model).abs().square().mean(0)
        sums = torch.zeros_like(factor).index_add_(0, shells, residual)
        counts = torch.zeros_like(factor).index_add_(0, shells, torch.ones_like(residual))
        relative = torch.where(counts > 0, sums / counts.clamp_min(1), 1.0)
        return replace(self, amplitude=self.amplitude * factor, noise_spectrum=self.noise_spectrum * relative), overall

    def brighter(self, factor: float) -> "MatchingModel":
        """The model of images that have so many times the contrast."""
        return replace(self, amplitude=self.amplitude * factor)

    def stages(self, first_radius_px: float, keep: tuple[int, int, int]) -> list[MarchStage]:
        """Three stages from ``first_radius_px`` to the finest resolution."""
        first = min(first_radius_px, self.max_radius_px)
        middle = (first * self.max_radius_px) ** 0.5
        return [MarchStage(first, keep[0], 4), MarchStage(middle, keep[1], 3), MarchStage(self.max_radius_px, keep[2], 5)]

    def refine_from(self, images: MatchingImages, quaternion: Tensor, displacement_px: Tensor,
                    first_radius_px: float = 8.0, keep: int = 2) -> RefinedPoses:
        """Local matching from hypotheses (n, K, 4), (n, K, 2); best first, fields (n, min(K, keep), ...)."""
        hypotheses = quaternion.shape[1]
        counts = tuple(min(hypotheses, most) for most in (3 * keep, keep, keep))
        return march(images, self.volume, quaternion, displacement_px, self.stages(first_radius_px, counts),
                     self.max_displacement_px)


@dataclass(frozen=True)
class SearchGrid:
    """The references of an exhaustive search, made once and used for every batch."""

    model: MatchingModel
    references: GridReferences
    radius_px: float
    displacement_px: Tensor
    separation_rad: float

    @classmethod
    def build(cls, model: MatchingModel, step_deg: float = SEARCH_STEP_DEG,
              radius_px: float = SEARCH_RADIUS_PX) -> "SearchGrid":
        """Rotations ``step_deg`` apart over the asymmetric unit, displacements a third of the finest wave apart."""
        device = model.volume.data.device
        radius_px = min(radius_px, model.max_radius_px)
        grid = asymmetric_unit(super_fibonacci(n_rotations_for_step(step_deg)).to(device), model.group)
        box_size_px = model.volume.box_size_px
        pixels = MatchingImages.from_transforms(
            torch.zeros(1, box_size_px, box_size_px // 2 + 1, dtype=torch.complex64, device=device),
            torch.zeros(1, box_size_px, box_size_px // 2 + 1, device=device), model.noise_spectrum, radius_px)
        displacement = displacement_grid(model.max_displacement_px, 0.31 * box_size_px / radius_px).to(device)
        return cls(model, GridReferences.build(model.volume, grid, pixels.k), radius_px, displacement,
                   float(torch.deg2rad(torch.tensor(1.4 * step_deg))))

    def search(self, images: MatchingImages, n_hypotheses: int = 16, keep: int = 2, chunk: int = 64) -> RefinedPoses:
        """The best poses anywhere: hypotheses from the grid, refined; best first, fields (n, keep, ...)."""
        low = images.up_to(self.radius_px)
        quaternion, displacement = [], []
        for rows in torch.arange(len(images)).split(chunk):
            score, which = score_grid(low[rows], self.references, self.displacement_px)
            best = distinct_best(score, self.references.quaternion, n_hypotheses, self.separation_rad)
            quaternion.append(self.references.quaternion[best])
            displacement.append(self.displacement_px[which.gather(1, best).long()])
        return self.model.refine_from(images, torch.cat(quaternion), torch.cat(displacement),
                                      1.2 * self.radius_px, keep)


def asymmetric_unit(grid: Tensor, group: Tensor) -> Tensor:
    """The rotations (r, 4) of a grid (R, 4) that are nearer to the identity than their equivalents q g."""
    if len(group) == 1:
        return grid
    nearness = torch.stack([compose(grid, element)[:, 3].abs() for element in group.to(grid)])
    return grid[nearness[0] >= nearness.amax(dim=0) - 1e-6]


@dataclass(frozen=True)
class MatchQuality:
    """How well images fit the map at their poses, in standard deviations of what noise alone would do.

    ``fit`` (n,): score against the one a right pose gives, 0 on average, negative when the image lacks the signal.
    ``residual`` (n,): power left where the map has its power, positive when the image shows something else, too.
    """

    fit: Tensor
    residual: Tensor


def match_quality(images: MatchingImages, model: MatchingModel, poses: RefinedPoses) -> MatchQuality:
    """For poses (n, ...), one for each image.

    With y = f + n: the score 2 Re<y, f> - |f|^2 has mean |f|^2 and variance 2 |f|^2; the residual power of a pixel has
    mean 1 and variance 1. Pixels are weighted by the power that a particle has in them, which is the most powerful test
    for a second one.
    """
    expected = predicted(images, model.volume, poses.quaternion, poses.displacement_px)
    power = expected.abs().square().sum(-1)
    score = 2 * (images.data.conj() * expected).real.sum(-1) - power
    shells = images.radius.round().long().clamp_max(len(model.map_power) - 1)
    weight = images.transfer.square() * model.map_power[shells] * (images.radius >= RESIDUAL_MIN_RADIUS_PX)
    excess = (images.data - expected).abs().square() - 1
    residual = (weight * excess).sum(-1) / weight.square().sum(-1).sqrt().clamp_min(1e-12)
    return MatchQuality((score - power) / torch.sqrt(2 * power).clamp_min(1e-12), residual)
