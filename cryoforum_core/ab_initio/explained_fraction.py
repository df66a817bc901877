"""How well the map of one half set explains the images of the other: the check on half maps that agree in a wrong map."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.pose_hypotheses import PoseHypotheses
from ..imaging.fourier import resize_volume
from ..imaging.projection import FourierVolume
from ..matching.likelihood import explained_power, predicted
from ..matching.whitened_images import WhitenedImages
from .half_map_pair import HalfMapPair
from .half_sets import HalfSets, batches
from .rounds import Refinement

# of each half set: their mean is known to a few per cent
MAX_EXPLAINED_IMAGES = 1000
# shells in which the half maps agree less say too little about the images
MIN_FSC = 0.3
# shells before are the particle's coarse shape, which any map of its size has
_FIRST_SHELL = 2


def explained_fraction(half_sets: HalfSets, refinement: Refinement, first_radius_px: float) -> float:
    """How well the map of the **other** half set explains images in the shells after ``first_radius_px``: the part of the
    power beyond noise, weighted by the FSC, that it explains there, relative to that part in the shells before. NaN where
    the half maps agree in no shell after it, or nothing is to be explained.

    Half maps that started from one wrong map agree in what they made of it, far beyond the start, but hardly explain
    an image there: 0.1 to 0.4, where right maps reach 0.8 and more (``docs/decisions/0042-wrong-maps.md``). What ice,
    neighbours and junk hold lowers both parts. With a point group also NaN where the background holds so much of its own,
    such as neighbours, that the images' signal is lost in it (``signal_is_measurable``).
    """
    pair = refinement.pair
    shells = torch.arange(len(pair.fsc), device=pair.fsc.device)
    below = torch.nonzero((pair.fsc < MIN_FSC) & (shells > first_radius_px))
    last = min(int(below[0]) - 1 if len(below) else len(pair.fsc) - 2, half_sets.box_size_px // 2 - 1)
    first = int(first_radius_px)
    if last <= first:
        return math.nan
    found, signal, count = _explained_shells(half_sets, refinement.poses, pair, last)
    if len(half_sets.group) > 1 and not signal_is_measurable(signal / count.clamp_min(1), count, first):
        return math.nan
    signal = signal * pair.fsc[:last + 1].clamp_min(0).to(signal)
    parts = [float(found[some].sum() / signal[some].sum()) if signal[some].sum() > 0 else math.nan
             for some in (slice(_FIRST_SHELL, first + 1), slice(first + 1, last + 1))]
    return parts[1] / parts[0] if parts[0] > 0 else math.nan


def signal_is_measurable(excess: Float[Tensor, " shells"], count: Float[Tensor, " shells"], first_shell: int) -> bool:
    """Whether the power of images beyond the noise of their background says how much signal there is after ``first_shell``.

    ``excess``: mean power of whitened images in each shell, less 1, of ``count`` values. Where neighbours reach into the
    background, it holds more power than the images themselves in the shells of the neighbours' Thon rings and of their
    shape; the excess beyond must be larger than that error. The lowest shells, which the background's mask blurs, do not count.
    """
    upper = slice(first_shell + 1, None)
    shortfall = float((-excess[first_shell // 2:]).clamp_min(0).max())
    return float((excess * count)[upper].sum()) > shortfall * float(count[upper].sum())


def _explained_shells(half_sets: HalfSets, poses: PoseHypotheses, pair: HalfMapPair, last: int
                      ) -> tuple[Tensor, Tensor, Tensor]:
    """Power that the other half's map explains, power beyond noise, and number of values, in each shell (last + 1,)."""
    found, signal, count = (torch.zeros(last + 1, device=half_sets.device) for _ in range(3))
    # the background's noise, not that of the last round, which holds what no map explained
    spectrum = half_sets.background_spectrum
    for half in (1, 2):
        reference = resize_volume(pair.reference[2 - half], half_sets.box_size_px)
        volume = FourierVolume.from_real(reference, max_radius_px=last + 1)
        for rows in batches(half_sets.rows(half)[:MAX_EXPLAINED_IMAGES]):
            some = WhitenedImages.from_transforms(*half_sets.images.transforms(rows), spectrum, last)
            index = torch.from_numpy(rows).to(half_sets.device)
            model = predicted(some, volume, *(value[index] for value in poses.best()))
            shell = some.radius.round().long().clamp_max(last)
            found.index_add_(0, shell, explained_power(some, model).sum(0))
            signal.index_add_(0, shell, (some.data.abs().square() - 1).sum(0))
            count.index_add_(0, shell, torch.full_like(some.radius, len(some)))
    return found, signal, count
