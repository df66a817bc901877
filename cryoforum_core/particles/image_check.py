"""The pixels of a set: values that are not finite, and images without any contrast."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..problems import Problems
from .dataset import Particles
from .fields import listed

logger = logging.getLogger("cryoforum")

# looking at every pixel of larger sets would take longer than it is worth; a sample finds what is common
_MAX_CHECKED = 20_000


@dataclass(frozen=True, eq=False)
class ImageCheck:
    """Rows (0-based) whose pixels cannot be right. ``rows`` are those that were checked."""

    rows: Int[np.ndarray, " n"]
    not_finite: Int[np.ndarray, " f"]
    constant: Int[np.ndarray, " c"]

    def raise_if_unusable(self) -> None:
        """Raises InputError for what no job can work with: NaN or infinite pixels, more than half of the images constant."""
        with Problems() as problems:
            if len(self.not_finite):
                problems.append("Images must have finite values; NaN or infinite ones are in particles "
                                f"{_rows_text(self.not_finite)}. Leave these particles out, or extract them again.")
            if 2 * len(self.constant) > len(self.rows):
                problems.append(f"Images must show particles; {len(self.constant)} of the {len(self.rows)} images checked "
                                f"have one value in all pixels (particles {_rows_text(self.constant)}). Extract them again.")

    def warning(self) -> str | None:
        """A sentence about constant images, None where there are none: they have no orientation, but junk is legal."""
        if not len(self.constant):
            return None
        return (f"{len(self.constant)} of {len(self.rows)} images have one value in all pixels (particles "
                f"{_rows_text(self.constant)}); they have no orientation.")


def _rows_text(rows: np.ndarray) -> str:
    return listed([str(row + 1) for row in rows.tolist()])


def check_images(particles: Particles, n_sample: int | None = None, seed: int = 0, batch_size: int = 512
                 ) -> ImageCheck:
    """Checks the pixels of ``n_sample`` images drawn at random, by default of all.

    An image is constant where its standard deviation is below 1e-6 of its largest absolute value.
    """
    rows = np.arange(len(particles))
    if n_sample is not None and n_sample < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), n_sample, replace=False))
    not_finite, constant = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        images = particles.images(rows[part])
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        not_finite[part] = ~finite.numpy()
        constant[part] = (finite & is_constant(images)).numpy()
    return ImageCheck(rows, rows[not_finite], rows[constant])


def is_constant(images: Float[Tensor, "n ..."]) -> Bool[Tensor, " n"]:
    """Which of the images (n, ...) have one value in all pixels, up to rounding: bool (n,)."""
    flat = images.flatten(1)
    return flat.std(dim=1) <= 1e-6 * flat.abs().amax(dim=1)


def without_constant_images(particles: Particles, check: ImageCheck) -> Particles:
    """For training: the particles but for the constant images that ``check`` found; says so in the log."""
    if not len(check.constant):
        return particles
    logger.warning("%s They are left out.", check.warning())
    keep = np.ones(len(particles), dtype=bool)
    keep[check.constant] = False
    return particles.subset(keep)


def checked_pixels(particles: Particles) -> ImageCheck:
    """Which images are constant. Raises InputError where some hold NaN or infinite values, or most are constant."""
    check = check_images(particles, _MAX_CHECKED)
    check.raise_if_unusable()
    return check
