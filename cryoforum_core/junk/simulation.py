"""Images of a data set's particles and of every kind of junk, simulated like the set's own, and their features."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..catalogue import NOT_A_PARTICLE, OFF_CENTRE, OTHER_OBJECT, OVERLAP
from ..geometry.rotations import random_quaternions
from ..imaging.fourier import fft_volume, ifft_volume, with_shell_power
from ..imaging.projection import FourierVolume
from ..matching.matcher import Matcher
from ..matching.matching_model import MatchingModel
from ..particles.image_preparation import ImagePreparation
from ..uncertainty.simulated_images import ImageSource, SimulatedParticles, particles_like
from .features import PowerMap
from .rejection import PARTICLE, REASONS

# of the simulated images; the kinds of junk share the rest evenly
PARTICLE_SHARE = 1 / 3
# of the box: from the largest shift searched to where half of a particle is outside the box
FARTHEST_BOXES = 0.5
# contrast of other objects over that of particles: weaker and stronger, within what pickers take for a particle
OTHER_CONTRAST = (0.6, 1.4)
# of the map's radius: what is picked is about as large as a particle
OBJECT_RADII = (0.6, 0.8, 1.0, 1.2)


@dataclass(frozen=True, eq=False)
class JunkSimulation:
    """What is needed to make images of every kind like a data set's, and to match them.

    ``source`` makes images of particles, of the map ``volume`` at the matching box; the map that they are
    matched to, the matcher's, need not equal it. Images that have no right pose are searched for the best one; what has
    one is matched from it, which is what a search that succeeds comes to.
    """

    images: ImagePreparation
    source: ImageSource
    volume: Float[Tensor, "b b b"]
    power_map: PowerMap
    matcher: Matcher

    @property
    def model(self) -> MatchingModel:
        """That images are matched with."""
        return self.matcher.model

    def features(self, quaternion: Float[Tensor, "m 4"], displacement_px: Float[Tensor, "m 2"], n: int
                 ) -> list[Float[np.ndarray, "_ s"]]:
        """Features of about ``n`` images, by ``REASONS``; poses of good particles are drawn from, so that
        viewing directions and centring are the set's own."""
        generator = torch.Generator().manual_seed(self.matcher.seed)
        results = []
        for kind, reason in enumerate(REASONS):
            n_kind = round(n * (PARTICLE_SHARE if kind == 0 else (1 - PARTICLE_SHARE) / (len(REASONS) - 1)))
            of = torch.randint(len(quaternion), (n_kind,), generator=generator)
            pose = quaternion[of], displacement_px[of]
            results.append(self._of_kind(reason, *pose, generator))
        return results

    def _of_kind(self, reason: str, quaternion: Tensor, displacement_px: Tensor, generator: torch.Generator) -> np.ndarray:
        n, box = len(quaternion), self.model.volume.box_size_px
        if reason == OFF_CENTRE:
            displacement_px = _far_displacements(n, self.model.max_displacement_px, box, generator)
        if reason == OTHER_OBJECT:
            parts = torch.arange(n).chunk(len(OBJECT_RADII))
            return np.concatenate([
                self._other_object(quaternion[part], displacement_px[part], radius, generator)
                for part, radius in zip(parts, OBJECT_RADII)])
        simulated = particles_like(self.source, self.images, quaternion, displacement_px, self._draw(generator))
        if reason == NOT_A_PARTICLE:
            simulated = replace(simulated, contrast=torch.zeros_like(simulated.contrast))
        if reason == OVERLAP:
            where = _far_displacements(n, self.model.max_displacement_px, box, generator)
            companion = torch.cat([random_quaternions(n, generator), where], dim=1)
            simulated = replace(simulated, companion=companion.to(simulated.quaternion))
        return self._matched(simulated, has_right_pose=reason in (PARTICLE, OVERLAP))

    def _other_object(self, quaternion: Tensor, displacement_px: Tensor, radius: float, generator: torch.Generator
                      ) -> np.ndarray:
        model = self.source.model
        volume = FourierVolume.from_real(random_object(self.volume, radius, generator),
                                         max_radius_px=model.max_radius_px + 1)
        other = replace(self.source, model=replace(model, volume=volume))
        simulated = particles_like(other, self.images, quaternion, displacement_px, self._draw(generator))
        low, high = OTHER_CONTRAST
        factor = low + (high - low) * torch.rand(len(quaternion), generator=generator)
        simulated = replace(simulated, contrast=simulated.contrast * factor.to(simulated.contrast))
        return self._matched(simulated, has_right_pose=False)

    def _matched(self, simulated: SimulatedParticles, has_right_pose: bool) -> np.ndarray:
        transforms = replace(self.images, particles=simulated).transforms(np.arange(len(simulated)))
        images = self.model.images(*transforms)
        poses = self.model.refine_from(images, simulated.quaternion[:, None], simulated.displacement_px[:, None]
                                       ) if has_right_pose else self.matcher.search(images)
        return self.power_map.features(images, poses[:, 0])[0].cpu().numpy()

    @staticmethod
    def _draw(generator: torch.Generator) -> int:
        return int(torch.randint(2**31, (), generator=generator))


def random_object(volume: Float[Tensor, "b b b"], radius: float, generator: torch.Generator) -> Float[Tensor, "b b b"]:
    """An object of chance with the map's power in each shell, ``radius`` times as large as the map."""
    box = len(volume)
    axis = torch.arange(box, device=volume.device) - box // 2
    squared = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis ** 2).float()
    weight = volume.clamp_min(0)
    # a Gaussian of the map's own second moment in each direction
    variance = float((weight * squared).sum() / weight.sum()) / 3 * radius ** 2
    noise = torch.randn(box, box, box, generator=generator).to(volume.device)
    noise_ft = fft_volume(noise * torch.exp(-squared / (2 * variance)))
    return ifft_volume(with_shell_power(noise_ft, fft_volume(volume)))


def _far_displacements(n: int, nearest_px: float, box_size_px: int, generator: torch.Generator) -> Tensor:
    """Displacements (n, 2) spread evenly over the ring from the search's limit to the box's edge."""
    # as far from the limit again as a pose at the limit can be told from one within
    inner, outer = 1.5 * nearest_px, max(FARTHEST_BOXES * box_size_px, 2 * nearest_px)
    radius = (inner ** 2 + (outer ** 2 - inner ** 2) * torch.rand(n, generator=generator)).sqrt()
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
