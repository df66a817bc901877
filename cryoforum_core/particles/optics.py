"""What RELION's optics groups say beyond the CTF: pixel sizes and boxes of their own, aberrations, magnification matrices;
and the images as one set, with all of it corrected.

The rule for one grid: the pixel size is the largest of the set's, the box the largest even one that every image fills.
So each group has data at every frequency and every pixel of the grid, and one noise spectrum can describe all.
"""

import logging
import re
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ..errors import InputError
from ..imaging.aberrations import demodulated, with_beam_tilt
from ..imaging.image_resampling import NO_MAGNIFICATION, Magnification, resample_images
from ..problems import Problems
from .image_stack import ImageStack
from .table import IndicesOrMask, ParticleTable

logger = logging.getLogger("cryoforum")

_MAGNIFICATION_COLUMNS = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
_BEAM_TILT_COLUMNS = ("rlnBeamTiltX", "rlnBeamTiltY")
# pixel sizes that differ by less are one: not even at the edge of a box of 1000 px do they move anything by 0.1 px
SAME_PIXEL_SIZE = 1e-4
# no microscope distorts by a quarter; beyond lies a matrix that was never set
_MAX_DISTORTION = 0.25
# images; their transforms need some times the memory of the images
_AT_ONCE = 64
# columns that RELION uses and cryoforum does not -> the value without effect
_UNUSED_COLUMNS = {"rlnCtfBfactor": 0.0, "rlnCtfScalefactor": 1.0}


@dataclass(frozen=True)
class ImageGroup:
    """What images have in common that are corrected alike."""

    pixel_size_angstrom: float
    box_size_px: int
    magnification: Magnification = NO_MAGNIFICATION
    """RELION's matrix by rows."""
    odd_zernike: tuple[float, ...] = ()
    """RELION's coefficients, with the beam tilt; empty: no antisymmetric aberration."""

    @property
    def field_of_view_angstrom(self) -> float:
        return self.box_size_px * self.pixel_size_angstrom


@dataclass(frozen=True, eq=False)
class ImageCorrection:
    """How the images of N particles become one set: ``groups[group_of_image[i]]`` says what image i is like, and all are
    brought to ``box_size_px`` pixels of ``pixel_size_angstrom``."""

    groups: tuple[ImageGroup, ...]
    group_of_image: Int[np.ndarray, " n"]
    box_size_px: int
    pixel_size_angstrom: float

    @classmethod
    def of_groups(cls, groups: tuple[ImageGroup, ...], group_of_image: Int[np.ndarray, " n"]) -> "ImageCorrection":
        """On the grid of the largest pixel size, in the largest even box that all groups fill."""
        pixel_size = max(group.pixel_size_angstrom for group in groups)
        box = int(min(group.field_of_view_angstrom for group in groups) / pixel_size / 2 + 1e-3) * 2
        return cls(groups, group_of_image, box, pixel_size)

    def is_needed(self) -> bool:
        """Whether any image is changed when it is read."""
        return any(self._is_resampled(group) or group.odd_zernike for group in self.groups)

    def _is_resampled(self, group: ImageGroup) -> bool:
        return (group.magnification != NO_MAGNIFICATION or group.box_size_px != self.box_size_px
                or group.pixel_size_angstrom != self.pixel_size_angstrom)

    def subset(self, indices: IndicesOrMask) -> "ImageCorrection":
        """For the images of ``indices`` or of a mask, on the same grid."""
        return replace(self, group_of_image=self.group_of_image[np.asarray(indices)])

    def read(self, stack: ImageStack, indices: Integer[np.ndarray, " k"]) -> Float[Tensor, "k b b"]:
        """The images of ``indices``, corrected: float32."""
        images = torch.empty(len(indices), self.box_size_px, self.box_size_px)
        group_of_image = self.group_of_image[indices]
        for number in np.unique(group_of_image).tolist():
            of_group = np.flatnonzero(group_of_image == number)
            for rows in np.array_split(of_group, len(of_group) // _AT_ONCE + 1):
                recorded = torch.from_numpy(stack.read(indices[rows]))
                images[torch.from_numpy(rows)] = self._corrected(recorded, self.groups[number])
        return images

    def _corrected(self, images: Tensor, group: ImageGroup) -> Tensor:
        if self._is_resampled(group):
            images = resample_images(images, group.pixel_size_angstrom, self.pixel_size_angstrom, self.box_size_px,
                                     group.magnification)
        # the frequencies of the undistorted image are those in which RELION evaluates aberrations
        return demodulated(images, group.odd_zernike, self.pixel_size_angstrom) if group.odd_zernike else images


def read_correction(table: ParticleTable, pixel_size_angstrom: Float[np.ndarray, " n"], box_size_px: Int[np.ndarray, " n"],
                    with_phases: bool = True) -> ImageCorrection | None:
    """How the images of a table, with these pixel sizes and boxes, become one set; None where they are one as they are.
    Without ``with_phases`` aberrations are left alone. Says in the log what is done, and what cannot be done."""
    with Problems() as problems:
        magnification = problems.attempt(read_magnification, table)
        odd = problems.attempt(_read_odd_zernike, table) if with_phases else None
    values = [pixel_size_angstrom, box_size_px] + [each for each in (magnification, odd) if each is not None]
    first, group_of_image = _unique_rows(values)
    groups = tuple(ImageGroup(
        float(pixel_size_angstrom[row]), int(box_size_px[row]),
        NO_MAGNIFICATION if magnification is None else tuple(magnification[row].ravel().tolist()),
        () if odd is None or not odd[row].any() else tuple(odd[row].tolist())) for row in first.tolist())
    correction = ImageCorrection.of_groups(groups, group_of_image)
    _say_what_is_unused(table)
    if not correction.is_needed():
        return None
    _say_what_is_done(correction)
    return correction


def _unique_rows(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of arrays (n, ...): the first rows of different values, and which of them each row equals (n,)."""
    number = np.zeros(len(values[0]), dtype=np.int64)
    for column in np.concatenate([np.asarray(each, dtype=np.float64).reshape(len(number), -1) for each in values], 1).T:
        different, inverse = np.unique(column, return_inverse=True)
        if len(different) > 1:
            number = np.unique(number * len(different) + inverse, return_inverse=True)[1]
    return np.unique(number, return_index=True)[1], number


def read_magnification(table: ParticleTable) -> Float[np.ndarray, "n 2 2"] | None:
    """RELION's magnification matrix of every particle; None where there is none, or none has an effect."""
    if not any(table.has(column) for column in _MAGNIFICATION_COLUMNS):
        return None
    unit = np.eye(2).ravel()
    elements = [table.floats(column) if table.has(column) else np.full(len(table), value)
                for column, value in zip(_MAGNIFICATION_COLUMNS, unit, strict=True)]
    matrix = np.stack(elements, 1).reshape(-1, 2, 2)
    bad = ~(np.abs(matrix - np.eye(2)).max((1, 2)) < _MAX_DISTORTION)
    if bad.any():
        found = ", ".join(f"{value:g}" for value in matrix[np.argmax(bad)].ravel())
        raise InputError(f"A magnification matrix (rlnMagMat00 to rlnMagMat11) must be within {_MAX_DISTORTION:g} of "
                         f"1, 0, 0, 1; {table.path or 'the table'} has {found} for particle {int(np.argmax(bad)) + 1}. "
                         "Remove these columns, or estimate it again.")
    return None if np.abs(matrix - np.eye(2)).max() < 1e-7 else matrix


def read_even_zernike(table: ParticleTable) -> Float[np.ndarray, "n z"] | None:
    """The coefficients of every particle's symmetric aberrations; None where there are none, or all are 0."""
    return _zernike_coefficients(table, "rlnEvenZernike")


def _read_odd_zernike(table: ParticleTable) -> Float[np.ndarray, "n z"] | None:
    """The coefficients of every particle's antisymmetric aberrations, with its beam tilt; None where all are 0."""
    coefficients = _zernike_coefficients(table, "rlnOddZernike")
    tilt_mrad = [table.floats(name) if table.has(name) else np.zeros(len(table)) for name in _BEAM_TILT_COLUMNS]
    if not np.isfinite(tilt_mrad).all():
        raise InputError(f"{' and '.join(_BEAM_TILT_COLUMNS)} must be finite numbers (mrad); those of "
                         f"{table.path or 'the table'} are not. Repair or remove the columns.")
    if not np.any(tilt_mrad):
        return coefficients
    if not table.has("rlnVoltage", "rlnSphericalAberration"):
        raise InputError("A beam tilt needs rlnVoltage and rlnSphericalAberration; "
                         f"{table.path or 'the table'} lacks them. Export the particles with them, or without a beam tilt.")
    coefficients = np.zeros((len(table), 6)) if coefficients is None else coefficients
    known = [*tilt_mrad, table.floats("rlnSphericalAberration"), table.floats("rlnVoltage")]
    first, number = _unique_rows([coefficients, *known])
    tilted = [with_beam_tilt(tuple(coefficients[row].tolist()), (known[0][row], known[1][row]), known[2][row], known[3][row])
              for row in first.tolist()]
    return np.array(tilted)[number]


def _zernike_coefficients(table: ParticleTable, column: str) -> Float[np.ndarray, "n z"] | None:
    if not table.has(column):
        return None
    texts, number = np.unique(table.strings(column), return_inverse=True)
    rows = [_coefficients(text, column, table) for text in texts.tolist()]
    coefficients = np.zeros((len(rows), max(len(row) for row in rows)))
    for row, values in zip(coefficients, rows, strict=True):
        row[:len(values)] = values
    return coefficients[number] if coefficients.any() else None


def _coefficients(text: str, column: str, table: ParticleTable) -> list[float]:
    """RELION's list ``[0.1,-2,3]`` as numbers."""
    match = re.fullmatch(r"\[(.*)\]", text.strip())
    try:
        values = [float(part) for part in match[1].split(",") if part.strip()] if match else None
    except ValueError:
        values = None
    if values is None or not np.isfinite(values).all():
        raise InputError(f"{column} must be a list of numbers such as [0,0.1,-2]; {table.path or 'the table'} has {text!r}. "
                         "Repair or remove the column.")
    return values


def _say_what_is_done(correction: ImageCorrection) -> None:
    kinds: dict[tuple[float, int], int] = {}
    n_images = np.bincount(correction.group_of_image, minlength=len(correction.groups))
    for group, n in zip(correction.groups, n_images.tolist(), strict=True):
        kind = group.pixel_size_angstrom, group.box_size_px
        kinds[kind] = kinds.get(kind, 0) + n
    if len(kinds) > 1:
        found = "; ".join(f"{box} px of {size:g} A ({n} images)" for (size, box), n in sorted(kinds.items()))
        logger.warning(
            "The images differ in pixel size or box: %s. All are resampled, when they are read, to %d px of %g A: the "
            "largest pixel size of the set, and the largest box that every image fills. Leave out the images with the "
            "largest pixels if this limits the resolution.", found, correction.box_size_px, correction.pixel_size_angstrom)
    for what, has in (("anisotropic magnification", lambda group: group.magnification != NO_MAGNIFICATION),
                      ("beam tilt and antisymmetric aberrations", lambda group: bool(group.odd_zernike))):
        n = sum(n for group, n in zip(correction.groups, n_images.tolist(), strict=True) if has(group))
        if n:
            logger.info("Corrected when the images are read: the %s of %d of %d images.", what, n, n_images.sum())


def _say_what_is_unused(table: ParticleTable) -> None:
    unused = [column for column, value in _UNUSED_COLUMNS.items()
              if table.has(column) and not np.allclose(table.floats(column), value, atol=1e-6)]
    if table.has("rlnMtfFileName") and len(np.unique(table.strings("rlnMtfFileName"))) > 1:
        unused.append("rlnMtfFileName (detectors that differ)")
    if unused:
        logger.warning("NOT used: %s of %s. RELION would weight frequencies by it; here CTFs are not damped and the "
                       "contrast of every image is estimated. The columns are kept in what is written.", ", ".join(unused),
                       table.path or "the table")
