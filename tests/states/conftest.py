"""Simulated 32 px images at known poses, three in ten of them of a molecule that lacks one end."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoforum_core.geometry.rotations import compose
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.fourier import shift_phase
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.imaging.volume_frame import rotate_volume
from cryoforum_core.matching.matching_model import MatchingModel
from cryoforum_core.particles.session_images import without_domain
from cryoforum_core.states.two_states import PosedImages

from ..matching.conftest import BOX, SimulatedImages, blobs, simulate

N = 600
SNR = 0.4
TOWARDS = torch.tensor([1.0, 0.0, 0.0])


@dataclass
class Mixture:
    """``images``: all of the whole map, with the minor ones' domain taken away; ``is_minor`` (N,)."""

    images: SimulatedImages
    lacking: Tensor
    is_minor: np.ndarray
    group: Tensor

    @property
    def model(self) -> MatchingModel:
        images = self.images
        return MatchingModel.estimate(images.volume, images.images_ft, images.ctf, images.noise_spectrum, self.group,
                                      BOX / 2 - 1, 4.0)

    @property
    def half(self) -> np.ndarray:
        return np.arange(N) % 2

    def posed(self, rows) -> PosedImages:
        model, images = self.model, self.images
        whitened = model.images(images.images_ft[rows], images.ctf[rows])
        return PosedImages.of(whitened, model.volume, images.quaternion[rows], images.displacement_px[rows], self.group)


def mixture(share: float, symmetry: str = "c1", seed: int = 0) -> Mixture:
    """With a point group, the poses are given at random among the equivalent ones."""
    group, generator = symmetry_group(symmetry), torch.Generator().manual_seed(seed + 1)
    volume = torch.stack([rotate_volume(blobs(), element) for element in group]).mean(0) if len(group) > 1 else blobs()
    lacking = without_domain(volume, TOWARDS, 0.15)
    images = simulate(N, SNR, seed, volume)
    is_minor = torch.rand(N, generator=generator) < share
    missing = FourierVolume.from_real(volume - lacking).project(images.quaternion[is_minor])
    images.images_ft[is_minor] -= missing * images.ctf[is_minor] * shift_phase(images.displacement_px[is_minor], BOX)
    element = group[torch.randint(len(group), (N,), generator=generator)]
    images.quaternion = compose(images.quaternion, element.to(images.quaternion))
    return Mixture(images, lacking, is_minor.numpy(), group)


@pytest.fixture(scope="session")
def two() -> Mixture:
    return mixture(0.3)


@pytest.fixture(scope="session")
def alike() -> Mixture:
    return mixture(0.0)


@pytest.fixture(scope="session")
def symmetric() -> Mixture:
    """c2: either subunit may lack its end."""
    return mixture(0.3, "c2")
