"""Whether the distribution of a measure is bimodal, and where to divide it."""

import itertools
import math

import numpy as np
from jaxtyping import Float

# Measured on simulated scores (docs/decisions/0001-default-of-select.md): narrower bandwidths find shallow valleys in
# heavy tails, wider ones miss a tenth of the particles at four standard deviations from the others.
_BANDWIDTH_FACTOR = 0.6
# density of the valley over that of the lower hill beside it
_MAX_VALLEY_DEPTH = 0.8
# of each hill, in standard deviations of its count
_MIN_SIGNIFICANCE = 3.0
# more than half below a valley would mean that the best population is the smaller one
_MAX_BELOW = 0.5
# of the histogram: finer cells change nothing
_CELLS_PER_BANDWIDTH = 6
# a far outlier must not stretch the grid
_MAX_SPREADS = 40.0


def find_valley(quality: Float[np.ndarray, " n"]) -> float | None:
    """The value between a lower and an upper population of ``quality``, or None where there is only one.

    The density is smoothed by a Gaussian kernel (Silverman's rule, narrowed, because two populations are wider than
    either). A valley counts where (a) at most half of the values lie below it; (b) its density is below 0.8 of the
    lower of the two hills beside it; (c) each hill holds more above the valley's level than three standard deviations
    of its count. The rightmost such valley is taken: everything below it is no part of the best population.
    """
    quality = np.asarray(quality, dtype=np.float64)
    bandwidth = _bandwidth(quality)
    if not bandwidth > 0:
        return None
    centre, spread = np.median(quality), bandwidth * len(quality) ** 0.2 / _BANDWIDTH_FACTOR
    # a far outlier must not stretch the grid; clipped, it is still on its side of any valley
    clipped = np.clip(quality, centre - _MAX_SPREADS * spread, centre + _MAX_SPREADS * spread)
    grid, count = _histogram(clipped, bandwidth)
    smooth = _smooth(count)
    below = np.cumsum(count) / len(quality)
    valleys = [valley for valley in _valleys(smooth) if below[valley] <= _MAX_BELOW and _separates(smooth, valley)]
    return float(grid[valleys[-1]]) if valleys else None


def _bandwidth(values: np.ndarray) -> float:
    if len(values) < 2:
        return 0.0
    low, high = np.percentile(values, [25, 75])
    spread = min(values.std(), (high - low) / 1.349) or values.std()
    return _BANDWIDTH_FACTOR * spread * len(values) ** -0.2


def _histogram(values: np.ndarray, bandwidth: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres and counts of cells a sixth of a bandwidth wide, with room for the kernel at both ends."""
    cell = bandwidth / _CELLS_PER_BANDWIDTH
    start = values.min() - 4 * bandwidth
    n = math.ceil((values.max() + 4 * bandwidth - start) / cell)
    edges = start + cell * np.arange(n + 1)
    return 0.5 * (edges[1:] + edges[:-1]), np.histogram(values, edges)[0].astype(np.float64)


def _smooth(count: np.ndarray) -> np.ndarray:
    offset = np.arange(-4 * _CELLS_PER_BANDWIDTH, 4 * _CELLS_PER_BANDWIDTH + 1) / _CELLS_PER_BANDWIDTH
    kernel = np.exp(-0.5 * offset**2)
    return np.convolve(count, kernel / kernel.sum(), "same")


def _valleys(smooth: np.ndarray) -> list[int]:
    """The lowest cell between each two neighbouring hills, from left to right."""
    inner = smooth[1:-1]
    tops = 1 + np.flatnonzero((inner > smooth[:-2]) & (inner >= smooth[2:]))
    return [left + int(np.argmin(smooth[left:right])) for left, right in itertools.pairwise(tops.tolist())]


def _separates(smooth: np.ndarray, valley: int) -> bool:
    level = smooth[valley]
    sides = smooth[:valley], smooth[valley + 1:]
    if level >= _MAX_VALLEY_DEPTH * min(side.max() for side in sides):
        return False
    for side in sides:
        hill = side[side > level]
        if (hill - level).sum() < _MIN_SIGNIFICANCE * math.sqrt(hill.sum()):
            return False
    return True
