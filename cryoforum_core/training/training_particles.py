"""The particles of a training: prepared at the network's box, and at their own box for the map of the labels."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..geometry.pose_hypotheses import PoseHypotheses
from ..imaging.ctf import CTFParameters
from ..imaging.masks import soft_circle
from ..particles.dataset import ParticleBatch, Particles
from ..particles.image_preparation import PreprocessSettings, network_ctf, network_images
from ..particles.image_state import ImageState
from ..progress import Progress
from .map_from_labels import LabelMap, network_volume
from .simulated_projections import ImageModel, TrainingBatch, estimate_image_model
from .streams import ParticleStream

# images that the noise spectrum and the scale of the signal are estimated from
N_FOR_ESTIMATES = 1000
# images that the map of the labels is made of: more do not improve the low resolution that a network sees
MAX_FOR_MAP = 10_000
# the largest box that a network sees by default
MAX_MAP_BOX_PX = 128
# images in memory at once
_BATCH = 256


@dataclass(frozen=True)
class TrainingParticles:
    """The images of a particle set, prepared for the network (``settings``) and for maps."""

    particles: Particles
    settings: PreprocessSettings
    state: ImageState
    device: torch.device

    @property
    def extent_angstrom(self) -> float:
        """Side of the images."""
        return self.particles.box_size_px * self.particles.pixel_size_angstrom

    @property
    def mask(self) -> Float[Tensor, "b b"]:
        """The mask that prepared images carry."""
        box_size_px = self.settings.box_size_px
        return soft_circle(box_size_px, self.settings.mask_radius_fraction * box_size_px, self.settings.mask_edge_px)

    def unmasked(self, batch: ParticleBatch) -> Float[Tensor, "n b b"]:
        """Network images before their mask: for estimating noise, and for rotating."""
        # an edge that never ends is no mask
        settings = replace(self.settings, mask_edge_px=math.inf)
        return network_images(batch.images, batch.ctf, self.particles.pixel_size_angstrom, self.state, settings)

    def ctf(self, parameters: CTFParameters) -> Float[Tensor, "n b b//2+1"]:
        """The transfer function from a projection to a prepared image."""
        return network_ctf(parameters, self.state, self.settings)

    def image_model(self, rows: Int[np.ndarray, " m"], volume: Float[Tensor, "d d d"], seed: int) -> ImageModel:
        """Noise and signal of the prepared images, from a thousand of ``rows``."""
        some = np.random.default_rng(seed).permutation(rows)[:N_FOR_ESTIMATES]
        batches = [self.particles.batch(part) for part in np.array_split(some, -(-len(some) // _BATCH))]
        images = torch.cat([self.unmasked(batch) for batch in batches])
        ctf = torch.cat([self.ctf(batch.ctf) for batch in batches])
        radius_px = self.settings.mask_radius_fraction * self.settings.box_size_px
        return estimate_image_model(images, ctf, network_volume(volume, self.settings.box_size_px), radius_px)

    def labelled(self, rows: Int[np.ndarray, " m"], image_model: ImageModel,
                 hypotheses: PoseHypotheses | None = None) -> ParticleStream:
        """The images of ``rows`` as a source of batches; ``hypotheses`` of the poses of all particles, where
        labels are uncertain."""
        return ParticleStream(self.particles, rows, self.unmasked, self.ctf, self.mask,
                              self.settings.pixel_size_angstrom, image_model.noise_amplitude(), self.device, hypotheses)

    def labels(self, particles: Particles) -> TrainingBatch:
        """All images of another labelled set, prepared as for this network: for tests and comparisons."""
        batch = particles.batch(np.arange(len(particles))).to(self.device)
        return TrainingBatch(self.unmasked(batch) * self.mask.to(self.device), self.ctf(batch.ctf),
                             batch.poses.quaternion, batch.poses.shift_angstrom)

    def map_of_labels(self, rows: Int[np.ndarray, " m"], group: Float[Tensor, "g 4"], seed: int) -> Float[Tensor, "b b b"]:
        """The map that the labelled images make, with prepared grey values; the images' field of view.

        Of large sets a sample, and of large images the low frequencies: a training that sees 128 px at most does not
        profit from more.
        """
        box_size_px = min(self.particles.box_size_px, MAX_MAP_BOX_PX)
        pixel_size_angstrom = self.extent_angstrom / box_size_px
        settings = replace(self.settings, box_size_px=box_size_px, pixel_size_angstrom=pixel_size_angstrom)
        view, label_map = replace(self, settings=settings), LabelMap(box_size_px, pixel_size_angstrom, group)
        some = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_FOR_MAP])
        with Progress(len(some), "map of the labels") as progress:
            for part in np.array_split(some, -(-len(some) // _BATCH)):
                batch = self.particles.batch(part)
                label_map.add(view.unmasked(batch), view.ctf(batch.ctf), batch.poses.quaternion,
                              batch.poses.shift_angstrom)
                progress.update(len(part))
        volume = label_map.finish()
        if not volume.abs().max() > 0:
            raise InputError("The particles with poses must give a map; their half maps agree in no shell. Check the "
                             "poses, the contrast and the CTF, or give a --reference.")
        return volume
