"""Small images of noise, whitened."""

import torch

from cryoforum_core.imaging.fourier import fft_image
from cryoforum_core.matching.whitened_images import WhitenedImages

BOX = 32
RADIUS = 12.0


def matching_images(images, spectrum=None):
    spectrum = torch.ones(BOX // 2 + 1) if spectrum is None else spectrum
    return WhitenedImages.from_transforms(fft_image(images), torch.ones(len(images), BOX, BOX // 2 + 1), spectrum, RADIUS)


def noise(n, seed=1):
    return torch.randn(n, BOX, BOX, generator=torch.Generator().manual_seed(seed))
