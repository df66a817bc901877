"""Simulated 32 px images of an asymmetric blob molecule with known poses, CTF, shifts and noise."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.ctf import CTFParameters, ctf_2d
from cryoforum_core.imaging.fourier import fft_image, ifft_image, shift_phase
from cryoforum_core.imaging.noise_spectrum import noise_power_spectrum
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.matching.matching_model import MatchingModel

BOX = 32


def blobs(box: int = BOX, n: int = 25, seed: int = 3) -> Tensor:
    """A map (B, B, B) of Gaussian blobs at random places within 0.3 box of the centre."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    centres = centres * torch.rand(n, 1, generator=generator) ** (1 / 3) * 0.3 * box
    axis = torch.arange(box) - box // 2
    profile = torch.exp(-0.5 * ((axis - centres[..., None]) / 1.3) ** 2)
    return torch.einsum("nz,ny,nx->zyx", *profile.unbind(1))


@dataclass
class SimulatedImages:
    volume: Tensor
    images_ft: Tensor
    ctf: Tensor
    quaternion: Tensor
    displacement_px: Tensor
    noise_spectrum: Tensor

    def model(self, group: str = "c1", max_displacement_px: float = 4.0) -> MatchingModel:
        return MatchingModel.estimate(self.volume, self.images_ft, self.ctf, self.noise_spectrum,
                                      symmetry_group(group), BOX / 2 - 1, max_displacement_px)


def simulate(n: int, snr: float, seed: int = 0, volume: Tensor | None = None) -> SimulatedImages:
    generator = torch.Generator().manual_seed(seed)
    volume = blobs() if volume is None else volume
    quaternion = random_quaternions(n, generator)
    displacement = torch.randn(n, 2, generator=generator).clamp(-2.5, 2.5)
    defocus = 8000 + 12000 * torch.rand(n, generator=generator)
    one = torch.ones(n)
    ctf = ctf_2d(CTFParameters(defocus + 200, defocus, 90 * one, 0 * one, 300 * one, 2.7 * one, 0.1 * one), BOX, 5.0)
    clean = ifft_image(FourierVolume.from_real(volume).project(quaternion) * ctf * shift_phase(displacement, BOX))
    noise = torch.randn(clean.shape, generator=generator) * (clean.var() / snr).sqrt()
    images = clean + noise
    spectrum = noise_power_spectrum(noise, particle_radius_px=12.0)
    return SimulatedImages(volume, fft_image(images), ctf, quaternion, displacement, spectrum)


@pytest.fixture(scope="session")
def clean_images() -> SimulatedImages:
    return simulate(24, snr=1e4)


@pytest.fixture(scope="session")
def noisy_images() -> SimulatedImages:
    return simulate(160, snr=0.5, seed=1)
