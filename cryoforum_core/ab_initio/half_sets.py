"""The images of two half sets, Fourier-cropped for each round to what its resolution needs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..imaging.fourier import resize_volume
from ..imaging.masks import soft_sphere
from ..matching.matching_model import MatchingModel
from ..matching.whitened_images import WhitenedImages
from ..particles.image_preparation import ImagePreparation
from .half_map_pair import HalfMapPair, matching_model, resized_spectrum

# the common start of both half sets knows nothing beyond this radius, in cycles per box: agreement there is their own
COMMON_RADIUS_PX = 8.0
# what is matched at once: more images take memory and save no time
BATCH_IMAGES = 256
# width of the spherical mask's edge, as a fraction of the box: as soft as RELION's 5 px in 100
_EDGE_FRACTION = 0.05


@dataclass(frozen=True)
class HalfSets:
    """Images, half sets and settings that are the same in all rounds. ``images`` are prepared at their own box; a round
    crops them to what its resolution needs."""

    images: ImagePreparation
    halves: Int[np.ndarray, " n"]
    """1 or 2"""
    group: Float[Tensor, "g 4"]
    """rotations of the point group"""
    mask_radius_fraction: float
    """Radius of the sphere in which there may be density, in boxes"""
    max_displacement_px: float
    background_spectrum: Float[Tensor, " shells"]
    """noise power per shell of the images' own box, from their background"""
    common_radius_px: float = COMMON_RADIUS_PX
    """Up to here, in cycles per box, both half sets start from one map"""

    def __len__(self) -> int:
        return len(self.halves)

    @property
    def box_size_px(self) -> int:
        return self.images.box_size_px

    @property
    def device(self) -> torch.device:
        return self.images.device

    def rows(self, half: int) -> Int[np.ndarray, " m"]:
        """The particles of half set 1 or 2."""
        return np.flatnonzero(self.halves == half)

    def scaled(self, noise_spectrum: Float[Tensor, " shells"], max_radius_px: float) -> "RoundImages":
        """In the smallest even box in which they can be matched to ``max_radius_px``; ``noise_spectrum`` of
        their own box."""
        box = min(self.box_size_px, 2 * int(np.ceil(max_radius_px + 2)))
        return RoundImages(self, replace(self.images, box_size_px=box),
                           resized_spectrum(noise_spectrum, self.box_size_px, box), max_radius_px)


@dataclass(frozen=True)
class RoundImages:
    """Images Fourier-cropped to what a round needs, with the noise spectrum of that box."""

    half_sets: HalfSets
    images: ImagePreparation
    noise_spectrum: Float[Tensor, " shells"]
    max_radius_px: float

    @property
    def box_size_px(self) -> int:
        return self.images.box_size_px

    @property
    def scale(self) -> float:
        """Pixels of this box in one of the images' own."""
        return self.box_size_px / self.half_sets.box_size_px

    def mask(self) -> Float[Tensor, "b b b"]:
        """The soft sphere that holds the particle."""
        box = self.box_size_px
        return soft_sphere(box, self.half_sets.mask_radius_fraction * box, _EDGE_FRACTION * box, self.half_sets.device)

    def at(self, rows: Int[np.ndarray, " m"]) -> WhitenedImages:
        """Particles ``rows``, whitened."""
        return WhitenedImages.from_transforms(*self.images.transforms(rows), self.noise_spectrum, self.max_radius_px)

    def model(self, volume: Float[Tensor, "b b b"]) -> MatchingModel:
        """A map in any box as a model of these images."""
        return matching_model(resize_volume(volume, self.box_size_px), self.noise_spectrum, self.half_sets.group,
                              self.max_radius_px,
                              self.half_sets.max_displacement_px * self.box_size_px / self.half_sets.box_size_px)

    def in_own_box(self, pair: HalfMapPair, spectrum_before: Float[Tensor, " shells"]) -> HalfMapPair:
        """The pair with its noise spectrum back at the images' own box; the maps stay at the round's.

        ``spectrum_before``: beyond the round's resolution nothing new is known.
        """
        spectrum = resized_spectrum(pair.noise_spectrum, self.box_size_px, self.half_sets.box_size_px)
        if len(spectrum) > len(pair.noise_spectrum):
            n = len(pair.noise_spectrum) - 2
            spectrum = torch.cat([spectrum[:n], spectrum_before[n:]])
        return replace(pair, noise_spectrum=spectrum)


def batches(rows: Int[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, " m"]]:
    """Rows in parts that are matched at once."""
    return iter(np.array_split(rows, max(1, -(-len(rows) // BATCH_IMAGES))))
