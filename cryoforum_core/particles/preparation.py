"""Images of a data set as matching, reconstruction and the network want them."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ImageInputConfig
from ..imaging.ctf import ctf_2d
from ..imaging.fourier import crop_image_ft, crop_volume, fft_image
from ..imaging.resample import resample_volume
from ..mrc import read_map
from .dataset import Particles
from .image_check import checked_pixels
from .image_state import ImageState, determine_image_state
from .preprocess import PreprocessSettings, effective_ctf, network_ctf, network_images, normalise

logger = logging.getLogger("cryoforum")

# where the CTF is smaller, an image that was multiplied by it holds too little to be divided again
SMALLEST_CTF = 0.1


@dataclass(frozen=True)
class ImagePreparation:
    """How the images of one data set are read: their state, the box of matching, and the network's settings."""

    particles: Particles
    state: ImageState
    box_size_px: int
    device: torch.device
    network_settings: PreprocessSettings | None = None

    @classmethod
    def checked(cls, particles: Particles, image_input: ImageInputConfig, device: torch.device) -> "ImagePreparation":
        """The images in their own box. Raises InputError as ``checked_image_state``."""
        return cls(particles, checked_image_state(particles, image_input), particles.box_size_px, device)

    @property
    def pixel_size_angstrom(self) -> float:
        """Of the matching box."""
        return self.particles.pixel_size_angstrom * self.particles.box_size_px / self.box_size_px

    def transforms(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Transforms and CTFs (n, b, b // 2 + 1) of the particles ``rows`` (n,): bright protein, background of mean 0
        and standard deviation 1 in the original box, noise as the camera made it."""
        batch = self.particles.batch(rows).to(self.device)
        images = normalise(batch.images, self.state)
        images_ft = crop_image_ft(fft_image(images), self.box_size_px)
        if self.state.ctf_state != "multiplied":
            return images_ft, effective_ctf(batch.ctf, self.box_size_px, self.pixel_size_angstrom, self.state.ctf_state)
        ctf = ctf_2d(batch.ctf, self.box_size_px, self.pixel_size_angstrom)
        usable = ctf.abs() > SMALLEST_CTF
        return torch.where(usable, images_ft / torch.where(usable, ctf, 1.0), 0), torch.where(usable, ctf, 0.0)

    def network_input(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images (n, c, c) and CTFs (n, c, c // 2 + 1) at the network's box."""
        batch = self.particles.batch(rows).to(self.device)
        images = network_images(batch.images, batch.ctf, self.particles.pixel_size_angstrom, self.state,
                                self.network_settings)
        return images, network_ctf(batch.ctf, self.state, self.network_settings)


def matching_map(path: Path, particles: Particles, resolution_angstrom: float | None = None) -> Tensor:
    """A map file on the grid in which matching is done: the particles' field of view, in a box (b, b, b) that is no
    larger than what the particles, the map or the resolution asked for can fill."""
    volume, pixel_size_angstrom = read_map(path)
    extent_angstrom = particles.box_size_px * particles.pixel_size_angstrom
    finest_angstrom = max(2 * pixel_size_angstrom, 2 * particles.pixel_size_angstrom, resolution_angstrom or 0.0)
    # some pixels more than the sampling theorem asks for, so that the last shells are whole
    spare = 0 if resolution_angstrom is None else 4
    box = min(particles.box_size_px, 2 * round(extent_angstrom / finest_angstrom) + spare)
    resampled = resample_volume(torch.from_numpy(volume), pixel_size_angstrom, particles.pixel_size_angstrom,
                                particles.box_size_px)
    return crop_volume(resampled, box)


def checked_image_state(particles: Particles, image_input: ImageInputConfig) -> ImageState:
    """Contrast and CTF state of images that a job can work with; a few constant images are named in the log.

    Raises InputError as ``checked_pixels``.
    """
    check = checked_pixels(particles)
    if check.warning():
        logger.warning(check.warning())
    return determine_image_state(particles, image_input)
