"""Simulated images of a map, as many as wanted, with the CTFs, noise spectrum and signal-to-noise ratio of a data set.

What is assumed of a prepared image (``particles.image_preparation``): scale x CTF x projection, shifted, plus stationary
noise. The scale and the noise spectrum are estimated from the data set (``estimate_image_model``).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..geometry.poses import displacement_px
from ..geometry.rotations import random_quaternions
from ..imaging.ctf import CTFParameters
from ..imaging.fourier import fft_image, ifft_image, shell_average, shell_index, shift_phase
from ..imaging.noise_spectrum import noise_power_spectrum
from ..imaging.projection import FourierVolume

# standard deviation of the logarithm of the contrast from image to image: thickness of the ice
CONTRAST = 0.2
# standard deviation of the logarithm of the noise's amplitude: images are normalised by a background of finite area
NOISE_AMPLITUDE = 0.1
# 200 MB of computed CTFs
_CTF_CACHE_VALUES = 50_000_000
# background subtraction and masks disturb the shells below
_FIRST_SHELL = 2


@dataclass(frozen=True)
class TrainingBatch:
    """n prepared images with their labels, on one device."""

    images: Float[Tensor, "n b b"]
    ctf: Float[Tensor, "n b b//2+1"]
    quaternion: Float[Tensor, "n 4"]
    shift_angstrom: Float[Tensor, "n 2"]
    """sign of rlnOriginX/YAngst"""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "TrainingBatch":
        return TrainingBatch(self.images.to(device), self.ctf.to(device), self.quaternion.to(device),
                             self.shift_angstrom.to(device))

    @staticmethod
    def concatenate(first: "TrainingBatch", second: "TrainingBatch") -> "TrainingBatch":
        return TrainingBatch(*(torch.cat([getattr(first, name), getattr(second, name)])
                               for name in ("images", "ctf", "quaternion", "shift_angstrom")))


@dataclass(frozen=True)
class ImageModel:
    """Prepared image = ``signal_scale`` x CTF x projection + noise of ``noise_spectrum``."""

    noise_spectrum: Float[Tensor, " shells"]
    signal_scale: float
    snr: float
    """Variance of the signal over variance of the noise, over the whole image."""

    def noise_amplitude(self) -> Float[Tensor, "b b//2+1"]:
        """Standard deviation of the noise's transform over that of white noise of variance 1."""
        box_size_px = 2 * (len(self.noise_spectrum) - 1)
        return self.noise_spectrum[shell_index(box_size_px)].sqrt() / box_size_px


def signal_power(volume: FourierVolume, ctf: Float[Tensor, "n b b//2+1"], box_size_px: int, seed: int = 0
                 ) -> Float[Tensor, "b b//2+1"]:
    """Mean of |CTF x projection|^2 over random poses, one for each of the CTFs."""
    quaternion = random_quaternions(len(ctf), torch.Generator().manual_seed(seed)).to(ctf.device)
    return (volume.project(quaternion, box_size_px).abs() * ctf).square().mean(0)


def estimate_image_model(images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"], volume: FourierVolume,
                         particle_radius_px: float) -> ImageModel:
    """Noise spectrum from the background, signal scale from what the whole images hold beyond it.

    images: prepared but not masked. The squared scale is the weighted least-squares
    fit of ``power(images) - power(noise) = scale^2 power(CTF x projection)`` over the shells; the weights are one over
    the variance of a power, ``(noise + signal)^2 / pixels of the shell``. Raises InputError where the images hold no
    signal like the map's.
    """
    box_size_px = images.shape[-1]
    noise = noise_power_spectrum(images, particle_radius_px).double()
    mean = images.mean((-2, -1), keepdim=True)
    total = shell_average(fft_image(images - mean).abs().square().mean(0).double(), box_size_px)
    signal = shell_average(signal_power(volume, ctf, box_size_px).double(), box_size_px)
    pixels = torch.bincount(shell_index(box_size_px).flatten(), minlength=box_size_px // 2 + 1).to(noise)
    used = slice(_FIRST_SHELL, box_size_px // 2)
    squared_scale = torch.zeros((), dtype=torch.float64, device=noise.device)
    for _ in range(5):  # the weights depend on the scale
        weight = (pixels / (noise + squared_scale * signal).square())[used]
        squared_scale = ((weight * signal[used] * (total - noise)[used]).sum()
                         / (weight * signal[used].square()).sum()).clamp_min(0)
    if not squared_scale > 0:
        raise InputError("The images must show the particle: they have no more power inside the particle's circle than "
                         "outside. Check the contrast, the box (too tight?) and that the reference is of this molecule.")
    snr = _variance(squared_scale * signal, box_size_px) / _variance(noise, box_size_px)
    return ImageModel(noise.float(), float(squared_scale.sqrt()), float(snr))


def _variance(spectrum: Tensor, box_size_px: int) -> Tensor:
    """Variance of an image whose power per shell is ``spectrum`` (Parseval), the constant term left out."""
    power = spectrum[shell_index(box_size_px, spectrum.device)]
    mates = torch.full_like(power[0], 2.0)
    mates[0] = mates[-1] = 1.0
    return ((power * mates).sum() - power[0, 0]) / box_size_px ** 4


class ProjectionStream:
    """Batches of simulated images; a batch is a function of the generator and the noise alone."""

    def __init__(self, volume: FourierVolume, ctf: CTFParameters, ctf_of: Callable[[CTFParameters], Tensor],
                 box_size_px: int, pixel_size_angstrom: float, image_model: ImageModel, shift_rms_angstrom: float,
                 mask: Float[Tensor, "b b"] | None = None, jitter: bool = True, device: torch.device | str = "cpu"):
        """``volume``: of the map, with the images' field of view. ``ctf_of`` makes CTFs (n, b, b // 2 + 1) of
        parameters, in the state that prepared images have. ``mask`` is applied last. ``jitter``: vary contrast and
        noise from image to image."""
        self.volume, self.box_size_px = volume.to(device), box_size_px
        self.pixel_size_angstrom, self.shift_rms_angstrom = pixel_size_angstrom, shift_rms_angstrom
        self.image_model, self.jitter, self.device = image_model, jitter, device
        self.mask = torch.ones(box_size_px, box_size_px) if mask is None else mask
        self.mask = self.mask.to(device)
        # computing a CTF takes as long as projecting: keep them, of a sample where there are too many
        most = max(_CTF_CACHE_VALUES // (box_size_px * (box_size_px // 2 + 1)), 1)
        kept = torch.linspace(0, len(ctf) - 1, min(len(ctf), most)).long()
        self.ctf = ctf_of(ctf[kept]).to(device)
        self.noise_amplitude = image_model.noise_amplitude().to(device)

    def without_jitter(self) -> "ProjectionStream":
        """The same images without variation of contrast and noise."""
        plain = copy.copy(self)
        plain.jitter = False
        return plain

    def batch(self, n: int, generator: torch.Generator, noise: float = 1.0) -> TrainingBatch:
        """``n`` images with poses uniform over SO(3); ``noise``: amplitude relative to the data's."""
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=generator.device).to(self.device)

        quaternion = random_quaternions(n, generator).to(self.device)
        chosen = torch.randint(len(self.ctf), (n,), generator=generator, device=generator.device)
        ctf, shift_angstrom = self.ctf[chosen.to(self.device)], self.shift_rms_angstrom * normal(n, 2)
        contrast = self.image_model.signal_scale * torch.exp(self.jitter * CONTRAST * normal(n, 1, 1))
        amplitude = noise * torch.exp(self.jitter * NOISE_AMPLITUDE * normal(n, 1, 1))
        clean = self.volume.project(quaternion, self.box_size_px) * ctf
        clean = clean * shift_phase(displacement_px(shift_angstrom, self.pixel_size_angstrom), self.box_size_px)
        noise_ft = fft_image(normal(n, self.box_size_px, self.box_size_px)) * self.noise_amplitude
        images = ifft_image(clean * contrast + noise_ft * amplitude)
        return TrainingBatch(images * self.mask, ctf, quaternion, shift_angstrom)
