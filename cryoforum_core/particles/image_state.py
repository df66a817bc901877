"""The state of the images in their stack: contrast of the protein, and CTF correction. Measured, never guessed in silence:
each finding is logged with its figure, and a warning says where the images do not tell.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..config import ImageInputConfig
from ..errors import InputError
from ..imaging.ctf import CTFParameters, ctf_2d
from ..imaging.fourier import crop_image, fft_image, radius_px, shell_average, shell_index
from ..imaging.masks import soft_circle
from .dataset import Particles
from .image_check import is_constant
from .table import ParticleTable

logger = logging.getLogger("cryoforum")

Contrast = Literal["bright", "dark"]
CTFState = Literal["raw", "phase-flipped", "multiplied"]

# a contrast is reported from this |z| on: images of noise alone gave up to 1.4 (6 sets), 7 real dark images -4.9, and 17
# real bright ones 6.4
CONTRAST_Z = 4.0
# a state of the CTF is reported from this log-likelihood ratio on, a likelihood 50 times higher
CTF_LOG_LIKELIHOOD_RATIO = 4.0
# and from this many standard deviations of noise on: noise alone gave up to 3.3 (36 sets), real raw images 11
CTF_NOISE_DEVIATIONS = 4.0
# where noise alone moves the statistic by less, the two models hardly differ within the Nyquist limit (few zeros of the
# CTF), and what the statistic shows is the models' common imperfection
CTF_SMALLEST_NOISE_DEVIATION = 0.5

# images whose variance is so many times that of their background have no noise to be normalised by, one by one: what is
# left in the background is the particle itself
NOISELESS_ABOVE = 50.0
# ``whiteness`` of images: 1 of white noise alone, 0.4 to 0.97 of masked images at SNR 1 to 0.1, 0.0004 to 0.13 of
# projections of seven maps without noise, the most at 16 px
MASKED_ABOVE = 0.2
# ``whiteness`` counts from this fraction of the Nyquist frequency on: signal is weakest there
_WHITE_FROM = 0.8
# outside this radius, as a part of the box, is background: tight boxes hold the particle up to there
BACKGROUND_RADIUS_FRACTION = 0.45

# the contrast shows at the lowest frequencies, for which this box is enough
_CONTRAST_BOX_PX = 32
# up to this shell the transform of anything compact is positive, whatever its shape
_CONTRAST_MAX_SHELL = 3
# radii of the two blobs, as parts of the box: particles fill a half to most of it
_BLOB_RADII = (0.25, 0.4)
# higher frequencies of larger boxes hold hardly any signal, and cost time
_CTF_MAX_BOX_PX = 128
# below this shell the CTF has no zero yet, and background subtraction disturbs the power
_CTF_MIN_SHELL = 4
# the signal's strength is fitted in bands of so many shells: it changes slowly, and one shell holds few pixels
_BAND_SHELLS = 4
# images in memory at once
_BATCH = 250


@dataclass(frozen=True)
class ImageState:
    """The sign of the protein, the state of the CTF and the unit of grey values in a set of images."""

    contrast: Contrast = "bright"
    ctf_state: CTFState = "raw"
    grey_unit: float | None = None
    """What all images are divided by that have hardly any noise (simulated ones); None: each by its own background's
    standard deviation"""

    def to_dict(self) -> dict[str, str | float]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, str | float]) -> "ImageState":
        return cls(**values)


def images_of(particles: Particles, state: ImageState) -> dict[str, int | float | str]:
    """What a checkpoint records of the images that a network was trained for."""
    return {"box_size_px": particles.box_size_px, "pixel_size_angstrom": particles.pixel_size_angstrom,
            **state.to_dict()}


def determine_image_state(particles: Particles, image_input: ImageInputConfig, n_sample: int = 2000, seed: int = 0
                          ) -> ImageState:
    """The state as set in ``image_input``, else as the table says, else as measured on ``n_sample`` images.

    Findings are logged; where the images do not tell, bright protein and a raw CTF are assumed, and a warning says
    so. A setting that contradicts a significant finding is kept, with a warning.
    """
    rows = np.arange(len(particles))
    if len(rows) > n_sample:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), n_sample, replace=False))
    images, pixel_size_angstrom = _cropped_images(particles, rows)
    ctf = None if particles.ctf is None else particles.ctf[torch.from_numpy(rows)]
    z, unit = contrast_z(images, ctf, pixel_size_angstrom), grey_unit(images)
    if unit is not None:
        found = whiteness(images)
        if found > MASKED_ABOVE:
            raise InputError("Images must keep their background; in these, the particle is noisy (high frequencies have "
                             f"{found:.0%} of the mean power) and its surroundings are not: they were masked. Extract them "
                             "again without a mask.")
        logger.warning("Noise: the images have almost none; their grey values are not normalised one by one.")
    if ctf is not None and not ctf.has_effect:
        logger.info("CTF: the images have none (by their parameters it is 1 everywhere).")
        return ImageState(_choose_contrast(image_input.contrast, z, len(rows)), "raw", unit)
    statistic = None if ctf is None else ctf_state_statistic(images, ctf, pixel_size_angstrom)
    return ImageState(_choose_contrast(image_input.contrast, z, len(rows)),
                      _choose_ctf_state(image_input.ctf_state, particles.table, statistic), unit)


def _cropped_images(particles: Particles, rows: np.ndarray) -> tuple[Tensor, float]:
    box_size_px = min(particles.box_size_px, _CTF_MAX_BOX_PX)
    parts = [crop_image(particles.images(part), box_size_px) for part in np.array_split(rows, len(rows) // 64 + 1)]
    return torch.cat(parts), particles.pixel_size_angstrom * particles.box_size_px / box_size_px


def grey_unit(images: Float[Tensor, "n b b"]) -> float | None:
    """The unit of grey values of images with hardly any noise; None where each has noise to be normalised by.

    It gives them a variance of ``NOISELESS_ABOVE`` (medians of the images), the least that they can have with a background
    of variance 1.
    """
    outside = ~soft_circle(images.shape[-1], BACKGROUND_RADIUS_FRACTION * images.shape[-1], 0.0).bool()
    # an image may hold NaN
    variance, background = images.var((1, 2)).nanmedian().item(), images[:, outside].var(1).nanmedian().item()
    # not where there are only constant images
    return math.sqrt(variance / NOISELESS_ABOVE) if variance > NOISELESS_ABOVE * background else None


def whiteness(images: Float[Tensor, "n b b"]) -> float:
    """Power of the highest frequencies, from 0.8 Nyquist on, over the mean power of images, each less its mean and
    of variance 1; images that are constant or hold NaN left out."""
    box_size_px = images.shape[-1]
    usable = torch.isfinite(images).flatten(1).all(1) & ~is_constant(images)
    shells = shell_average(_mean_power(_standardised(images[usable]), torch.ones(())), box_size_px)
    return shells[round(_WHITE_FROM * box_size_px / 2):-1].mean().item() / box_size_px ** 2


def _standardised(images: Tensor) -> Tensor:
    """Each of mean 0 and variance 1."""
    return (images - images.mean((1, 2), keepdim=True)) / images.std((1, 2), keepdim=True)


def _mean_power(images: Tensor, window: Tensor) -> Tensor:
    """Of the transforms of the windowed images (n, B, B): (B, B // 2 + 1)."""
    parts = images.split(_BATCH)
    return torch.stack([fft_image(part * window).abs().square().sum(0) for part in parts]).sum(0) / len(images)


def _choose_contrast(setting: str, z: float, n_images: int) -> Contrast:
    measured = None if abs(z) < CONTRAST_Z else ("bright" if z > 0 else "dark")
    figure = f"z = {z:.1f} of {n_images} images"
    if setting == "auto":
        if measured is None:
            logger.warning("Contrast: whether protein is bright or dark cannot be determined from these images (%s); "
                           "assumed to be bright. If it is dark, give --contrast dark.", figure)
            return "bright"
        logger.info("Contrast: protein is %s (%s)%s.", measured, figure,
                    "; the images are inverted" if measured == "dark" else "")
        return measured
    if measured is not None and measured != setting:
        logger.warning("Contrast: --contrast says %s, but the images look %s (%s). The option is used.",
                       setting, measured, figure)
    return setting


def contrast_z(images: Float[Tensor, "n b b"], ctf: CTFParameters | None, pixel_size_angstrom: float) -> float:
    """How significantly protein is bright (positive) or dark (negative): a standard normal score.

    Each image is correlated with a blob of protein in its centre (the projection of a solid ball) as its
    CTF shows it, over the first three shells, where the transform of anything compact is positive whatever its shape;
    the n correlations are compared with 0 by Student's t, turned into a normal score (Wallace 1959). Two sizes of
    blob, a quarter and 0.4 of the box in radius, are tried; the larger score counts. 0 for fewer than 3 images.
    """
    if len(images) < 3:
        return 0.0
    box_size_px = min(_CONTRAST_BOX_PX, images.shape[-1])
    pixel_size_angstrom *= images.shape[-1] / box_size_px
    images_ft = fft_image(crop_image(images, box_size_px))
    ctf_2d_values = torch.ones(1, 1, 1) if ctf is None else ctf_2d(ctf, box_size_px, pixel_size_angstrom)
    power = shell_average(images_ft.abs().square().mean(0), box_size_px)[shell_index(box_size_px)]
    radius = radius_px(box_size_px)
    # columns kx > 0 stand for their Friedel mates too
    weight = ((radius > 0.5) & (radius <= _CONTRAST_MAX_SHELL)) * torch.where(radius[:1] > 0.5, 2.0, 1.0)
    weight = weight / power.clamp_min(torch.finfo(power.dtype).tiny)
    scores = []
    for blob_radius in _BLOB_RADII:
        blob_ft = fft_image(_ball_projection(box_size_px, blob_radius * box_size_px)) * ctf_2d_values
        correlation = ((images_ft * blob_ft.conj()).real * weight).sum((1, 2))
        norm = (blob_ft.abs().square() * weight).sum((1, 2)).sqrt()
        scores.append(_normal_score(correlation / norm))
    return max(scores, key=abs)


def _ball_projection(box_size_px: int, radius: float) -> Tensor:
    offset = torch.arange(box_size_px) - box_size_px // 2
    squared = (offset[:, None].square() + offset.square()).float()
    return (radius ** 2 - squared).clamp_min(0.0).sqrt()


def _normal_score(values: Tensor) -> float:
    """Student's t of the mean of ``values`` against 0 as a standard normal score (Wallace 1959)."""
    n = len(values)
    spread = values.double().std().item()
    if spread == 0.0:
        return 0.0
    t = values.double().mean().item() * math.sqrt(n) / spread
    freedom = n - 1
    score = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(score, t)


@dataclass(frozen=True)
class CTFStateStatistic:
    """Evidence in the images for each state of CTF correction. ``state`` draws the conclusion.

    ``log_likelihood_ratio`` > 0 favours a raw CTF, < 0 flipped phases; ``noise_deviation`` is
    its standard deviation where there is only noise. ``power_at_zeros`` is the part of the power
    that stays where the CTF is 0: about 1 for noise that no CTF has touched, 0 where the images were multiplied by
    it (NaN where no zero is in reach). ``signal_fraction`` is the variance that the centre has above the corners.
    """

    log_likelihood_ratio: float
    noise_deviation: float
    power_at_zeros: float
    signal_fraction: float
    n_images: int

    @property
    def state(self) -> CTFState | None:
        """None where the images do not tell."""
        # where there is hardly any noise, power vanishes at the zeros of any CTF; that of multiplied images then goes
        # with the fourth power of the CTF, and the straight line in its square ends well below 0
        if self.power_at_zeros < (0.5 if self.signal_fraction < 0.5 else -0.15):
            return "multiplied"
        if self.noise_deviation < CTF_SMALLEST_NOISE_DEVIATION:
            return None
        limit = max(CTF_LOG_LIKELIHOOD_RATIO, CTF_NOISE_DEVIATIONS * self.noise_deviation)
        if abs(self.log_likelihood_ratio) < limit:
            return None
        return "raw" if self.log_likelihood_ratio > 0 else "phase-flipped"

    def __str__(self) -> str:
        return (f"log-likelihood ratio raw to flipped {self.log_likelihood_ratio:.1f} +- {self.noise_deviation:.1f}, "
                f"power at CTF zeros {self.power_at_zeros:.2f}, {self.n_images} images")


def ctf_state_statistic(images: Float[Tensor, "n b b"], ctf: CTFParameters, pixel_size_angstrom: float
                        ) -> CTFStateStatistic:
    """Tells raw from phase-flipped from CTF-multiplied images, without poses or a reference.

    The particle fills a part of the box only, so that neighbouring Fourier coefficients of its transform P are alike:
    ``E[P(k) P*(k+1)] > 0``, also when it is off-centre by some pixels. Across a zero of the CTF a raw image therefore
    has neighbours of opposite sign, ``E[F(k) F*(k+1)] = S ctf(k) ctf(k+1)``, a flipped one of the same sign. Both
    models, with a free S >= 0 and a free constant for the noise in each shell, are fitted to all images; the
    difference of their log-likelihoods is the statistic. It needs zeros of the CTF within the Nyquist limit.
    """
    box_size_px = images.shape[-1]
    usable = ~is_constant(images)
    images, ctf = images[usable], ctf[usable]
    if not len(images):
        return CTFStateStatistic(0.0, 0.0, math.nan, 0.0, 0)
    images = _standardised(images)
    return CTFStateStatistic(
        *_raw_to_flipped(images, ctf, pixel_size_angstrom), _power_at_zeros(images, ctf, pixel_size_angstrom),
        _signal_fraction(images, box_size_px), len(images))


def _whitened_batches(images: Tensor, ctf: CTFParameters, pixel_size_angstrom: float, window: Tensor
                      ) -> Iterator[tuple[Tensor, Tensor]]:
    """Transforms of the windowed images with unit mean power in each shell, and their CTFs, batch by batch."""
    box_size_px = images.shape[-1]
    power = _mean_power(images, window)
    spectrum = shell_average(power, box_size_px).clamp_min(torch.finfo(power.dtype).tiny)
    scale = spectrum.rsqrt()[shell_index(box_size_px)]
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        yield fft_image(images[part] * window) * scale, ctf_2d(ctf[part], box_size_px, pixel_size_angstrom)


def _usable_shells(box_size_px: int) -> Tensor:
    radius = radius_px(box_size_px)
    return (radius >= _CTF_MIN_SHELL) & (radius < box_size_px // 2 - 2)


def _raw_to_flipped(images: Tensor, ctf: CTFParameters, pixel_size_angstrom: float) -> tuple[float, float]:
    box_size_px = images.shape[-1]
    # without a window the step from one edge of the box to the other imitates neighbours of opposite sign
    window = soft_circle(box_size_px, 0.38 * box_size_px, 0.12 * box_size_px)
    usable, shells = _usable_shells(box_size_px), shell_index(box_size_px)
    along_x, along_y = _Moments(box_size_px), _Moments(box_size_px)
    for images_ft, ctf_values in _whitened_batches(images, ctf, pixel_size_angstrom, window):
        along_x.add(images_ft[..., :-1], images_ft[..., 1:], ctf_values[..., :-1], ctf_values[..., 1:],
                    usable[:, :-1] & usable[:, 1:], shells[:, :-1])
        # the column kx = 0 holds each pair twice, as Friedel mates
        along_y.add(*(x[:, :, 1:] for x in (images_ft, images_ft.roll(-1, 1), ctf_values, ctf_values.roll(-1, 1))),
                    (usable & usable.roll(-1, 0))[:, 1:], shells[:, 1:])
    return _log_likelihood_ratio(along_x.centred() + along_y.centred())


class _Moments:
    """Sums over images and pixels, per shell, of y = Re F F'*, r = ctf ctf' and f = |r|, and of their products."""

    def __init__(self, box_size_px: int):
        self._sums = torch.zeros(box_size_px // 2 + 1, 9, dtype=torch.float64)

    def add(self, first: Tensor, second: Tensor, ctf_first: Tensor, ctf_second: Tensor, usable: Tensor,
            shells: Tensor) -> None:
        y, r = (first * second.conj()).real, ctf_first * ctf_second
        f = r.abs()
        terms = (torch.ones_like(y), y, r, f, y * y, r * r, y * r, y * f, r * f)
        self._sums.index_add_(0, shells[usable], torch.stack([x.sum(0) for x in terms], dim=-1)[usable].double())

    def centred(self) -> Tensor:
        """Each shell's n, and sums of yy, rr, ff, yr, yf, rf less those of a constant: (shells, 7)."""
        n, y, r, f, yy, rr, yr, yf, rf = self._sums.T
        safe = n.clamp_min(1.0)
        return torch.stack([n, yy - y * y / safe, rr - r * r / safe, rr - f * f / safe, yr - y * r / safe,
                            yf - y * f / safe, rf - r * f / safe], dim=-1)


def _log_likelihood_ratio(shells: Tensor) -> tuple[float, float]:
    """Of the fits y = S r against y = S f, S >= 0 in each band of shells, and its standard deviation for pure noise."""
    n_bands = -(-len(shells) // _BAND_SHELLS)
    bands = torch.zeros(n_bands, shells.shape[1], dtype=shells.dtype)
    bands.index_add_(0, torch.arange(len(shells)) // _BAND_SHELLS, shells)
    n, yy, rr, ff, yr, yf, rf = bands[(bands[:, 2] > 1e-6) & (bands[:, 3] > 1e-6)].T
    noise_variance = yy / n
    gain_raw = yr.clamp_min(0.0).square() / rr / (2 * noise_variance)
    gain_flipped = yf.clamp_min(0.0).square() / ff / (2 * noise_variance)
    # half of a squared standard normal, or 0 with probability 1/2, has variance 5/16; the two gains are correlated
    variance = (0.625 * (1.0 - (rf.square() / (rr * ff)).clamp_max(1.0))).sum()
    return (gain_raw - gain_flipped).sum().item(), variance.sqrt().item()


def _power_at_zeros(images: Tensor, ctf: CTFParameters, pixel_size_angstrom: float) -> float:
    """The power that a straight line in ctf^2 predicts at ctf = 0, as a part of the mean power; NaN without zeros."""
    box_size_px = images.shape[-1]
    usable, shells = _usable_shells(box_size_px), shell_index(box_size_px)
    sums = torch.zeros(box_size_px // 2 + 1, 5, dtype=torch.float64)
    for images_ft, ctf_values in _whitened_batches(images, ctf, pixel_size_angstrom, torch.ones(())):
        power, squared = images_ft.abs().square(), ctf_values.square()
        terms = (torch.ones_like(power), power, squared, squared.square(), power * squared)
        sums.index_add_(0, shells[usable], torch.stack([x.sum(0) for x in terms], dim=-1)[usable].double())
    n, p, c, cc, pc = sums[sums[:, 0] > 2].T
    spread = cc - c * c / n
    varies = spread / n > 0.01
    if not varies.any():
        return math.nan
    at_zero = p / n - (pc - p * c / n) / spread.clamp_min(1e-9) * c / n
    return ((at_zero * spread)[varies].sum() / spread[varies].sum()).item()


def _signal_fraction(images: Tensor, box_size_px: int) -> float:
    inside = soft_circle(box_size_px, 0.3 * box_size_px, 0.0).bool()
    outside = ~soft_circle(box_size_px, 0.48 * box_size_px, 0.0).bool()
    return 1.0 - (images[:, outside].var() / images[:, inside].var()).item()


def _choose_ctf_state(setting: str, table: ParticleTable, statistic: CTFStateStatistic | None) -> CTFState:
    measured = None if statistic is None else statistic.state
    if setting != "auto":
        if measured is not None and measured != setting:
            logger.warning("CTF: --ctf-state says %s, but the images look %s (%s). The option is used.",
                           setting, measured, statistic)
        return setting
    stated = _stated_ctf_state(table)
    if stated is not None:
        logger.info("CTF: the particles' file says that the images are %s.", stated)
        return stated
    if measured is None:
        logger.warning("CTF: whether phases are flipped cannot be determined from these images (%s); assumed to be raw. "
                       "If they are flipped, give --ctf-state phase-flipped or multiplied.", statistic or "no CTF is known")
        return "raw"
    logger.info("CTF: the images are %s (%s).", measured, statistic)
    return measured


def _stated_ctf_state(table: ParticleTable) -> CTFState | None:
    stated = (("rlnCtfDataAreCtfPremultiplied", "multiplied"), ("rlnCtfDataArePhaseFlipped", "phase-flipped"))
    for column, state in stated:
        if table.has(column) and (table.floats(column) > 0).all():
            return state
    return None
