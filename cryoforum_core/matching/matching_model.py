"""A map as a statistical model of the images: what matching needs, estimated from the images themselves."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ..geometry.rotations import random_quaternions
from ..imaging.fourier import fft_image, shell_average, shell_index, shift_phase
from ..imaging.projection import FourierVolume
from .frequency_marching import MarchStage, march
from .likelihood import amplitude_from_poses, amplitude_from_power
from .refine import RefinedPoses, predicted_at_refined
from .whitened_images import WhitenedImages

# standard deviation of simulated shifts along x and y, as a part of the largest one searched
SHIFT_RMS_OF_LARGEST = 0.3
# Gauss-Newton steps of poses that are refined already, after a small change of the model
_LAST_ITERATIONS = 3


@dataclass(frozen=True)
class MatchingModel:
    """A map (with gradients), the noise power and the signal's amplitude in each shell, and the limits of matching."""

    volume: FourierVolume
    noise_spectrum: Float[Tensor, " shells"]
    amplitude: Float[Tensor, " shells"]
    map_power: Float[Tensor, " shells"]
    """(B // 2 + 1,) mean of |P|^2 over viewing directions, in each shell"""
    group: Float[Tensor, "g 4"]
    max_radius_px: float
    max_displacement_px: float

    @classmethod
    def estimate(cls, volume: Float[Tensor, "b b b"], images_ft: Complex[Tensor, "n b b//2+1"],
                 ctf: Float[Tensor, "n b b//2+1"], noise_spectrum: Float[Tensor, " b//2+1"], group: Float[Tensor, "g 4"],
                 max_radius_px: float, max_displacement_px: float) -> "MatchingModel":
        """From a map (B, B, B) and a sample of the images' transforms and CTFs (n, B, B // 2 + 1)."""
        fourier_volume = FourierVolume.from_real(volume, max_radius_px=max_radius_px + 1, with_gradient=True)
        views = random_quaternions(200, torch.Generator().manual_seed(0), device=volume.device)
        map_power = shell_average(fourier_volume.project(views).abs().square().mean(0), volume.shape[-1])
        amplitude = amplitude_from_power(images_ft, ctf, noise_spectrum, map_power, min(16.0, max_radius_px))
        return cls(fourier_volume, noise_spectrum, amplitude, map_power, group, max_radius_px, max_displacement_px)

    def images(self, images_ft: Complex[Tensor, "n b b//2+1"], ctf: Float[Tensor, "n b b//2+1"]) -> WhitenedImages:
        """Transforms and CTFs (n, B, B // 2 + 1), whitened, as input of the likelihood."""
        return WhitenedImages.from_transforms(images_ft, ctf, self.noise_spectrum, self.max_radius_px, self.amplitude)

    def adapted(self, images: WhitenedImages, poses: RefinedPoses) -> tuple["MatchingModel", float]:
        """The model with amplitudes and noise power regressed on matched images, and the overall amplitude factor.

        A factor well below 1 says that the map does not explain the power that the images have above their noise.
        """
        model, taken_up = predicted_at_refined(images, self.volume, poses)
        overall = float(((images.data.conj() * model).real - taken_up).sum() / model.abs().square().sum())
        factor = amplitude_from_poses(images, model, taken_up)
        shells = images.radius.round().long().clamp_max(len(factor) - 1)
        return replace(self, amplitude=self.amplitude * factor)._with_noise_of(images, factor[shells] * model), overall

    def with_noise_left_by(self, images: WhitenedImages, poses: RefinedPoses) -> "MatchingModel":
        """The model with the noise power that its predictions at refined poses leave in the images."""
        return self._with_noise_of(images, predicted_at_refined(images, self.volume, poses)[0])

    def _with_noise_of(self, images: WhitenedImages, prediction: Tensor) -> "MatchingModel":
        shells = images.radius.round().long().clamp_max(len(self.amplitude) - 1)
        residual = (images.data - prediction).abs().square().mean(0)
        sums = torch.zeros_like(self.amplitude).index_add_(0, shells, residual)
        counts = torch.zeros_like(self.amplitude).index_add_(0, shells, torch.ones_like(residual))
        relative = torch.where(counts > 0, sums / counts.clamp_min(1), 1.0)
        return replace(self, noise_spectrum=self.noise_spectrum * relative)

    def with_contrast_scaled(self, factor: float) -> "MatchingModel":
        """The model of images with ``factor`` times the contrast."""
        return replace(self, amplitude=self.amplitude * factor)

    def stages(self, first_radius_px: float, keep: tuple[int, int, int]) -> list[MarchStage]:
        """Three stages from ``first_radius_px`` to the finest resolution."""
        first = min(first_radius_px, self.max_radius_px)
        middle = (first * self.max_radius_px) ** 0.5
        return [MarchStage(first, keep[0], 4), MarchStage(middle, keep[1], 3), MarchStage(self.max_radius_px, keep[2], 5)]

    def refine_to_the_end(self, images: WhitenedImages, poses: RefinedPoses) -> RefinedPoses:
        """Hypotheses (n, K, ...) refined once more at the finest resolution; best first."""
        stage = MarchStage(self.max_radius_px, poses.score.shape[1], _LAST_ITERATIONS)
        return march(images, self.volume, poses.quaternion, poses.displacement_px, [stage], self.max_displacement_px)

    def refine_from(self, images: WhitenedImages, quaternion: Float[Tensor, "n k 4"],
                    displacement_px: Float[Tensor, "n k 2"], first_radius_px: float = 8.0, keep: int = 2) -> RefinedPoses:
        """Local matching from hypotheses (n, K, 4), (n, K, 2); best first, fields (n, min(K, keep), ...)."""
        hypotheses = quaternion.shape[1]
        counts = tuple(min(hypotheses, most) for most in (3 * keep, keep, keep))
        return march(images, self.volume, quaternion, displacement_px, self.stages(first_radius_px, counts),
                     self.max_displacement_px)


def simulated_transforms(model: MatchingModel, ctf: Float[Tensor, "n b b//2+1"], seed: int) -> Complex[Tensor, "n b b//2+1"]:
    """Transforms (n, b, b // 2 + 1) of images as the model says they are, at random poses, with CTFs of that shape.

    Unlike ``uncertainty.simulated_images`` they never leave the matching box: they are compared with transforms of a sample,
    and are not prepared as files are.
    """
    generator = torch.Generator().manual_seed(seed)
    n, box_size_px, device = len(ctf), ctf.shape[-2], ctf.device
    views = random_quaternions(n, generator, device=device)
    displacement = SHIFT_RMS_OF_LARGEST * model.max_displacement_px * torch.randn(n, 2, generator=generator).to(device)
    white = fft_image(torch.randn(n, box_size_px, box_size_px, generator=generator).to(device)) / box_size_px
    shells = shell_index(box_size_px, device)
    signal = model.volume.project(views) * ctf * model.amplitude[shells] * shift_phase(displacement, box_size_px)
    return signal + white * model.noise_spectrum[shells].sqrt()
