"""A set of particles, checked as a whole: table, images, CTF and poses."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ImageInputConfig
from ..errors import InputError
from ..geometry.poses import Poses
from ..imaging.ctf import CTFParameters
from ..mrc import MrcStack
from .cryosparc import read_cryosparc
from .image_stack import ImageLocations, ImageStack, locate_images
from .table import ParticleTable

logger = logging.getLogger("cryoforum")

# columns that identify a particle, in order of preference; Scipion writes its own ids as rlnImageId
PARTICLE_ID_COLUMNS = ("rlnParticleId", "rlnImageId")
ANGLE_COLUMNS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
CTF_COLUMNS = {
    "defocus_u_angstrom": "rlnDefocusU",
    "defocus_v_angstrom": "rlnDefocusV",
    "defocus_angle_deg": "rlnDefocusAngle",
    "phase_shift_deg": "rlnPhaseShift",
    "voltage_kv": "rlnVoltage",
    "spherical_aberration_mm": "rlnSphericalAberration",
    "amplitude_contrast": "rlnAmplitudeContrast",
}
# what a CTF value can be in an electron microscope; outside lies a wrong unit or a failed fit
_CTF_LIMITS = {
    "rlnDefocusU": (-2e4, 2e5, "Angstrom"),
    "rlnDefocusV": (-2e4, 2e5, "Angstrom"),
    "rlnVoltage": (20.0, 2000.0, "kV"),
    "rlnSphericalAberration": (-1.0, 20.0, "mm"),
    "rlnAmplitudeContrast": (-1.0, 1.0, "a ratio"),
}
_PIXEL_SIZE_TOLERANCE = 0.01
_MAX_LISTED = 10


@dataclass(frozen=True, eq=False)
class ParticleBatch:
    """What a step sees: n images with what is known of them. ``indices`` (n,) are rows of the ``Particles``."""

    images: Tensor
    """(n, B, B) float32 [y, x], as in the stack."""
    ctf: CTFParameters | None
    poses: Poses | None
    indices: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "ParticleBatch":
        return ParticleBatch(self.images.to(device), None if self.ctf is None else self.ctf.to(device),
                             None if self.poses is None else self.poses.to(device), self.indices.to(device))


@dataclass(frozen=True, eq=False)
class Particles:
    """N particles; row i of every field is row i of the file.

    ``half_set`` (N,) holds 1 and 2 (rlnRandomSubset) or is None. ``particle_id`` (N,) int64 is unique: the column
    rlnParticleId, else rlnImageId, else 1..N; results are joined by it, never by row.
    """

    table: ParticleTable
    stack: ImageStack
    poses: Poses | None
    ctf: CTFParameters | None
    half_set: np.ndarray | None
    box_size_px: int
    pixel_size_angstrom: float
    particle_id: np.ndarray

    def __len__(self) -> int:
        return len(self.particle_id)

    def subset(self, indices: np.ndarray) -> "Particles":
        """The particles of ``indices`` (k,) or of a mask (N,), in that order."""
        rows = np.asarray(indices)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return Particles(self.table.subset(rows), self.stack.subset(rows),
                         None if self.poses is None else self.poses[torch.from_numpy(rows)],
                         None if self.ctf is None else self.ctf[torch.from_numpy(rows)],
                         None if self.half_set is None else self.half_set[rows],
                         self.box_size_px, self.pixel_size_angstrom, self.particle_id[rows])

    def images(self, indices: np.ndarray | Tensor) -> Tensor:
        """The images of ``indices`` (k,), as in the stack: (k, B, B) float32."""
        return torch.from_numpy(self.stack.read(np.asarray(indices)))

    def batch(self, indices: np.ndarray | Tensor) -> ParticleBatch:
        """Images, CTF and poses of ``indices`` (k,)."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return ParticleBatch(self.images(rows), None if self.ctf is None else self.ctf[rows],
                             None if self.poses is None else self.poses[rows], rows)


def read_table(path: Path | str) -> ParticleTable:
    """The table of a ``.star`` or cryoSPARC ``.cs`` file."""
    path = Path(path)
    return read_cryosparc(path) if path.suffix == ".cs" else ParticleTable.read(path)


def load_particles(path: Path | str, image_input: ImageInputConfig | None = None, require_poses: bool = False,
                   require_ctf: bool = True) -> Particles:
    """Reads a set of particles and checks table, CTF, poses and the headers of all stacks.

    ``image_input.pixel_size_angstrom`` takes the place of the file's. Without ``require_poses`` poses are read where
    the file has them. Raises one InputError with every problem found. Pixel values are checked by ``check_images``.
    """
    table = read_table(path)
    if not len(table):
        raise InputError(f"A set of particles must not be empty; {path} has no rows. Check the selection before.")
    problems: list[str] = []
    locations = _collect(problems, lambda: _checked_locations(table, problems))
    headers = _read_headers(locations, problems) if locations is not None else []
    box_size_px = _box_size_px(headers, problems)
    given = image_input.pixel_size_angstrom if image_input is not None else None
    pixel_size_angstrom = _collect(problems, lambda: _pixel_size_angstrom(table, headers, given, problems))
    ctf = _collect(problems, lambda: _ctf(table, require_ctf, problems))
    poses = _collect(problems, lambda: _poses(table, pixel_size_angstrom, require_poses, problems))
    half_set = _collect(problems, lambda: _half_set(table, problems))
    particle_id = _collect(problems, lambda: _particle_id(table, problems))
    if problems:
        raise InputError(problems)
    return Particles(table, ImageStack(locations), poses, ctf, half_set, box_size_px, pixel_size_angstrom, particle_id)


def read_poses(table: ParticleTable, pixel_size_angstrom: float | None = None) -> Poses:
    """The poses of a table alone, whose images need not be there. ``pixel_size_angstrom`` takes the place of the
    table's (origins in pixels need one). Raises InputError where poses are missing or cannot be right."""
    problems: list[str] = []
    if not table.has("rlnOriginXAngst", "rlnOriginYAngst") and table.has("rlnOriginX", "rlnOriginY"):
        given = pixel_size_angstrom
        pixel_size_angstrom = _collect(problems, lambda: _pixel_size_angstrom(table, [], given, problems))
    poses = _collect(problems, lambda: _poses(table, pixel_size_angstrom, True, problems))
    if problems:
        raise InputError(problems)
    return poses


def _collect(problems: list[str], read):
    """The result of ``read``; where it raises InputError, None, and its problems are added to the others."""
    try:
        return read()
    except InputError as error:
        problems.extend(error.problems)
        return None


def _checked_locations(table: ParticleTable, problems: list[str]) -> ImageLocations | None:
    locations, missing = locate_images(table)
    problems.extend(missing)
    return locations


@dataclass(frozen=True)
class _Header:
    path: Path
    shape: tuple[int, int, int]
    pixel_size_angstrom: float


def _read_headers(locations: ImageLocations, problems: list[str]) -> list[_Header]:
    """The headers of all stacks; notes unreadable ones and those with fewer images than the rows refer to."""
    last_index = np.full(len(locations.paths), -1)
    np.maximum.at(last_index, locations.path_of_image, locations.index_in_stack)
    headers, short = [], []
    for path, last in zip(locations.paths, last_index.tolist()):
        try:
            with MrcStack(path) as stack:
                headers.append(_Header(path, stack.shape, stack.pixel_size_angstrom))
        except InputError as error:
            problems.extend(error.problems)
            continue
        if last >= headers[-1].shape[0]:
            short.append(f"{path} has {headers[-1].shape[0]}, and the rows refer to image {last + 1}")
    if short:
        problems.append(f"A stack must hold every image that the rows refer to; {_listed(short)}. "
                        "Copy the stack again, or export the particles again.")
    return headers


def _box_size_px(headers: list[_Header], problems: list[str]) -> int | None:
    shapes: dict[tuple[int, int], Path] = {}
    for header in headers:
        shapes.setdefault(header.shape[1:], header.path)
    for (height, width), path in shapes.items():
        if height != width:
            problems.append(f"Images must be square; {path} has {width} x {height} px. Extract them with a square box.")
        elif height % 2:
            problems.append(f"Images must have an even box; {path} has {height} px. Crop or pad them by one pixel "
                            "(relion_image_handler --new_box).")
    if len(shapes) > 1:
        found = _listed([f"{width} px ({path})" for (_, width), path in shapes.items()])
        problems.append(f"All stacks must have one box size; found {found}. Extract or rescale them to one box.")
    return next(iter(shapes))[0] if shapes else None


def _pixel_size_angstrom(table: ParticleTable, headers: list[_Header], given: float | None,
                         problems: list[str]) -> float | None:
    """The one pixel size of the set: as given, else from the table, else from the stacks' headers."""
    sizes, source = _table_pixel_sizes(table), str(table.path)
    # an unset header says 0, and many programs leave 1
    in_headers = np.unique([h.pixel_size_angstrom for h in headers if h.pixel_size_angstrom not in (0.0, 1.0)])
    if sizes is None and len(in_headers):
        sizes, source = in_headers, "the stacks' headers"
    elif given is None:
        _check_one_pixel_size(in_headers, "the stacks' headers", problems)
    if sizes is None:
        if given is None:
            problems.append(f"The pixel size must be known; {table.path} has neither rlnImagePixelSize nor "
                            "rlnDetectorPixelSize with rlnMagnification. Give --pixel-size-angstrom.")
        return given
    _check_one_pixel_size(sizes, source, problems)
    if not (0 < sizes[0] < np.inf):
        return given
    size = float(sizes[0]) if given is None else given
    _warn_of_other_pixel_size(size, in_headers)
    return size


def _check_one_pixel_size(sizes: np.ndarray, source: str, problems: list[str]) -> None:
    found = ", ".join(f"{size:g}" for size in sizes[:_MAX_LISTED])
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        problems.append(f"The pixel size must be a number above 0; found {found} A in {source}. Repair it there.")
    elif len(sizes) and np.ptp(sizes) > _PIXEL_SIZE_TOLERANCE * sizes.min():
        problems.append(f"All particles must have one pixel size; found {found} A in {source}. Rescale the images to "
                        "one pixel size, or, where only the headers are wrong, give --pixel-size-angstrom.")


def _table_pixel_sizes(table: ParticleTable) -> np.ndarray | None:
    """The different pixel sizes in Angstrom that the table states; None where it states none."""
    if table.has("rlnImagePixelSize"):
        return np.unique(table.floats("rlnImagePixelSize"))
    if table.has("rlnDetectorPixelSize", "rlnMagnification"):
        # micrometres over a magnification
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.unique(1e4 * table.floats("rlnDetectorPixelSize") / table.floats("rlnMagnification"))
    if table.has("rlnPixelSize"):
        return np.unique(table.floats("rlnPixelSize"))
    return None


def _warn_of_other_pixel_size(size_angstrom: float, in_headers: np.ndarray) -> None:
    differing = in_headers[np.abs(in_headers / size_angstrom - 1.0) > _PIXEL_SIZE_TOLERANCE]
    if len(differing):
        logger.warning("The pixel size is taken to be %g A; headers of stacks say %s A.", size_angstrom,
                       ", ".join(f"{size:g}" for size in differing[:_MAX_LISTED]))


def _ctf(table: ParticleTable, required: bool, problems: list[str]) -> CTFParameters | None:
    columns = [column for column in CTF_COLUMNS.values() if column != "rlnPhaseShift"]
    missing = [column for column in columns if not table.has(column)]
    if missing:
        if required:
            problems.append(f"The particles need their CTF; {table.path} lacks {', '.join(missing)}. "
                            "Estimate the CTF, or export the particles with it.")
        return None
    values = {}
    for field, column in CTF_COLUMNS.items():
        is_absent = column == "rlnPhaseShift" and not table.has(column)
        numbers = np.zeros(len(table)) if is_absent else _collect(problems, lambda: table.floats(column))
        if numbers is not None:
            _check_ctf_values(table, column, numbers, problems)
            values[field] = torch.from_numpy(numbers.astype(np.float32))
    return CTFParameters(**values) if len(values) == len(CTF_COLUMNS) else None


def _check_ctf_values(table: ParticleTable, column: str, numbers: np.ndarray, problems: list[str]) -> None:
    low, high, unit = _CTF_LIMITS.get(column, (-np.inf, np.inf, "degrees"))
    bad = np.flatnonzero(~np.isfinite(numbers) | (numbers < low) | (numbers > high))
    if len(bad):
        limits = f" from {low:g} to {high:g}" if np.isfinite(high) else ""
        problems.append(f"{column} must be a number{limits} ({unit}); {table.path} has {numbers[bad[0]]:g} in particle "
                        f"{bad[0] + 1}, and {len(bad)} such values. Estimate the CTF again, or leave them out.")
    elif column == "rlnDefocusU" and 0 < np.median(np.abs(numbers)) < 50.0:
        problems.append(f"{column} must be in Angstrom; the median in {table.path} is {np.median(numbers):g}, which "
                        "looks like micrometres. Multiply it by 10000.")


def _poses(table: ParticleTable, pixel_size_angstrom: float | None, required: bool, problems: list[str]
           ) -> Poses | None:
    missing = [column for column in ANGLE_COLUMNS if not table.has(column)]
    if missing:
        if required:
            problems.append(f"The particles need poses here; {table.path} lacks {', '.join(missing)}. "
                            "Give particles of a 3-D refinement.")
        return None
    euler_deg = np.stack([table.floats(column) for column in ANGLE_COLUMNS], axis=1)
    shift_angstrom = _origins_angstrom(table, pixel_size_angstrom)
    bad = np.flatnonzero(~(np.isfinite(euler_deg).all(axis=1) & np.isfinite(shift_angstrom).all(axis=1)))
    if len(bad):
        problems.append(f"Angles and origins must be finite numbers; {len(bad)} particles of {table.path} have others, "
                        f"the first is particle {bad[0] + 1}. Leave them out, or refine again.")
        return None
    poses = Poses.from_relion(torch.from_numpy(euler_deg), torch.from_numpy(shift_angstrom))
    return Poses(poses.quaternion.float(), poses.shift_angstrom.float())


def _origins_angstrom(table: ParticleTable, pixel_size_angstrom: float | None) -> np.ndarray:
    """Origins (N, 2): rlnOriginX/YAngst of RELION 3.1, else rlnOriginX/Y of 3.0, which are in pixels, else 0."""
    if table.has("rlnOriginXAngst", "rlnOriginYAngst"):
        return np.stack([table.floats("rlnOriginXAngst"), table.floats("rlnOriginYAngst")], axis=1)
    if table.has("rlnOriginX", "rlnOriginY"):
        origins_px = np.stack([table.floats("rlnOriginX"), table.floats("rlnOriginY")], axis=1)
        # without a pixel size there is a problem already, and what is read is not used
        return origins_px * (1.0 if pixel_size_angstrom is None else pixel_size_angstrom)
    return np.zeros((len(table), 2))


def _half_set(table: ParticleTable, problems: list[str]) -> np.ndarray | None:
    if not table.has("rlnRandomSubset"):
        return None
    half_set = table.integers("rlnRandomSubset")
    others = sorted(set(np.unique(half_set).tolist()) - {1, 2})
    if others:
        problems.append(f"rlnRandomSubset must be 1 or 2; {table.path} also has {others[:_MAX_LISTED]}. "
                        "Repair or remove the column.")
    return half_set


def _particle_id(table: ParticleTable, problems: list[str]) -> np.ndarray:
    column = next((column for column in PARTICLE_ID_COLUMNS if column in table.names), None)
    if column is None:
        return np.arange(1, len(table) + 1, dtype=np.int64)
    particle_id = table.integers(column)
    values, counts = np.unique(particle_id, return_counts=True)
    if (counts > 1).any():
        repeated = _listed([str(value) for value in values[counts > 1].tolist()])
        problems.append(f"{column} must be different for every particle; {table.path} repeats {repeated}. "
                        "Remove the column, or number the particles anew.")
    return particle_id


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return "; ".join(items[:_MAX_LISTED]) + more


@dataclass(frozen=True, eq=False)
class ImageCheck:
    """Rows (0-based) whose pixels cannot be right. ``rows`` are those that were looked at."""

    rows: np.ndarray
    not_finite: np.ndarray
    constant: np.ndarray

    def problems(self) -> list[str]:
        """What no job can work with: NaN or infinite pixels anywhere, or constant images for more than half."""
        problems = []
        if len(self.not_finite):
            problems.append("Images must hold finite values; NaN or infinite ones are in particles "
                            f"{_rows_text(self.not_finite)}. Leave these particles out, or extract them again.")
        if 2 * len(self.constant) > len(self.rows):
            problems.append(f"Images must show particles; {len(self.constant)} of the {len(self.rows)} looked at have "
                            f"one value in all pixels (particles {_rows_text(self.constant)}). Extract them again.")
        return problems

    def warning(self) -> str | None:
        """A sentence about constant images, None where there are none: they have no orientation, but junk is legal."""
        if not len(self.constant):
            return None
        return (f"{len(self.constant)} of {len(self.rows)} images have one value in all pixels (particles "
                f"{_rows_text(self.constant)}); they have no orientation.")


def _rows_text(rows: np.ndarray) -> str:
    return _listed([str(row + 1) for row in rows.tolist()])


def check_images(particles: Particles, n_sample: int | None = None, seed: int = 0, batch_size: int = 512) -> ImageCheck:
    """Looks at the pixels of ``n_sample`` images drawn at random, by default of all.

    An image is constant where its standard deviation is below 1e-6 of its largest absolute value.
    """
    rows = np.arange(len(particles))
    if n_sample is not None and n_sample < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), n_sample, replace=False))
    not_finite, constant = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        images = particles.images(rows[part]).double()
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        not_finite[part] = ~finite.numpy()
        constant[part] = (finite & is_constant(images)).numpy()
    return ImageCheck(rows, rows[not_finite], rows[constant])


def is_constant(images: Tensor) -> Tensor:
    """Which of the images (n, B, B) have one value in all pixels, up to rounding: bool (n,)."""
    flat = images.double().flatten(1)
    return flat.std(dim=1) <= 1e-6 * flat.abs().amax(dim=1)


def without_constant_images(particles: Particles, check: ImageCheck) -> Particles:
    """For training: the particles but for the constant images that ``check`` found; says so in the log."""
    if not len(check.constant):
        return particles
    logger.warning("%s They are left out.", check.warning())
    keep = np.ones(len(particles), dtype=bool)
    keep[check.constant] = False
    return particles.subset(keep)
