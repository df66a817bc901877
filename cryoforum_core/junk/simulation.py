"""Images of a data set's particles and of every kind of junk, made like the set's own, and their features."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..catalogue import NOT_A_PARTICLE, OFF_CENTRE, OTHER_OBJECT, OVERLAP
from ..geometry.rotations import random_quaternions
from ..imaging.fourier import fft_volume, ifft_volume, with_shell_power
from ..imaging.projection import FourierVolume
from ..matching.contrast import with_own_contrast
from ..matching.matcher import Matcher
from ..matching.matching_model import MatchingModel
from ..particles.image_preparation import ImagePreparation
from ..results.pose_results import PoseResults
from ..uncertainty.calibration import known_particles
from ..uncertainty.simulated_images import ImageSource, KnownParticles
from ..uncertainty.transplanted_images import TransplantedParticles
from .features import PowerMap
from .rejection import PARTICLE, REASONS

# of the simulated images; the kinds of junk share the rest evenly
PARTICLE_SHARE = 1 / 3
# of the box: from the largest shift searched to where half of a particle is outside the box
FARTHEST_BOXES = 0.5
# between the centres of particles that overlap: nearer, they are one in projection; farther, each is a good one
OVERLAP_DIAMETERS = (0.25, 0.75)
# images matched at a time
BATCH = 128
# contrast of other objects over that of particles: weaker and stronger, within what pickers take for a particle
OTHER_CONTRAST = (0.6, 1.4)
# of the map's radius: what is picked is about as large as a particle
OBJECT_RADII = (0.6, 0.8, 1.0, 1.2)


@dataclass(frozen=True, eq=False)
class SimulatedFeatures:
    """Features of simulated images of each kind, in the order of ``REASONS``; ``donor`` (n,): of the particles among them,
    the matched image that each has its noise from, None where that is simulated."""

    of_kind: tuple[Float[np.ndarray, "_ s"], ...]
    donor: Int[np.ndarray, " n"] | None


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

    def features(self, rows: Int[np.ndarray, " m"], results: PoseResults, n: int) -> SimulatedFeatures:
        """Of about ``n`` images like the set's images ``rows``, of which matching says ``results``.

        Viewing directions, centring and, where most poses are certain, the noise are the set's own.
        """
        generator = torch.Generator().manual_seed(self.matcher.seed)
        found, donor = [], None
        for kind, reason in enumerate(REASONS):
            n_kind = round(n * (PARTICLE_SHARE if kind == 0 else (1 - PARTICLE_SHARE) / (len(REASONS) - 1)))
            known = known_particles(self.images, self.source, rows, results, n_kind, self._draw(generator))[0]
            if reason == PARTICLE and isinstance(known, TransplantedParticles):
                order = np.argsort(rows)
                donor = order[np.searchsorted(rows, known.of, sorter=order)]
            found.append(self._of_kind(reason, known, generator))
        return SimulatedFeatures(tuple(found), donor)

    def _of_kind(self, reason: str, known: KnownParticles, generator: torch.Generator) -> np.ndarray:
        n, box, nearest_px = len(known), self.model.volume.box_size_px, self.model.max_displacement_px
        if reason == OTHER_OBJECT:
            return self._other_objects(known, generator)
        if reason == OFF_CENTRE:
            # as far from the limit again as a pose at the limit can be told from one within
            aside = _in_ring(n, 1.5 * nearest_px, max(FARTHEST_BOXES * box, 2 * nearest_px), generator)
            known = replace(known, displacement_px=aside.to(known.displacement_px))
        if reason == NOT_A_PARTICLE:
            known = replace(known, contrast=torch.zeros_like(known.contrast))
        if reason == OVERLAP:
            aside = _in_ring(n, *(2 * radii * self.power_map.radius_px for radii in OVERLAP_DIAMETERS), generator)
            companion = torch.cat([random_quaternions(n, generator), aside], dim=1).to(known.quaternion)
            companion[:, 4:] += known.displacement_px
            known = replace(known, companion=companion)
        return self._matched(known, has_right_pose=reason in (PARTICLE, OVERLAP))

    def _other_objects(self, known: KnownParticles, generator: torch.Generator) -> np.ndarray:
        """Of objects of chance in the place of the particles, of several sizes."""
        n, model = len(known), self.source.model
        low, high = OTHER_CONTRAST
        factor = low + (high - low) * torch.rand(n, generator=generator)
        contrast, parts = known.contrast * factor.to(known.contrast), torch.arange(n).chunk(len(OBJECT_RADII))
        found = []
        for part, radius in zip(parts, OBJECT_RADII):
            volume = FourierVolume.from_real(random_object(self.volume, radius, generator),
                                             max_radius_px=model.max_radius_px + 1)
            other = replace(known, source=replace(self.source, model=replace(model, volume=volume)), contrast=contrast)
            found.append(self._matched(other, has_right_pose=False, rows=part.numpy()))
        return np.concatenate(found)

    def _matched(self, known: KnownParticles, has_right_pose: bool, rows: np.ndarray | None = None) -> np.ndarray:
        prepared, found = replace(self.images, particles=known), []
        rows = np.arange(len(known)) if rows is None else rows
        for some in np.array_split(rows, len(rows) // BATCH + 1):
            images = self.model.images(*prepared.transforms(some))
            start = known.quaternion[some][:, None], known.displacement_px[some][:, None]
            poses = self.model.refine_from(images, *start) if has_right_pose else self.matcher.search(images)
            poses, contrast = with_own_contrast(images, self.model, poses, self.matcher.contrast_deviation)
            found.append(self.power_map.features(images, poses[:, 0], contrast)[0].cpu().numpy())
        return np.concatenate(found)

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


def _in_ring(n: int, inner_px: float, outer_px: float, generator: torch.Generator) -> Tensor:
    """Displacements (n, 2) spread evenly over a ring."""
    radius = (inner_px ** 2 + (outer_px ** 2 - inner_px ** 2) * torch.rand(n, generator=generator)).sqrt()
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
