"""How well a map explains a sample of the images, if their contrast, CTF state or pixel size is as stated, or another.

Every assumption is treated alike: the same images, the same search over poses, one free amplitude. What poses fitted to
noise gain is then the same for all, and gains can be compared image by image.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..imaging.fourier import (
    fft_volume,
    ifft_image,
    ifft_volume,
    shell_average,
    shell_index,
    volume_radius_px,
    with_shell_power,
)
from ..imaging.masks import soft_sphere
from ..imaging.noise_spectrum import noise_power_spectrum
from ..matching.exhaustive_search import SearchGrid
from ..matching.likelihood import amplitude_from_power, predicted
from ..matching.matching_model import MatchingModel, simulated_transforms
from ..matching.refine import RefinedPoses, refine
from ..matching.whitened_images import WhitenedImages
from ..particles.image_preparation import ImagePreparation
from ..particles.image_state import BACKGROUND_RADIUS_FRACTION, ImageState

# a coarse search finds most poses, which is enough: the expected gain is searched for in the same way
SEARCH_STEP_DEG = 10.0
# shells that the search sees
SEARCH_RADIUS_PX = 8.0
# poses of the search that are refined
N_HYPOTHESES = 6
# shells up to which poses of the search are refined
REFINE_RADIUS_PX = 16.0
# shells in which given poses are compared
LOCAL_RADIUS_PX = 32.0
# shells in which pixel sizes are compared: a wrong size shows at low resolution already
SCALE_RADIUS_PX = 22.0
# fewer shells compare nothing
SMALLEST_RADIUS_PX = 4.0
# Levenberg-Marquardt steps from given poses: they are near
LOCAL_ITERATIONS = 4
# regressed over expected amplitude of a shell, where the map has been low-pass filtered
ATTENUATED_ABOVE = 1.5
# every compact object has transforms of one sign and shape below: a wrong map explains these shells too
SCRAMBLED_FROM_SHELL = 3.5
# a shell alone has too few pixels for its amplitude
_AMPLITUDE_SMOOTHING_SHELLS = 5


@dataclass(frozen=True)
class Assumption:
    """What is assumed of the images: their state, and how many times the stated pixel size the true one is.

    ``ctf_follows``: the particles' pixel size is wrong, and their CTFs change with it; else the map's is.
    """

    state: ImageState
    pixel_size_factor: float = 1.0
    ctf_follows: bool = True


@dataclass(frozen=True)
class Gain:
    """Log-likelihood that the map gains over an empty image, for each image, with the best amplitude for all, and
    the poses at which it does."""

    per_image: Float[Tensor, " n"]
    poses: RefinedPoses
    amplitude: float
    """regressed on the images, over what their power asks for: 1 for the right map at the right poses"""


class SampleMatching:
    """A sample of the images, matched to a map under different assumptions."""

    def __init__(self, images: ImagePreparation, rows: Int[np.ndarray, " n"], volume: Float[Tensor, "b b b"],
                 group: Float[Tensor, "g 4"], max_radius_px: float, max_displacement_px: float, seed: int = 0):
        """``rows`` of the particles, ``volume`` at the matching box."""
        self.images, self.rows, self.volume, self.group = images, rows, volume, group
        self.max_radius_px = min(max_radius_px, LOCAL_RADIUS_PX)
        self.max_displacement_px, self.seed = max_displacement_px, seed
        self.stated = Assumption(images.state)
        self.images_ft, self.ctf = self._transforms(self.stated)
        self.noise_spectrum = self._noise_spectrum(self.images_ft)
        self.model = self._model(volume, self.max_radius_px)

    def _transforms(self, assumption: Assumption) -> tuple[Tensor, Tensor]:
        factor = assumption.pixel_size_factor if assumption.ctf_follows else 1.0
        particles = replace(self.images.particles,
                            pixel_size_angstrom=self.images.particles.pixel_size_angstrom * factor)
        return replace(self.images, state=assumption.state, particles=particles).transforms(self.rows)

    def _noise_spectrum(self, images_ft: Tensor) -> Tensor:
        return noise_power_spectrum(ifft_image(images_ft), BACKGROUND_RADIUS_FRACTION * self.images.box_size_px)

    def _model(self, volume: Tensor, max_radius_px: float) -> MatchingModel:
        model = MatchingModel.estimate(volume, self.images_ft, self.ctf, self.noise_spectrum, self.group, max_radius_px,
                                       self.max_displacement_px)
        return replace(model, amplitude=_amplitude(self.images_ft, self.ctf, self.noise_spectrum, model.map_power,
                                                   min(REFINE_RADIUS_PX, max_radius_px)))

    @cached_property
    def _grid(self) -> SearchGrid:
        return SearchGrid.build(self._searched(self.model), SEARCH_STEP_DEG, SEARCH_RADIUS_PX)

    @staticmethod
    def _searched(model: MatchingModel) -> MatchingModel:
        return replace(model, max_radius_px=min(model.max_radius_px, REFINE_RADIUS_PX))

    def stated_gain(self) -> Gain:
        """Of the map, with everything as stated by files and options."""
        return self._search(self._grid, self._searched(self.model), self.images_ft, self.ctf)

    def expected_gain(self) -> Gain:
        """Of the map in simulated images of itself: random viewing directions, the sample's CTFs, noise and signal."""
        simulated = simulated_transforms(self.model, self.ctf, self.seed)
        return self._search(self._grid, self._searched(self.model), simulated, self.ctf)

    def chance_gain(self) -> Gain:
        """Of a map with the same spectrum and extent but another structure, in the same images."""
        model = self._searched(self._model(scrambled(self.volume, self.seed), self.max_radius_px))
        return self._search(SearchGrid.build(model, SEARCH_STEP_DEG, SEARCH_RADIUS_PX), model, self.images_ft, self.ctf)

    def gain(self, assumption: Assumption) -> Gain:
        """Of the map under an assumption, poses searched for again."""
        images_ft, ctf = self._transforms(assumption)
        model = replace(self._searched(self.model), noise_spectrum=self._noise_spectrum(images_ft))
        grid = replace(self._grid, model=model)
        if assumption.pixel_size_factor != 1:
            model = _magnified(model, 1 / assumption.pixel_size_factor)
            grid = SearchGrid.build(model, SEARCH_STEP_DEG, SEARCH_RADIUS_PX)
        return self._search(grid, model, images_ft, ctf)

    def _search(self, grid: SearchGrid, model: MatchingModel, images_ft: Tensor, ctf: Tensor) -> Gain:
        images = model.images(images_ft, ctf)
        return _gain(images, model, grid.search(images, n_hypotheses=N_HYPOTHESES, keep=1)[:, 0])

    def pass_band_px(self, poses: RefinedPoses) -> float:
        """The shell up to which the map is no weaker than the images say it should be, judged at poses (n,).

        Beyond the edge of a low-pass filter the images hold more: a map made larger or smaller would gain by moving
        that edge alone.
        """
        model = replace(self.model, max_radius_px=min(self.max_radius_px, SCALE_RADIUS_PX))
        images = model.images(self.images_ft, self.ctf)
        expected = predicted(images, model.volume, poses.quaternion, poses.displacement_px)
        shells = images.radius.round().long()
        cross = torch.bincount(shells, (images.data.conj() * expected).real.sum(0))
        power = torch.bincount(shells, expected.abs().square().sum(0)).clamp_min(1e-12)
        surely_above = cross / power - 2 * (0.5 / power).sqrt() > ATTENUATED_ABOVE
        surely_above[:3] = False
        return float(surely_above.nonzero()[0, 0]) - 1.5 if surely_above.any() else model.max_radius_px

    def local_gain(self, assumption: Assumption, poses: RefinedPoses, smallest_factor: float | None = None,
                   max_radius_px: float = SCALE_RADIUS_PX) -> Gain:
        """Of the map under an assumption, poses (n,) refined from given ones.

        Gains under several assumptions are compared on the same pixels: ``smallest_factor`` is the smallest
        ``pixel_size_factor`` of them all, where they differ by it; sizes show at low resolution already, and are
        compared up to ``max_radius_px``.
        """
        images_ft, ctf = self._transforms(assumption)
        radius = self.max_radius_px
        if smallest_factor is not None:
            radius = max(min(radius, max_radius_px) - 1, SMALLEST_RADIUS_PX) * smallest_factor
        model = replace(_magnified(self.model, 1 / assumption.pixel_size_factor), max_radius_px=radius)
        images = model.images(images_ft, ctf)
        return _gain(images, model, refine(images, model.volume, poses.quaternion, poses.displacement_px,
                                           LOCAL_ITERATIONS, self.max_displacement_px))


def _magnified(model: MatchingModel, factor: float) -> MatchingModel:
    volume = model.volume.magnified(factor)
    return replace(model, volume=volume, max_radius_px=min(model.max_radius_px, volume.max_radius_px - 1))


def _gain(images: WhitenedImages, model: MatchingModel, poses: RefinedPoses) -> Gain:
    """With a free overall amplitude a: sum of ``2 a Re<y, f> - a^2 |f|^2``."""
    expected = predicted(images, model.volume, poses.quaternion, poses.displacement_px)
    cross, power = (images.data.conj() * expected).real.sum(-1), expected.abs().square().sum(-1)
    amplitude = (cross.sum() / power.sum().clamp_min(1e-12)).clamp_min(0.0)
    return Gain(2 * amplitude * cross - amplitude.square() * power, poses, float(amplitude))


def _amplitude(images_ft: Tensor, ctf: Tensor, noise_spectrum: Tensor, map_power: Tensor,
               max_radius_px: float) -> Tensor:
    """Amplitude of the images' signal over that of the map in each shell (b // 2 + 1,), for the gain expected of the map.

    That of all shells together, but less where the images hold less: maps are often sharper than the images. Never more:
    a low-pass filtered map can gain nothing where it has no power.
    """
    overall = amplitude_from_power(images_ft, ctf, noise_spectrum, map_power, max_radius_px)
    box_size_px = images_ft.shape[-2]
    excess = shell_average(images_ft.abs().square().mean(0), box_size_px) - noise_spectrum
    expected = shell_average(ctf.square().mean(0), box_size_px) * map_power
    counts = torch.bincount(shell_index(box_size_px).flatten())[:len(excess)].to(excess)
    kernel = torch.ones(1, 1, _AMPLITUDE_SMOOTHING_SHELLS).to(excess)

    def smooth(values: Tensor) -> Tensor:
        weighted = torch.stack([counts * values])[None]
        return torch.nn.functional.conv1d(weighted, kernel, padding=_AMPLITUDE_SMOOTHING_SHELLS // 2)[0, 0]

    in_shell = (smooth(excess).clamp_min(0) / smooth(expected).clamp_min(1e-30)).sqrt()
    return torch.minimum(overall, in_shell)


def scrambled(volume: Float[Tensor, "b b b"], seed: int) -> Float[Tensor, "b b b"]:
    """A map with the power of this one in each shell, its extent, and otherwise a random structure."""
    size = len(volume)
    noise = torch.randn(volume.shape, generator=torch.Generator().manual_seed(seed)).to(volume)
    # a random map within the same sphere: outside there is nothing that a particle could look like
    spread = volume.square() / volume.square().sum()
    offset = torch.arange(size, device=volume.device, dtype=volume.dtype) - size // 2
    square_radius = sum((spread.sum(axes) * offset.square()).sum() for axes in ((0, 1), (0, 2), (1, 2)))
    # a solid ball of radius R has a mean square radius of 3/5 R^2
    ball = soft_sphere(size, float((square_radius * 5 / 3).sqrt()), device=volume.device)
    own = fft_volume(volume)
    other = with_shell_power(fft_volume(noise * ball), own)
    return ifft_volume(torch.where(volume_radius_px(size, volume.device) < SCRAMBLED_FROM_SHELL, own, other))
