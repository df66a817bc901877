"""Searches from random starts, each assessed on images that it has not seen, without symmetry or with the point group from
the start."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.pose_errors import align_frame, rotation_errors_deg
from ..geometry.so3_grid import super_fibonacci
from ..imaging.fourier import fft_volume, ifft_volume, volume_radius_px
from ..imaging.projection import FourierVolume
from ..matching.exhaustive_search import displacement_grid
from ..matching.likelihood import explained_power, predicted
from ..matching.refine import refine
from ..matching.stochastic import (
    DISPLACEMENT_STEP_OF_WAVE,
    GridPosterior,
    StochasticSearch,
    StochasticSettings,
)
from ..matching.whitened_images import WhitenedImages
from ..particles.image_preparation import ImagePreparation
from ..progress import Progress
from ..saved_state import load_state, save_state
from .background import background_spectrum
from .explained_fraction import signal_is_measurable

logger = logging.getLogger("cryoforum")

# finest frequency of a search's first steps, in cycles per box; it grows to the last
FIRST_RADIUS_PX = 6.0
# it ends where the half maps take over; finer shells cost time and change no pose by much
LAST_RADIUS_PX = 11.0
# of searches under a point group. Near-spherical molecules look the same from everywhere up to shell 10 or so: some starts
# begin where they do not. Others begin low, where molecules that are not spherical are found more reliably.
FIRST_RADII_UNDER_SYMMETRY_PX = (12.0, 6.0)
# the search's box holds no more; apoferritin needs it
LAST_RADIUS_UNDER_SYMMETRY_PX = 15.0
# holds the last radius, and a few shells more
SEARCH_BOX_PX = 32
# more cost memory, and the search sees a part of them only
MAX_IMAGES = 20_000
# enough for a small standard error of their mean log-evidence
MAX_HELD_OUT = 400
# of small sets
HELD_OUT_FRACTION = 0.1
# rotations some 15 degrees apart: held-out poses are refined from the best of them
N_ASSESSED_ROTATIONS = 4000
# how far around an image's last displacement the search looks, in px
LOCAL_DISPLACEMENT_PX = 1.5
# images that are read at once
_READ_AT_ONCE = 500
# floats of one batch of held-out images against all rotations and displacements
_MAX_GRID_VALUES = 3e7
# log-evidence of a structure over that of its spherical average, per held-out image
MIN_STRUCTURE_EVIDENCE = 1.0
# ``explained_fraction`` of right maps is 0.78 and more, of wrong ones 0.5 and less (``docs/decisions/0042-wrong-maps.md``)
EXPLAINED_BY_RIGHT_MAPS = 0.6
# structure must be so many standard errors above zero, too
MIN_STRUCTURE_ERRORS = 4
# a stop loses no more than some seconds
SAVE_EVERY_STEPS = 50
# often enough to see the map change
SHOW_EVERY_STEPS = 20


@dataclass(frozen=True)
class SearchImages:
    """Low-resolution images in memory: those that the search sees, and those that assess it; whitened."""

    seen: WhitenedImages
    held_out: WhitenedImages
    pixel_size_angstrom: float

    @classmethod
    def prepare(cls, images: ImagePreparation, seed: int, last_radius_px: float,
                held_out_fraction: float = HELD_OUT_FRACTION) -> "SearchImages":
        """A sample of the particles, Fourier-cropped; noise from their background."""
        box = min(images.box_size_px, SEARCH_BOX_PX)
        last_radius_px = min(last_radius_px, box / 2 - 1)
        small = replace(images, box_size_px=box)
        n = len(images.particles)
        rows = np.random.default_rng([seed, 0xAB]).permutation(n)[:MAX_IMAGES]
        n_held_out = min(MAX_HELD_OUT, int(held_out_fraction * len(rows)))
        spectrum = background_spectrum(small, rows)
        held_out, seen = ([small.transforms(np.sort(part))
                           for part in np.array_split(some, max(1, len(some) // _READ_AT_ONCE))]
                          for some in (rows[:n_held_out], rows[n_held_out:]))
        return cls(*(WhitenedImages.from_transforms(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]),
                                                    spectrum, last_radius_px) for parts in (seen, held_out)),
                   small.pixel_size_angstrom)

    @property
    def signal_is_measurable(self) -> bool:
        """Whether the background of the images says how much signal they hold after the first radius of a search in c1."""
        shell = self.seen.radius.round().long()
        count = torch.bincount(shell).to(self.seen.radius)
        excess = torch.zeros_like(count).index_add_(0, shell, self.seen.data.abs().square().mean(0) - 1)
        return signal_is_measurable(excess / count.clamp_min(1), count, int(FIRST_RADIUS_PX))


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its map and the held-out images' log-evidence, with that of the spherical average
    taken off (``structure``, mean and standard error) and as it is (``score``); ``explained_fraction``: the part of what
    held-out images hold beyond noise, in the shells after the first radius, that the map explains."""

    seed: int
    volume: Float[Tensor, "b b b"]
    score: float
    structure: float
    structure_error: float
    explained_fraction: float
    held_out_quaternion: Float[Tensor, "n 4"]
    held_out_evidence: Float[Tensor, " n"] | None = None
    """Log-evidence of each held-out image, whose mean is ``score``"""
    held_out_gain: Float[Tensor, " n"] | None = None
    """Of each, over that of the spherical average, whose mean is ``structure``"""
    first_radius_px: float = FIRST_RADIUS_PX
    is_symmetrised: bool = False
    """Whether the map had the point group from the start"""

    def with_measurable_signal(self, images: SearchImages) -> "SearchResult":
        """``explained_fraction`` NaN where the images do not say what there is to explain."""
        return self if images.signal_is_measurable else replace(self, explained_fraction=math.nan)

    @property
    def found_structure(self) -> bool:
        return self.structure > max(MIN_STRUCTURE_EVIDENCE, MIN_STRUCTURE_ERRORS * self.structure_error)

    @property
    def is_settled(self) -> bool:
        """Whether other starts are not likely to find a better map."""
        return self.found_structure and self.explained_fraction > EXPLAINED_BY_RIGHT_MAPS


def search_settings(images: SearchImages, steps: int, mask_radius_fraction: float,
                    max_displacement_fraction: float, first_radius_px: float = FIRST_RADIUS_PX) -> StochasticSettings:
    """Lengths as fractions of the box."""
    box = images.seen.box_size_px
    last = float(images.seen.radius.max())
    return StochasticSettings(steps=steps, first_radius_px=min(first_radius_px, last), last_radius_px=last,
                              max_displacement_px=max_displacement_fraction * box,
                              local_displacement_px=min(LOCAL_DISPLACEMENT_PX, max_displacement_fraction * box),
                              mask_radius_px=mask_radius_fraction * box)


def run_search(images: SearchImages, settings: StochasticSettings, seed: int, state_path, resume: bool,
               show: Callable[[StochasticSearch, float], None], group: Float[Tensor, "g 4"] | None = None) -> SearchResult:
    """One search to its end, under a point ``group`` if one is given. ``show(search, log_evidence)`` is called every 20
    steps."""
    search = StochasticSearch(images.seen, settings, seed, group)
    if resume and state_path.is_file():
        search.load_state_dict(load_state(state_path))
    recent: list[float] = []
    with Progress(settings.steps, f"search from random start {seed}", "steps", search.step_number) as progress:
        while search.step_number < settings.steps:
            figures = search.step()
            recent = [*recent[-SHOW_EVERY_STEPS + 1:], figures.log_evidence]
            progress.update(1, log_evidence=float(np.mean(recent)), radius_px=figures.radius_px)
            if search.step_number % SHOW_EVERY_STEPS == 0:
                show(search, float(np.mean(recent)))
            if search.step_number % SAVE_EVERY_STEPS == 0:
                save_state(state_path, search.state_dict())
    result = assess(images, search.volume(), settings, seed)
    return result if group is None else replace(result, is_symmetrised=True).with_measurable_signal(images)


def assess(images: SearchImages, volume: Float[Tensor, "b b b"], settings: StochasticSettings, seed: int
           ) -> SearchResult:
    """Log-evidence and explained fraction of held-out images, for a map."""
    evidence, quaternion, fitted = _held_out_evidence(images.held_out, volume, settings)
    of_sphere, *_ = _held_out_evidence(images.held_out, spherical_average(volume), settings, n_rotations=1)
    gain = evidence - of_sphere
    error = float(gain.std() / len(gain) ** 0.5)
    upper = images.seen.radius > min(settings.first_radius_px, FIRST_RADIUS_PX)
    signal = float((images.seen.data.abs().square().mean(0) - 1)[upper].sum())
    explained = float(fitted.mean(0)[upper].sum()) / signal if signal > 0 else 0.0
    return SearchResult(seed, volume, float(evidence.mean()), float(gain.mean()), error, explained, quaternion, evidence, gain,
                        settings.first_radius_px)


def _held_out_evidence(images: WhitenedImages, volume: Tensor, settings: StochasticSettings,
                       n_rotations: int = N_ASSESSED_ROTATIONS) -> tuple[Tensor, Tensor, Tensor]:
    """Log-evidence (n,) over all poses, the best rotations (n, 4), refined beyond the grid, and the power that the map
    explains there in each pixel (n, m)."""
    radius = settings.last_radius_px
    fourier_volume = FourierVolume.from_real(volume, max_radius_px=radius + 1, with_gradient=True)
    grid = super_fibonacci(n_rotations, device=volume.device)
    step_px = DISPLACEMENT_STEP_OF_WAVE * images.box_size_px / radius
    offsets = displacement_grid(settings.max_displacement_px, step_px).to(volume.device)
    evidence, best, fitted, reach_px = [], [], [], max(settings.max_displacement_px, 1.0)
    chunk = max(1, int(_MAX_GRID_VALUES / (n_rotations * len(offsets))))
    for start in range(0, len(images), chunk):
        part = images[start:start + chunk]
        posterior = GridPosterior.of(part, fourier_volume, grid, offsets.new_zeros(len(part), 2), offsets)
        evidence.append(posterior.log_evidence)
        pose = refine(part, fourier_volume, *posterior.best_pose(), max_displacement_px=2 * reach_px)
        model = predicted(part, fourier_volume, pose.quaternion, pose.displacement_px)
        best.append(pose.quaternion)
        fitted.append(explained_power(part, model))
    return torch.cat(evidence), torch.cat(best), torch.cat(fitted)


def spherical_average(volume: Float[Tensor, "b b b"]) -> Float[Tensor, "b b b"]:
    """The map with each shell of its transform averaged: what it is without any direction."""
    volume_ft = fft_volume(volume)
    shells = volume_radius_px(len(volume), volume.device).round().long()
    counts = torch.bincount(shells.flatten())
    mean = torch.bincount(shells.flatten(), volume_ft.real.flatten().double()) / counts
    return ifft_volume(torch.complex(mean[shells].to(volume.dtype), torch.zeros_like(volume_ft.real)))


def agreement_deg(results: list[SearchResult], group: Float[Tensor, "g 4"]) -> dict[int, float]:
    """Median angle of each search's held-out poses to the best search's, after the frames and hands are aligned."""
    best = max(results, key=lambda result: result.score)
    angles = {}
    for result in results:
        if result is best:
            continue
        alignment = align_frame(result.held_out_quaternion, best.held_out_quaternion, group, allow_mirror=True)
        turned = alignment.apply(result.held_out_quaternion.double())
        angles[result.seed] = float(rotation_errors_deg(turned, best.held_out_quaternion.double(), group).median())
    return angles
