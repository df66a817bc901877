"""The noise spectrum of the images, from the background around the particles."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..imaging.fourier import ifft_image
from ..imaging.noise_spectrum import noise_power_spectrum
from ..particles.image_preparation import ImagePreparation
from ..particles.image_state import BACKGROUND_RADIUS_FRACTION

# enough for a smooth spectrum
N_NOISE_IMAGES = 1000
# what is read at once
_BATCH = 250


def background_spectrum(images: ImagePreparation, rows: Int[np.ndarray, " n"]) -> Float[Tensor, " shells"]:
    """Noise power per shell, from the background of a thousand images."""
    box = images.box_size_px
    some = np.sort(rows[:N_NOISE_IMAGES])
    spectra = [noise_power_spectrum(ifft_image(images.transforms(part)[0]), BACKGROUND_RADIUS_FRACTION * box)
               for part in np.array_split(some, max(1, len(some) // _BATCH))]
    return torch.stack(spectra).mean(0)
