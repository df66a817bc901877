"""What the columns of a particles' table say: pixel size, CTF, poses, half sets and ids, each checked.

Every function raises one InputError with all that is wrong with its columns.
"""

import logging

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..geometry.poses import Poses
from ..imaging.ctf import CTFParameters
from ..problems import Problems
from .optics import SAME_PIXEL_SIZE, read_even_zernike, read_magnification
from .table import ParticleTable

logger = logging.getLogger("cryoforum")

# columns that identify a particle, in order of preference; Scipion writes its own ids as rlnImageId
PARTICLE_ID_COLUMNS = ("rlnParticleId", "rlnImageId")
# RELION's three Euler angles
ANGLE_COLUMNS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
# field of CTFParameters -> RELION's column
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
# calibrations of one microscope differ by less
_PIXEL_SIZE_TOLERANCE = 0.01
# more names in one message are not read
MAX_LISTED = 10


def listed(items: list[str]) -> str:
    """The first ten items, and how many more there are."""
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return "; ".join(items[:MAX_LISTED]) + more


def read_pixel_size_angstrom(table: ParticleTable, header_sizes: Float[np.ndarray, " n_stacks"],
                             given: float | None = None) -> float:
    """The pixel size of the set: as given, else from the table, else from the stacks' headers. Of several in the table,
    of optics groups, it is the largest: see ``optics``."""
    sizes, source = _table_pixel_sizes_angstrom(table), str(table.path)
    # an unset header says 0, and many programs leave 1
    in_headers = np.unique([size for size in header_sizes if size not in (0.0, 1.0)])
    if sizes is None and len(in_headers):
        sizes, source = in_headers, "the stacks' headers"
    if sizes is None:
        if given is None:
            raise InputError(f"The pixel size must be known; {table.path} has neither rlnImagePixelSize nor "
                             "rlnDetectorPixelSize with rlnMagnification. Give --pixel-size-angstrom.")
        return given
    in_table = sizes is not in_headers
    with Problems() as problems:
        if given is None and in_table:
            problems.attempt(_check_positive, in_headers, "the stacks' headers")
        problems.attempt(_check_positive, sizes, source)
    several = given is None and in_table and np.ptp(sizes) > SAME_PIXEL_SIZE * sizes.min()
    if given is None and not several:
        _check_one_pixel_size(in_headers)
    size = given if given is not None else float(sizes[-1] if several else sizes[0])
    _warn_of_other_pixel_size(sizes if several else np.array([size]), in_headers)
    return size


def particle_pixel_sizes_angstrom(table: ParticleTable, pixel_size_angstrom: float) -> Float[np.ndarray, " n"]:
    """The pixel size of every particle, in a set of ``pixel_size_angstrom``: those of the table where that is the largest
    of several there, else all the same, as the user gave another one."""
    sizes = None if not len(table) else _pixel_size_column(table)
    if sizes is None or not np.isclose(sizes.max(), pixel_size_angstrom, rtol=1e-9):
        return np.full(len(table), pixel_size_angstrom)
    return np.where(sizes < (1 - SAME_PIXEL_SIZE) * pixel_size_angstrom, sizes, pixel_size_angstrom)


def _check_positive(sizes: np.ndarray, source: str) -> None:
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise InputError(f"The pixel size must be a number above 0; found {_sizes_text(sizes)} A in {source}. "
                         "Repair it there.")


def _check_one_pixel_size(in_headers: np.ndarray) -> None:
    if len(in_headers) and np.ptp(in_headers) > _PIXEL_SIZE_TOLERANCE * in_headers.min():
        raise InputError(f"All particles must have one pixel size, or the table must state each; found "
                         f"{_sizes_text(in_headers)} A in the stacks' headers. Write them as rlnImagePixelSize of optics "
                         "groups, or, where only the headers are wrong, give --pixel-size-angstrom.")


def _sizes_text(sizes: np.ndarray) -> str:
    return ", ".join(f"{size:g}" for size in sizes[:MAX_LISTED])


def _table_pixel_sizes_angstrom(table: ParticleTable) -> np.ndarray | None:
    """The different pixel sizes in Angstrom that the table states, ascending; None where it states none."""
    sizes = _pixel_size_column(table)
    return None if sizes is None else np.unique(sizes)


def _pixel_size_column(table: ParticleTable) -> np.ndarray | None:
    """The pixel size in Angstrom that the table states for every particle (N,)."""
    if table.has("rlnImagePixelSize"):
        return table.floats("rlnImagePixelSize")
    if table.has("rlnDetectorPixelSize", "rlnMagnification"):
        # micrometres over a magnification
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1e4 * table.floats("rlnDetectorPixelSize") / table.floats("rlnMagnification")
    if table.has("rlnPixelSize"):
        return table.floats("rlnPixelSize")
    return None


def _warn_of_other_pixel_size(sizes: np.ndarray, in_headers: np.ndarray) -> None:
    nearest = np.abs(in_headers[:, None] / sizes - 1.0).min(axis=1)
    differing = in_headers[nearest > _PIXEL_SIZE_TOLERANCE]
    if len(differing):
        logger.warning("The pixel size is taken to be %s A; headers of stacks say %s A.", _sizes_text(sizes),
                       _sizes_text(differing))


def read_ctf(table: ParticleTable, required: bool) -> CTFParameters | None:
    """The CTF of every particle, with rlnEvenZernike; a missing phase shift is 0. None where columns are missing that are
    not ``required``."""
    columns = [column for column in CTF_COLUMNS.values() if column != "rlnPhaseShift"]
    missing = [column for column in columns if not table.has(column)]
    if missing:
        if required:
            raise InputError(f"The particles need their CTF; {table.path} lacks {', '.join(missing)}. "
                             "Estimate the CTF, or export the particles with it; for images that were simulated without "
                             "one give --ctf-state none.")
        return None
    with Problems() as problems:
        values = {field: problems.attempt(_ctf_values, table, column) for field, column in CTF_COLUMNS.items()}
        even_zernike = problems.attempt(read_even_zernike, table)
    ctf = CTFParameters(**values)
    return ctf if even_zernike is None else ctf.with_even_zernike(torch.from_numpy(even_zernike))


def _ctf_values(table: ParticleTable, column: str) -> Tensor:
    """One column of the CTF (N,), float32."""
    if column == "rlnPhaseShift" and not table.has(column):
        return torch.zeros(len(table))
    numbers = table.floats(column)
    low, high, unit = _CTF_LIMITS.get(column, (-np.inf, np.inf, "degrees"))
    bad = np.flatnonzero(~np.isfinite(numbers) | (numbers < low) | (numbers > high))
    if len(bad):
        limits = f" from {low:g} to {high:g}" if np.isfinite(high) else ""
        raise InputError(f"{column} must be a number{limits} ({unit}); {table.path} has {numbers[bad[0]]:g} in particle "
                         f"{bad[0] + 1}, and {len(bad)} such values. Estimate the CTF again, or leave them out.")
    if column == "rlnDefocusU" and 0 < np.median(np.abs(numbers)) < 50.0:
        raise InputError(f"{column} must be in Angstrom; the median in {table.path} is {np.median(numbers):g}, which "
                         "looks like micrometres. Multiply it by 10000.")
    return torch.from_numpy(numbers.astype(np.float32))


def read_poses(table: ParticleTable, pixel_size_angstrom: float | None, required: bool) -> Poses | None:
    """Three angles and the origins, which are 0 where there are none, in the image without anisotropic magnification. None
    where columns of angles are missing that are not ``required``."""
    missing = [column for column in ANGLE_COLUMNS if not table.has(column)]
    if missing:
        if required:
            raise InputError(f"The particles need poses here; {table.path} lacks {', '.join(missing)}. "
                             "Give particles of a 3-D refinement.")
        return None
    euler_deg = np.stack([table.floats(column) for column in ANGLE_COLUMNS], axis=1)
    shift_angstrom = _origins_angstrom(table, pixel_size_angstrom)
    bad = np.flatnonzero(~(np.isfinite(euler_deg).all(axis=1) & np.isfinite(shift_angstrom).all(axis=1)))
    if len(bad):
        raise InputError(f"Angles and origins must be finite numbers; those of {len(bad)} particles of {table.path} are "
                         f"not, the first is particle {bad[0] + 1}. Leave them out, or refine again.")
    poses = Poses.from_relion(torch.from_numpy(euler_deg), torch.from_numpy(shift_angstrom))
    return Poses(poses.quaternion.float(), poses.shift_angstrom.float())


def _origins_angstrom(table: ParticleTable, pixel_size_angstrom: float | None) -> np.ndarray:
    """Origins (N, 2): rlnOriginX/YAngst of RELION 3.1, else rlnOriginX/Y of 3.0, which are in pixels, else 0."""
    if table.has("rlnOriginXAngst", "rlnOriginYAngst"):
        origins_angstrom = np.stack([table.floats("rlnOriginXAngst"), table.floats("rlnOriginYAngst")], axis=1)
    elif table.has("rlnOriginX", "rlnOriginY"):
        origins_px = np.stack([table.floats("rlnOriginX"), table.floats("rlnOriginY")], axis=1)
        # without a pixel size there is a problem already, and what is read is not used
        origins_angstrom = origins_px if pixel_size_angstrom is None else (
            origins_px * particle_pixel_sizes_angstrom(table, pixel_size_angstrom)[:, None])
    else:
        return np.zeros((len(table), 2))
    magnification = read_magnification(table)
    # RELION's origins are those of the image as recorded, where what belongs at y is at M' y
    return origins_angstrom if magnification is None else np.linalg.solve(
        magnification.transpose(0, 2, 1), origins_angstrom[..., None])[..., 0]


def pose_columns(table: ParticleTable, poses: Poses, pixel_size_angstrom: float) -> dict[str, Float[np.ndarray, " n"]]:
    """Poses as the columns that RELION reads from this table: origins in Angstrom in RELION 3.1, in pixels in 3.0;
    other origin columns that the table has are kept in step."""
    euler_deg = poses.euler_deg().double().cpu().numpy()
    angles = {name: euler_deg[:, axis] for axis, name in enumerate(ANGLE_COLUMNS)}
    return angles | origin_columns(table, poses.shift_angstrom.double().cpu().numpy(), pixel_size_angstrom)


def origin_columns(table: ParticleTable, origin_angstrom: Float[np.ndarray, "n 2"], pixel_size_angstrom: float
                   ) -> dict[str, Float[np.ndarray, " n"]]:
    """The origins alone, as ``pose_columns`` has them: of the image as recorded, in pixels of each particle's own size."""
    magnification = read_magnification(table)
    if magnification is not None:
        origin_angstrom = np.einsum("nji,nj->ni", magnification, origin_angstrom)
    size_angstrom = particle_pixel_sizes_angstrom(table, pixel_size_angstrom)
    columns = {}
    for axis, (in_px, in_angstrom) in enumerate((("rlnOriginX", "rlnOriginXAngst"), ("rlnOriginY", "rlnOriginYAngst"))):
        if table.version == "3.1" or in_angstrom in table.names:
            columns[in_angstrom] = origin_angstrom[:, axis]
        if table.version == "3.0" or in_px in table.names:
            columns[in_px] = origin_angstrom[:, axis] / size_angstrom
    return columns


def read_half_set(table: ParticleTable) -> Int[np.ndarray, " n"] | None:
    """rlnRandomSubset, 1 or 2; None where there is none."""
    if not table.has("rlnRandomSubset"):
        return None
    half_set = table.integers("rlnRandomSubset")
    others = sorted(set(np.unique(half_set).tolist()) - {1, 2})
    if others:
        raise InputError(f"rlnRandomSubset must be 1 or 2; {table.path} also has {others[:MAX_LISTED]}. "
                         "Repair or remove the column.")
    return half_set


def particle_id_column(table: ParticleTable) -> str | None:
    """The column that identifies the particles; None where they are numbered by row."""
    return next((column for column in PARTICLE_ID_COLUMNS if column in table.names), None)


def read_particle_id(table: ParticleTable) -> Int[np.ndarray, " n"]:
    """The ids: of rlnParticleId, else rlnImageId, else 1..N."""
    column = particle_id_column(table)
    if column is None:
        return np.arange(1, len(table) + 1, dtype=np.int64)
    particle_id = table.integers(column)
    values, counts = np.unique(particle_id, return_counts=True)
    if (counts > 1).any():
        repeated = listed([str(value) for value in values[counts > 1].tolist()])
        raise InputError(f"{column} must be different for every particle; {table.path} repeats {repeated}. "
                         "Remove the column, or renumber the particles.")
    return particle_id
