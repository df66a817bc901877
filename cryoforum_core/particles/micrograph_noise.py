"""The noise of each micrograph relative to that of the set, from the background of some of its images.

The model of a set has one noise spectrum, but ice and dose differ between micrographs. Images and their CTFs divided by
the relative amplitude of their micrograph's noise have one spectrum.

A micrograph has few images, so its spectrum has a sampling error. By how much micrographs really differ, the variance tau
of log power between them less what sampling explains, is estimated from all of them; each is then shrunk towards the set
by tau / (tau + its own sampling variance) (empirical Bayes, e.g. Efron and Morris 1973).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..imaging.fourier import shell_index
from ..imaging.noise_spectrum import background_mask, noise_power_spectra
from ..progress import Progress
from .image_state import BACKGROUND_RADIUS_FRACTION
from .particle_groups import ParticleGroups

logger = logging.getLogger("cryoforum")

# more images of a micrograph than this hardly reduce the sampling error, which is 2 % of the amplitude at 10 shells
IMAGES_OF_MICROGRAPH = 64
# and of the set: seconds to read, minutes at most
IMAGES_IN_ALL = 10_000
# noise spectra change slowly: standard deviation of the smoothing, in shells, and its growth with the shell
_SMOOTHING_SHELLS = 1.0
_SMOOTHING_GROWTH = 0.08
# micrographs differ where the variance between them is, in some shell, so many standard errors of its estimate above 0: in
# none of 125 sets of white noise, of 2 to 300 micrographs
_SIGNIFICANT = 4.0
# relative amplitudes that all differ by less change no match: the set's own spectrum is no better known
ALIKE_WITHIN = 0.02
# an image with so many times the median power of its micrograph has ice, carbon or a neighbour in its background, which says
# nothing of the others
_OUTLIER = 3.0
# limits of the bands of a table, as parts of the Nyquist frequency: ice and carbon, the molecule's shape, its detail
BANDS = (0.0, 1 / 8, 1 / 2, 1.0)
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class MicrographNoise:
    """Relative amplitude of the noise of each micrograph in each shell of the images' own box, 1 where it is the set's."""

    groups: ParticleGroups
    amplitude: Float[Tensor, "g shells"]

    @property
    def are_alike(self) -> bool:
        """Whether no micrograph differs enough to count."""
        return bool(((self.amplitude - 1).abs() <= ALIKE_WITHIN).all())

    @classmethod
    def measure(cls, groups: ParticleGroups, read: Callable[[Int[np.ndarray, " k"]], Float[Tensor, "k b b"]], seed: int = 0
                ) -> "MicrographNoise":
        """From a sample of the images that ``read`` returns for some rows, their background normalised; images that are 0
        are left out."""
        rows = groups.sample(IMAGES_OF_MICROGRAPH, IMAGES_IN_ALL, seed)
        power, box = [], 0
        with Progress(len(rows), "noise of micrographs") as progress:
            for some in np.array_split(rows, len(rows) // _AT_ONCE + 1):
                images = read(some)
                box = images.shape[-1]
                spectra = noise_power_spectra(images, BACKGROUND_RADIUS_FRACTION * box)
                spectra[~images.flatten(1).any(1)] = torch.nan
                power.append(spectra.cpu().double())
                progress.update(len(some))
        power = torch.cat(power)
        has_noise = power.isfinite().all(1)
        group = torch.from_numpy(groups.of_particle[rows])[has_noise]
        noise = cls(groups, _relative_amplitude(power[has_noise], group, len(groups), box))
        low, high = noise.amplitude.min().item(), noise.amplitude.max().item()
        logger.info("Noise of %d micrographs from %d images: amplitude %.2f to %.2f times the set's%s.", len(groups),
                    len(group), low, high, "; they count as alike" if noise.are_alike else "")
        return noise

    def of_images(self, rows: Int[np.ndarray, " k"], box_size_px: int
                  ) -> Float[Tensor, "k {box_size_px} {box_size_px}//2+1"]:
        """Relative amplitude on the grid of ``fft_image`` of the images ``rows`` of the set, Fourier-cropped to a box."""
        spectra = self.amplitude[torch.from_numpy(self.groups.of_particle[rows]).to(self.amplitude.device)]
        return spectra[:, shell_index(box_size_px, self.amplitude.device)]

    def level(self) -> Float[np.ndarray, "g 3"]:
        """Noise power of each micrograph over the set's in the three ``BANDS``, as means over their pixels."""
        shells = torch.arange(self.amplitude.shape[1], device=self.amplitude.device)
        part = shells / (len(shells) - 1)
        within = [shells * ((part > low) & (part <= high)) for low, high in zip(BANDS, BANDS[1:])]
        weight = torch.stack([each / each.sum().clamp_min(1) for each in within]).to(self.amplitude)
        return (self.amplitude.square() @ weight.T).cpu().numpy()


def _relative_amplitude(power: Float[Tensor, "m shells"], group: Int[Tensor, " m"], n_groups: int, box_size_px: int
                        ) -> Float[Tensor, "{n_groups} shells"]:
    """From the spectra of m images: relative to their mean, smoothed, averaged over each group, shrunk."""
    amplitude = torch.ones(n_groups, power.shape[1])
    count = torch.bincount(group, minlength=n_groups).double()
    if (count > 0).sum() < 2:
        return amplitude
    smoothing, variance = _smoothing(power.shape[1], box_size_px)
    relative = (power / power.mean(0)) @ smoothing.T
    for g in torch.unique(group).tolist():
        own = group == g
        relative[own] = relative[own].minimum(_OUTLIER * relative[own].median(0).values)
    mean = torch.zeros(n_groups, power.shape[1], dtype=power.dtype).index_add_(0, group, relative)
    mean = mean[count > 0] / count[count > 0, None]
    # images of one micrograph differ by more than their pixels' noise where some have a neighbour, ice or carbon
    n_free = len(group) - len(mean)
    if n_free:
        of_image = mean[torch.cumsum(count > 0, 0)[group] - 1]
        variance = torch.maximum(variance, (relative - of_image).square().sum(0) / n_free)
    weight = count[count > 0, None]
    amplitude[count > 0] = _shrunk(mean.log(), variance / weight, weight).div(2).exp().float()
    return amplitude


def _shrunk(log_power: Float[Tensor, "g shells"], variance: Float[Tensor, "g shells"], weight: Float[Tensor, "g 1"]
            ) -> Float[Tensor, "g shells"]:
    """Estimates of the true values with mean 0 from values with a sampling ``variance``; 0 where chance explains the
    differences of all shells."""
    total = weight.sum()
    log_power = log_power - (weight * log_power).sum(0) / total
    between = (weight * (log_power.square() - variance)).sum(0) / total
    by_chance = (2 * (weight * variance).square().sum(0)).sqrt() / total
    if not (between > _SIGNIFICANT * by_chance).any():
        return torch.zeros_like(log_power)
    between = between.clamp_min(0.0)
    return log_power * between / (between + variance)


def _smoothing(n_shells: int, box_size_px: int) -> tuple[Float[Tensor, "s s"], Float[Tensor, " s"]]:
    """Weights over shells (each row adds up to 1), and the relative variance that they leave to the power of one image."""
    shells = torch.arange(n_shells, dtype=torch.float64)
    background = background_mask(box_size_px, BACKGROUND_RADIUS_FRACTION * box_size_px).mean().item()
    # Fourier coefficients of a shell that are independent: no Friedel mates, and fewer in a part of the image
    independent = (torch.pi * shells).clamp_min(1.0) * background
    width = _SMOOTHING_SHELLS + _SMOOTHING_GROWTH * shells[:, None]
    weight = torch.exp(-0.5 * ((shells - shells[:, None]) / width).square()) * independent
    weight = weight / weight.sum(1, keepdim=True)
    return weight, (weight.square() / independent).sum(1)
