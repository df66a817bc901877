"""Where training batches come from: the particles' own images, simulated projections, or a mixture of both.

A batch is a function of the step's generator and of the progress of the training alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..geometry.pose_hypotheses import PoseHypotheses
from ..imaging.ctf import CTFParameters
from ..particles.dataset import ParticleBatch, Particles
from .augment import random_transforms, transform_images, transform_labels, vary_grey_values
from .loop import step_generator
from .schedules import NOISE_IS_FULL_AT, noise_factor
from .simulated_projections import ProjectionStream, TrainingBatch


class ParticleStream:
    """Labelled images of some rows of a particle set.

    ``prepare`` makes network images (n, b, b) of a ParticleBatch, not yet masked by ``mask``, ``ctf_of`` their
    CTFs (n, b, b // 2 + 1); ``noise_amplitude`` is that of their noise, relative to white noise.
    ``hypotheses`` of all particles' poses: where they are given, each draw of an image comes with a label drawn from their
    posterior.
    """

    def __init__(self, particles: Particles, rows: Int[np.ndarray, " m"], prepare: Callable[[ParticleBatch], Tensor],
                 ctf_of: Callable[[CTFParameters], Tensor], mask: Float[Tensor, "b b"], network_pixel_size_angstrom: float,
                 noise_amplitude: Float[Tensor, "b b//2+1"], device: torch.device | str = "cpu",
                 hypotheses: PoseHypotheses | None = None):
        self.particles, self.rows, self.device = particles, rows, device
        self.hypotheses = None if hypotheses is None else hypotheses.to(device)
        self.prepare, self.ctf_of = prepare, ctf_of
        self.mask, self.noise_amplitude = mask.to(device), noise_amplitude.to(device)
        self.pixel_size_angstrom = network_pixel_size_angstrom

    def at(self, rows: Int[np.ndarray, " n"]) -> TrainingBatch:
        """The images of ``rows`` as they are, masked."""
        batch = self.particles.batch(rows).to(self.device)
        images = self.prepare(batch)
        ctf = self.ctf_of(batch.ctf)
        return TrainingBatch(images * self.mask, ctf, batch.poses.quaternion, batch.poses.shift_angstrom)

    def random(self, n: int, generator: torch.Generator, vary: bool) -> TrainingBatch:
        """``n`` images drawn at random; with ``vary`` rotated, shifted, magnified, of other contrast and noise,
        labels and CTF following."""
        drawn = torch.randint(len(self.rows), (n,), generator=generator, device=generator.device)
        rows = self.rows[drawn.cpu().numpy()]
        if not vary:
            return self.at(rows)
        batch = self.particles.batch(rows).to(self.device)
        images = self.prepare(batch)
        poses = batch.poses if self.hypotheses is None else self.hypotheses.sample(
            torch.from_numpy(rows), self.particles.pixel_size_angstrom, generator)
        angle_rad, displacement_px, magnification = (
            x.to(self.device) for x in random_transforms(n, images.shape[-1], generator))
        images = transform_images(images, angle_rad, displacement_px, magnification)
        images = vary_grey_values(images, self.noise_amplitude, generator)
        quaternion, shift_angstrom = transform_labels(poses.quaternion, poses.shift_angstrom, angle_rad,
                                                 displacement_px * self.pixel_size_angstrom, magnification)
        turned = replace(batch.ctf, defocus_angle_deg=batch.ctf.defocus_angle_deg + torch.rad2deg(angle_rad))
        return TrainingBatch(images * self.mask, self.ctf_of(turned), quaternion, shift_angstrom)


@dataclass(frozen=True)
class MixedStream:
    """A share of each batch from the particles, the rest simulated; the noise of the latter grows with the training.

    The particles' own images cannot be made easier: their share grows with that noise. Without ``simulated`` there is
    nothing to ``anneal``.
    """

    seed: int
    batch_size: int
    labelled: ParticleStream | None
    simulated: ProjectionStream | None
    particle_fraction: float
    vary: bool = True
    anneal: bool = True

    def __call__(self, step: int, progress: float) -> TrainingBatch:
        """The batch of a step, at a fraction ``progress`` of the training."""
        ramp = min(progress / NOISE_IS_FULL_AT, 1.0) if self.anneal else 1.0
        n_labelled = round(self.batch_size * self.particle_fraction * ramp)
        parts = []
        if self.simulated is not None and n_labelled < self.batch_size:
            noise = noise_factor(progress, self.simulated.image_model.snr) if self.anneal else 1.0
            generator = step_generator(self.seed, step, 1, self.simulated.device)
            parts.append(self.simulated.batch(self.batch_size - n_labelled, generator, noise))
        if self.labelled is not None and n_labelled:
            generator = step_generator(self.seed, step, 2, self.labelled.device)
            parts.append(self.labelled.random(n_labelled, generator, self.vary))
        return parts[0] if len(parts) == 1 else TrainingBatch.concatenate(*parts)
