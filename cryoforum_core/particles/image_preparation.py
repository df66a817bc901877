"""Preparation of the images of a stack for matching, reconstruction and the network: box, CTF, contrast, grey values, mask.

One path for training and prediction: its settings are stored in the checkpoint, its data-set part (``ImageState``) is
found per data set.
"""

import dataclasses
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float, Integer
from torch import Tensor
from torch.nn import functional

from ..config import ImageInputConfig
from ..errors import InputError
from ..imaging.ctf import CTFParameters, ctf_2d
from ..imaging.fourier import crop_image_ft, crop_volume, fft_image, ifft_image
from ..imaging.masks import soft_circle
from ..imaging.noise_spectrum import fitted_plane
from ..imaging.resample import resample_volume
from ..mrc import read_map
from .dataset import Particles, ParticleSource
from .image_check import checked_pixels, is_constant
from .image_state import BACKGROUND_RADIUS_FRACTION, CTFState, ImageState, determine_image_state
from .micrograph_noise import MicrographNoise
from .particle_groups import ParticleGroups

logger = logging.getLogger("cryoforum")

# the box of Chung (2023); larger ones cost time, and their high frequencies are noise in a single image
MAX_DEFAULT_BOX_PX = 128
# boxes are even, so that a crop meets the network's pixel size only nearly; twice the scatter of training's magnifications
_SCALE_TOLERANCE = 0.02
# where the CTF is smaller, an image that was multiplied by it holds too little to be divided again
SMALLEST_CTF = 0.1


@dataclass(frozen=True)
class PreprocessSettings:
    """How a network's images are made; part of its checkpoint."""

    box_size_px: int
    """The network's box, even."""
    pixel_size_angstrom: float
    """The network's pixel size."""
    mask_radius_fraction: float = 0.45
    """Radius of the particle's circle as a part of the box: outside is background, and is masked."""
    mask_edge_px: float = 3.0
    """Width of the mask's soft edge, in the network's pixels."""
    phase_flip: bool = True
    """Give raw images the phases of flipped ones, so that the network sees one sign of each frequency."""

    def __post_init__(self):
        if self.box_size_px % 2 or self.box_size_px <= 0:
            raise ValueError(f"the network's box must be even; got {self.box_size_px}")

    @classmethod
    def for_images(cls, box_size_px: int, pixel_size_angstrom: float, network_box_size_px: int | None = None,
                   **options) -> "PreprocessSettings":
        """Settings that show a network the whole image, Fourier-cropped to ``network_box_size_px``; by default to
        128 px where the image is larger."""
        network_box = min(network_box_size_px or MAX_DEFAULT_BOX_PX, box_size_px)
        return cls(network_box, pixel_size_angstrom * box_size_px / network_box, **options)

    def to_dict(self) -> dict[str, int | float | bool]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, int | float | bool]) -> "PreprocessSettings":
        return cls(**values)

    def rescaled_box_px(self, box_size_px: int, pixel_size_angstrom: float) -> int:
        """The even box to which images must be Fourier-cropped to get the network's pixel size, as near as it goes."""
        return 2 * round(box_size_px * pixel_size_angstrom / self.pixel_size_angstrom / 2)

    def check(self, box_size_px: int, pixel_size_angstrom: float) -> None:
        """Raises InputError where images of this box and pixel size cannot be shown to the network."""
        rescaled = self.rescaled_box_px(box_size_px, pixel_size_angstrom)
        if rescaled > box_size_px:
            raise InputError(
                f"Images must have pixels of at most the network's {self.pixel_size_angstrom:g} A; these have "
                f"{pixel_size_angstrom:g} A. Extract them with less binning, or train a network for them.")
        exact = box_size_px * pixel_size_angstrom / self.pixel_size_angstrom
        if abs(rescaled / exact - 1.0) > _SCALE_TOLERANCE:
            raise InputError(
                f"Images must reach the network's pixel size of {self.pixel_size_angstrom:g} A within "
                f"{100 * _SCALE_TOLERANCE:g} %; {box_size_px} px at {pixel_size_angstrom:g} A/px do not. "
                "Extract them with a larger box, or train a network for them.")


def network_images(images: Float[Tensor, "n B B"], ctf: CTFParameters | None, pixel_size_angstrom: float,
                   state: ImageState, settings: PreprocessSettings) -> Float[Tensor, "n b b"]:
    """Images (n, B, B) of the stack as the network's input (n, b, b) float32.

    In this order: Fourier crop to the network's pixel size, phase flip (raw images), crop or pad to the network's
    box, sign so that protein is bright, background to mean 0 and standard deviation 1, soft circular mask.
    """
    settings.check(images.shape[-1], pixel_size_angstrom)
    rescaled = settings.rescaled_box_px(images.shape[-1], pixel_size_angstrom)
    flips = settings.phase_flip and state.ctf_state == "raw"
    if flips or rescaled != images.shape[-1]:
        images_ft = crop_image_ft(fft_image(images), rescaled)
        if flips:
            if ctf is None:
                raise ValueError("flipping phases needs the CTF of the images")
            new_pixel_size_angstrom = pixel_size_angstrom * images.shape[-1] / rescaled
            images_ft = images_ft * torch.where(ctf_2d(ctf, rescaled, new_pixel_size_angstrom) < 0, -1.0, 1.0)
        images = ifft_image(images_ft)
    images = normalise(images, state, settings.mask_radius_fraction)
    mask = soft_circle(settings.box_size_px, settings.mask_radius_fraction * settings.box_size_px,
                       settings.mask_edge_px, images.device)
    return _centre_crop_or_pad(images, settings.box_size_px) * mask


def _centre_crop_or_pad(images: Tensor, box_size_px: int) -> Tensor:
    """The middle of the images, centre B // 2 on b // 2; zeros, the background's mean, where there is no image."""
    before = box_size_px // 2 - images.shape[-1] // 2
    after = box_size_px - images.shape[-1] - before
    return functional.pad(images, (before, after, before, after))


def normalise(images: Float[Tensor, "n b b"], state: ImageState,
              background_radius_fraction: float = BACKGROUND_RADIUS_FRACTION) -> Float[Tensor, "n b b"]:
    """Images (n, B, B) with bright protein, and a background of mean 0 and standard deviation 1, without gradient.

    The background is what lies outside the circle of ``background_radius_fraction`` boxes; a plane fitted to it is
    subtracted (RELION's normalisation: a ramping background).
    Images of a set with hardly any noise are all divided by the set's ``grey_unit`` instead, and no plane is
    subtracted: it would be a part of the particle. Else images with a constant
    background, which have no noise to go by, become 0, and so do images
    with NaN or infinite values: one of them must not turn a map of all the others into NaN.
    """
    box_size_px = images.shape[-1]
    circle = soft_circle(box_size_px, background_radius_fraction * box_size_px, 0.0, images.device)
    background = images[:, circle == 0]
    mean = background.mean(1)[:, None, None]
    is_level = is_constant(background)
    if state.grey_unit is None:
        plane = fitted_plane(images - mean, (circle == 0).to(images.dtype))
        images, background = images - plane, background - plane[:, circle == 0]
    is_broken = ~torch.isfinite(images).flatten(1).all(1)
    if is_broken.any():
        logger.warning("%d of %d images read together hold NaN or infinite values; they count as empty.",
                       int(is_broken.sum()), len(images))
    if state.grey_unit is None:
        unit, is_empty = background.std(1), is_level | is_broken
    else:
        unit, is_empty = torch.full_like(mean[:, 0, 0], state.grey_unit), is_broken
    sign = -1.0 if state.contrast == "dark" else 1.0
    scaled = (images - mean) * (sign / torch.where(is_empty, torch.ones_like(unit), unit))[:, None, None]
    return torch.where(is_empty[:, None, None], torch.zeros_like(scaled), scaled)


def effective_ctf(ctf: CTFParameters, box_size_px: int, pixel_size_angstrom: float, ctf_state: CTFState
                  ) -> Float[Tensor, "n {box_size_px} {box_size_px}//2+1"]:
    """The transfer function from a projection to its image, by the state of CTF correction: (n, B, B // 2 + 1).

    The CTF of raw images, its absolute value of phase-flipped ones, its square of multiplied ones.
    """
    values = ctf_2d(ctf, box_size_px, pixel_size_angstrom)
    if ctf_state == "phase-flipped":
        return values.abs()
    return values.square() if ctf_state == "multiplied" else values


def network_ctf(ctf: CTFParameters, state: ImageState, settings: PreprocessSettings) -> Float[Tensor, "n b b//2+1"]:
    """The transfer function from a projection to an image of ``network_images``: (n, b, b // 2 + 1)."""
    flipped = settings.phase_flip and state.ctf_state == "raw"
    return effective_ctf(ctf, settings.box_size_px, settings.pixel_size_angstrom,
                         "phase-flipped" if flipped else state.ctf_state)


@dataclass(frozen=True)
class ImagePreparation:
    """How the images of one data set are read: their state, the box of matching, and the network's settings."""

    particles: ParticleSource
    state: ImageState
    box_size_px: int
    device: torch.device
    network_settings: PreprocessSettings | None = None
    noise: MicrographNoise | None = None
    """of the micrographs of the data set; None: all are taken to be alike"""

    @classmethod
    def checked(cls, particles: Particles, image_input: ImageInputConfig, device: torch.device) -> "ImagePreparation":
        """The images in their own box. Raises InputError as ``checked_image_state``."""
        return cls(particles, checked_image_state(particles, image_input), particles.box_size_px, device)

    @property
    def pixel_size_angstrom(self) -> float:
        """Of the matching box."""
        return self.particles.pixel_size_angstrom * self.particles.box_size_px / self.box_size_px

    def with_micrograph_noise(self, seed: int = 0) -> "ImagePreparation":
        """With the noise of each micrograph measured, where there are several, and their images have noise as the camera
        made it: it was multiplied in images multiplied by their CTF, which differs between micrographs."""
        groups = ParticleGroups.of(self.particles.table)
        if len(groups) < 2 or self.state.grey_unit is not None or self.state.ctf_state == "multiplied":
            return replace(self, noise=None)

        def read(rows: np.ndarray) -> Tensor:
            return normalise(self.particles.batch(rows).images.to(self.device), self.state)

        noise = MicrographNoise.measure(groups, read, seed)
        return replace(self, noise=replace(noise, amplitude=noise.amplitude.to(self.device)))

    def transforms(self, rows: Integer[np.ndarray, " n"]
                   ) -> tuple[Complex[Tensor, "n b b//2+1"], Float[Tensor, "n b b//2+1"]]:
        """Transforms and CTFs (n, b, b // 2 + 1) of the particles ``rows`` (n,): bright protein, background of mean 0
        and standard deviation 1 in the original box, noise as the camera made it. Both are divided by the relative
        noise amplitude of the micrograph, where micrographs differ."""
        images_ft, ctf = self._transforms(rows)
        if self.noise is None or self.noise.are_alike:
            return images_ft, ctf
        amplitude = self.noise.of_images(self.particles.noise_rows(rows), self.box_size_px)
        return images_ft / amplitude, ctf / amplitude

    def _transforms(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        batch = self.particles.batch(rows).to(self.device)
        images = normalise(batch.images, self.state)
        images_ft = crop_image_ft(fft_image(images), self.box_size_px)
        if self.state.ctf_state != "multiplied":
            return images_ft, effective_ctf(batch.ctf, self.box_size_px, self.pixel_size_angstrom, self.state.ctf_state)
        ctf = ctf_2d(batch.ctf, self.box_size_px, self.pixel_size_angstrom)
        usable = ctf.abs() > SMALLEST_CTF
        return torch.where(usable, images_ft / torch.where(usable, ctf, 1.0), 0), torch.where(usable, ctf, 0.0)

    def network_input(self, rows: Integer[np.ndarray, " n"]
                      ) -> tuple[Float[Tensor, "n b b"], Float[Tensor, "n b b//2+1"]]:
        """Images (n, c, c) and CTFs (n, c, c // 2 + 1) at the network's box."""
        batch = self.particles.batch(rows).to(self.device)
        images = network_images(batch.images, batch.ctf, self.particles.pixel_size_angstrom, self.state,
                                self.network_settings)
        return images, network_ctf(batch.ctf, self.state, self.network_settings)


def matching_map(path: Path, particles: Particles, resolution_angstrom: float | None = None
                 ) -> Float[Tensor, "b b b"]:
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
