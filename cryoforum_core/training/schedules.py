"""What changes in the course of a training: learning rate, terms of the loss, noise of the projections.

Each schedule is a function of the fraction of the training that is done.
"""

import math

# fraction of the training in which the rate rises; half of what torch's OneCycleLR has by default
WARM_UP = 0.15
# the peak rate over that at the start, as OneCycleLR's div_factor
START_DIVISOR = 25.0
# the peak rate over that at the end; OneCycleLR's final_div_factor, which it takes relative to the start
END_DIVISOR = 1e4
# training on projections starts at this signal-to-noise ratio: nearly clean images
EASY_SNR = 10.0
# fraction of the training after which the noise is that of the data
NOISE_IS_FULL_AT = 0.6


def one_cycle(progress: float, peak: float) -> float:
    """The learning rate at a fraction of the training: a cosine rise for 15 %, a cosine decay for the rest (Smith 2018)."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < WARM_UP:
        start = peak / START_DIVISOR
        return start + (peak - start) * 0.5 * (1 - math.cos(math.pi * progress / WARM_UP))
    end = peak / END_DIVISOR
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def orientation_weights(loss: str, progress: float) -> dict[str, float]:
    """Weights of the terms at a fraction ``progress`` in [0, 1] of the training.

    ``pairwise-to-own`` is the schedule of Chung (2023): ``(1 - e)`` for a pair, ``e / 2`` for each of its two own errors (so
    e for their mean), with ``e = progress ^ 0.5``.
    """
    if loss == "pairwise-to-own":
        e = min(max(progress, 0.0), 1.0) ** 0.5
        return {"pairwise": 1.0 - e, "own": e}
    return {loss: 1.0}


def noise_factor(progress: float, snr: float) -> float:
    """Amplitude of the noise relative to the data's, log-linear from a signal-to-noise ratio of 10 to the data's own.

    Nearly clean images first are what makes a network learn from noisy ones quickly
    (``docs/decisions/0022-likelihood-loss.md``).
    """
    start = min(1.0, math.sqrt(snr / EASY_SNR))
    return start ** (1.0 - min(progress / NOISE_IS_FULL_AT, 1.0))
