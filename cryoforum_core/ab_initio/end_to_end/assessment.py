"""Assessment of a run of the end-to-end method, on held-out images and on projections of its map."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...geometry.symmetry import symmetric_distance_deg
from ...imaging.fourier import fft_image, ifft_image
from ...imaging.resolution import resolution_angstrom
from ...reconstruction.reconstruct import HalfMaps
from ...training.autoencoder import AutoEncoder, equivariance_errors_deg, mean_square, unexplained_power
from ...training.image_batches import ImageBatch
from ...training.simulated_projections import TrainingBatch
from ..convergence import EndToEndAssessment, max_projection_error_deg
from .setup import EndToEndSetup


def assess(setup: EndToEndSetup, maps: HalfMaps, projections: list[TrainingBatch]) -> EndToEndAssessment:
    """Held-out images against the map, against images without poses, and against noise; network against the map, by
    its projections."""
    held_out, model, plan = setup.objective.evaluated, setup.model, setup.plan
    power = mean_square(held_out)
    noise = _noise_images(setup, held_out)
    loss_of_noise = mean_square(noise) / power
    deviations = rotation_error_deg = projection_error_deg = None
    if setup.has_encoder and not model.uses_table:
        gain, gain_of_noise = _gain(model, held_out), _gain(model, noise)
        spread = math.sqrt((gain.var() / len(gain) + gain_of_noise.var() / len(gain_of_noise)).item())
        deviations = (gain.mean() - gain_of_noise.mean()).item() / max(spread, 1e-12)
        rotation_error_deg = equivariance_errors_deg(model, held_out).median().item()
        if projections:
            projection_error_deg = _pose_errors_deg(model, projections).median().item()
    box, pixel_size_angstrom = plan.particles.box_size_px, plan.particles.pixel_size_angstrom
    resolution = resolution_angstrom(maps.fsc, box, pixel_size_angstrom)
    return EndToEndAssessment(unexplained_power(model, held_out) / power, _loss_without_poses(setup) / power, loss_of_noise,
                     deviations, rotation_error_deg, projection_error_deg, box * pixel_size_angstrom / resolution,
                     max_projection_error_deg(model.network.is_equivariant))


def _gain(model: AutoEncoder, batches: list[ImageBatch]) -> Tensor:
    """How much of each image's mean square (n,) is explained."""
    transform = model.volume.transform()
    return torch.cat([batch.images.square().mean((-2, -1)) - model.poses(batch, transform)[1] for batch in batches])


def _pose_errors_deg(model: AutoEncoder, projections: list[TrainingBatch]) -> Tensor:
    """Angles (n,) between the poses found and those at which the projections were made."""
    transform, errors = model.volume.transform(), []
    for batch in projections:
        rows = torch.zeros(len(batch.images), dtype=torch.int64)
        found = model.poses(ImageBatch(rows, batch.images, batch.ctf), transform)[0].quaternion
        errors.append(symmetric_distance_deg(found, batch.quaternion.to(found), model.group))
    return torch.cat(errors)


def _noise_images(setup: EndToEndSetup, like: list[ImageBatch]) -> list[ImageBatch]:
    """Images of noise with the background's spectrum, as many as ``like``, with their CTFs."""
    generator, amplitude = torch.Generator().manual_seed(setup.config.seed), setup.model.noise_amplitude
    white = [torch.randn(batch.images.shape, generator=generator).to(batch.images) for batch in like]
    return [replace(batch, images=ifft_image(fft_image(noise) * amplitude) * setup.model.mask)
            for batch, noise in zip(like, white, strict=True)]


def _loss_without_poses(setup: EndToEndSetup) -> float:
    """Mean square that is left of the held-out images by the image that, times their CTFs, comes nearest to all."""
    products, squares = 0.0, 0.0
    for batch in setup.images.batches(setup.stream.rows):
        products = products + (fft_image(batch.images) * batch.ctf).sum(0)
        squares = squares + batch.ctf.square().sum(0)
    common = products / squares.clamp_min(1e-6)
    left = [replace(batch, images=batch.images - ifft_image(common * batch.ctf) * setup.model.mask)
            for batch in setup.objective.evaluated]
    return mean_square(left)
