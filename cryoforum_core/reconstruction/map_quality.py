"""Half maps of subsets of the particles, their FSC, and the amount of information in it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..imaging.fourier import volume_radius_px
from ..imaging.masks import soft_sphere
from ..imaging.projection import Reconstructor
from ..imaging.resolution import fourier_shell_correlation, resolution_angstrom
from ..particles.dataset import Particles
from ..particles.image_preparation import ImagePreparation
from ..progress import Progress
from .reconstruct import BATCH_IMAGES, WIENER, half_sets, insert_particles

# two half sets' sums take 0.2 GB there
MAX_BOX_PX = 128
# the signal-to-noise ratio of an FSC of 1 is infinite
_LARGEST_FSC = 1 - 1e-6


@dataclass(frozen=True, eq=False)
class MapQuality:
    """FSC, information and resolution of the half maps of a set of particles."""

    fsc: Float[np.ndarray, " shells"]
    """of the masked half maps"""
    information: float
    """nats: half the logarithm of 1 + signal-to-noise ratio, summed over the map's independent values"""
    resolution_angstrom: float
    """FSC 0.143"""


class HalfMapMaker:
    """Half maps of any subset of the particles. Sums of disjoint subsets can be added."""

    def __init__(self, particles: Particles, images: ImagePreparation, group: Float[Tensor, "g 4"], seed: int):
        self._images = replace(images, box_size_px=min(images.box_size_px, MAX_BOX_PX))
        self._particles, self._group = particles, group
        self._halves, _ = half_sets(particles, seed)
        box = self._images.box_size_px
        self._mask = soft_sphere(box, 0.45 * box, 0.05 * box, images.device)
        # a mask takes its share of the noise's power away, and with it of the independent values in a shell
        self._values_per_shell = _voxels_per_shell(box) * float(self._mask.square().mean()) / len(group)

    @property
    def n_symmetric(self) -> int:
        """Rotations of the point group."""
        return len(self._group)

    def sums(self, rows: Int[np.ndarray, " n"], progress: Progress
             ) -> tuple[Float[Tensor, "1 channels z z x"], Float[Tensor, "1 channels z z x"]]:
        """Sums of ``Reconstructor`` for both half sets of the particles ``rows``."""
        both = []
        for half in (1, 2):
            reconstructor = self._reconstructor()
            of_half = rows[self._halves[rows] == half]
            for batch in np.array_split(of_half, max(1, -(-len(of_half) // BATCH_IMAGES))):
                insert_particles(reconstructor, self._particles, batch, self._images.transforms, self._group,
                                 device=self._images.device)
                progress.update(len(batch))
            both.append(reconstructor.sums)
        return both[0], both[1]

    def quality(self, sums: tuple[Float[Tensor, "1 channels z z x"], Float[Tensor, "1 channels z z x"]]) -> MapQuality:
        first, second = (self._volume(of_half) * self._mask for of_half in sums)
        correlation = fourier_shell_correlation(first, second)
        fsc = correlation.cpu().numpy()
        box = self._images.box_size_px
        # log(1 + SNR) / 2 of the whole map, whose SNR is 2 FSC / (1 - FSC), is the inverse hyperbolic tangent of FSC;
        # where there is no signal its mean is zero
        shells = slice(1, box // 2)
        information = (self._values_per_shell * np.arctanh(np.clip(fsc, -_LARGEST_FSC, _LARGEST_FSC)))[shells].sum()
        return MapQuality(fsc, float(information),
                          resolution_angstrom(correlation, box, self._images.pixel_size_angstrom))

    def explained_power(self, quality: MapQuality, n: int) -> float:
        """E of the average of the n particles that the half maps were made of."""
        fsc = np.clip(quality.fsc, -_LARGEST_FSC, _LARGEST_FSC)[1:-1]
        return float((self._values_per_shell[1:-1] * 2 * fsc / (1 - fsc)).sum() / n)

    def _reconstructor(self) -> Reconstructor:
        box = self._images.box_size_px
        return Reconstructor(box, max_radius_px=box / 2 - 1, device=self._images.device)

    def _volume(self, sums: Tensor) -> Tensor:
        reconstructor = self._reconstructor()
        reconstructor.sums = sums
        return reconstructor.volume(WIENER)


def _voxels_per_shell(box_size_px: int) -> np.ndarray:
    """Of a transform (B, B, B): (B // 2 + 1,)."""
    shells = volume_radius_px(box_size_px).round().long()
    # columns kx > 0 stand for two voxels of the whole transform
    multiplicity = torch.full((box_size_px // 2 + 1,), 2.0)
    multiplicity[[0, -1]] = 1.0
    return torch.bincount(shells.flatten(), multiplicity.expand_as(shells).flatten())[:box_size_px // 2 + 1].numpy()
