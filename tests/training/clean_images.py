"""Images of a small molecule without noise and CTF, in memory, for the auto-encoder and what it learns from."""

import numpy as np
import torch

from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.imaging.fourier import ifft_image
from cryoforum_core.imaging.masks import soft_circle
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.training.image_batches import PreparedImages

BOX, PIXEL = 16, 6.0
MASK = soft_circle(BOX, 0.45 * BOX, 3.0)


def molecule() -> torch.Tensor:
    """An asymmetric map (16, 16, 16): four blobs."""
    axis = (torch.arange(BOX) - BOX // 2).float()
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    centres = (((3, 2, 1), 1.6), ((2, -3, -2), 1.2), ((-3, 1, -2), 0.9), ((-1, -3, 3), 0.6))
    return sum(w * torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 2.5) for (a, b, c), w in centres)


class CleanSet:
    """Noiseless images of the molecule without CTF, in memory."""

    def __init__(self, n: int = 400):
        generator = torch.Generator().manual_seed(5)
        self.quaternion = random_quaternions(n, generator)
        made = ifft_image(FourierVolume.from_real(molecule()).project(self.quaternion))
        self.pixels, self.n = made / made.std() * MASK, n
        self.ctf = torch.ones(n, BOX, BOX // 2 + 1)
        self.images = PreparedImages(lambda rows: (self.pixels[rows], self.ctf[rows]), n, BOX)
        self.rows, self.held_out = np.arange(n // 10, n), np.arange(n // 10)
