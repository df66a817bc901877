"""cryoSPARC's .cs files (NumPy structured arrays) as RELION tables.

What follows cryoSPARC's conventions, checked against pyem's ``csparc2star.py`` (``metadata/cryosparc2.py``,
``geom/convert_numba.py``) and cryoDRGN's ``parse_pose_csparc.py``, which agree:

* ``alignments3D/pose`` is a rotation vector e. pyem's ``expmap(e)`` has ``+sin(theta) w_z`` at [0, 1]: it is the
  *transpose* of Rodrigues' matrix, ``R(e)^T = R(-e)``, and is then taken apart as RELION's A. cryoDRGN likewise
  transposes Rodrigues' matrix. So A is the rotation of ``-e``.
* ``alignments3D/shift`` is in pixels of ``alignments3D/psize_A`` with the sign of rlnOriginX/Y.
* Angles (``ctf/df_angle_rad``, ``ctf/phase_shift_rad``, ``alignments2D/pose``) are radians; half set, class and optics
  group count from 0.
* ``blob/sign`` -1 says that cryoSPARC negates the images when it reads them: they are dark-protein on disk.
* ``location/center_{x,y}_frac`` are fractions of the micrograph (``micrograph_shape`` is [y, x]) from the lower left.
* The aberrations and the anisotropic magnification of Global CTF Refinement (``ctf/tilt_A``, ``ctf/trefoil_A``,
  ``ctf/tetra_A``, ``ctf/shift_A``, ``ctf/anisomag``) have signs and scales that are documented nowhere, and converters
  disagree about them (pyem's function for them is not used, and its authors found other values than RELION's). They are
  not applied; ``read_cryosparc`` says so.
* Paths of an exported set begin with ``>``; all are relative to the project (or export) directory.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry.rotations import quaternion_to_relion_euler, rotation_vector_to_quaternion
from .star import TEXT
from .table import ParticleTable

logger = logging.getLogger("cryoforum")

# cryoSPARC's own id, which RELION has no column for
UID_COLUMN = "rlnParticleUid"

# column of the optics table -> field; one row for each ctf/exp_group_id
_OPTICS_FIELDS = {
    "rlnVoltage": "ctf/accel_kv",
    "rlnSphericalAberration": "ctf/cs_mm",
    "rlnAmplitudeContrast": "ctf/amp_contrast",
    "rlnImagePixelSize": "blob/psize_A",
}
# column of the particles' table -> field
_PARTICLE_FIELDS = {
    "rlnDefocusU": "ctf/df1_A",
    "rlnDefocusV": "ctf/df2_A",
    "rlnCtfBfactor": "ctf/bfactor",
    "rlnCtfMaxResolution": "ctf/ctf_fit_to_A",
    "rlnCtfFigureOfMerit": "ctf/cross_corr_ctffind4",
}
# fields of effects that are not applied -> what they are
_UNUSED_FIELDS = {
    "ctf/tilt_A": "beam tilt",
    "ctf/trefoil_A": "trefoil",
    "ctf/tetra_A": "tetrafoil",
    "ctf/shift_A": "shift of the beam",
    "ctf/anisomag": "anisotropic magnification",
}


def read_cryosparc(path: Path | str) -> ParticleTable:
    """The particles of a .cs file as a RELION 3.1 table, one row each in file order; ``uid`` is kept as
    ``rlnParticleUid``. Nothing in the file is executed.

    Raises InputError where the file is missing or is no .cs file of particles.
    """
    path = Path(path)
    records = _load(path)
    _say_what_is_unused(records, path)
    columns = {UID_COLUMN: records["uid"], **_image_columns(records), **_ctf_columns(records),
               **_pose_columns(records), **_location_columns(records)}
    optics, group_of_particle = _optics(records)
    columns["rlnOpticsGroup"] = group_of_particle
    table = ParticleTable.from_columns(columns, optics)
    return ParticleTable(table.blocks, path)


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"A .cs file must exist; {path} does not. Check the path.")
    try:
        # the header of a file with many fields is longer than NumPy's default limit, which guards against slow
        # parsing of hostile headers; 100 kB is parsed in no time
        records = np.load(path, allow_pickle=False, max_header_size=100_000)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"A .cs file must be a cryoSPARC (NumPy) table of numbers and texts; {path} is not "
                         f"({str(error).splitlines()[0]}). Export the particles again.") from error
    names = getattr(getattr(records, "dtype", None), "names", None)
    if not names or "uid" not in names:
        raise InputError(f"A .cs file must contain particles with a uid; {path} does not. Give the particles' .cs file.")
    return records


def _say_what_is_unused(records: np.ndarray, path: Path) -> None:
    """Names in the log the fields of aberrations that have values, which are not applied."""
    unused = [f"{field} ({what})" for field, what in _UNUSED_FIELDS.items()
              if field in records.dtype.names and not _has_no_effect(field, records[field])]
    if unused:
        logger.warning(
            "NOT used: %s of %s. cryoSPARC's conventions of these are not documented, so the images keep these "
            "aberrations, which matter beyond about 4 A. To have them corrected, estimate them with RELION's CtfRefine and "
            "give its STAR file: rlnBeamTiltX/Y, rlnOddZernike, rlnEvenZernike and rlnMagMat00 to 11 are applied.",
            ", ".join(unused), path)


def _has_no_effect(field: str, values: np.ndarray) -> bool:
    """Zeros; of a magnification also the matrix 1, 0, 0, 1."""
    values = values.reshape(len(values), -1)
    is_unit = field == "ctf/anisomag" and values.shape[1] == 4 and np.allclose(values, [1, 0, 0, 1], atol=1e-6)
    return is_unit or np.allclose(values, 0.0, atol=1e-6)


def _text(field: np.ndarray) -> np.ndarray:
    """Names (N,), stored as bytes, as text without the ``>`` of exported sets."""
    text = np.char.decode(field, "utf-8") if field.dtype.kind == "S" else field
    return np.array([name.removeprefix(">") for name in text.tolist()], dtype=TEXT)


def _image_columns(records: np.ndarray) -> dict[str, np.ndarray]:
    if "blob/path" not in records.dtype.names:
        return {}
    numbered = [f"{index + 1:06d}@{name}" for index, name
                in zip(records["blob/idx"].tolist(), _text(records["blob/path"]).tolist())]
    return {"rlnImageName": np.array(numbered, dtype=TEXT)}


def _ctf_columns(records: np.ndarray) -> dict[str, np.ndarray]:
    present = set(records.dtype.names)
    columns = {name: records[field] for name, field in _PARTICLE_FIELDS.items() if field in present}
    for name, field in (("rlnDefocusAngle", "ctf/df_angle_rad"), ("rlnPhaseShift", "ctf/phase_shift_rad")):
        if field in present:
            columns[name] = np.rad2deg(records[field].astype(np.float64))
    return columns


def _pose_columns(records: np.ndarray) -> dict[str, np.ndarray]:
    """Angles, origins, class and half set of a 3-D alignment, or of a 2-D one (psi only)."""
    names = records.dtype.names
    kind = next((kind for kind in ("alignments3D", "alignments2D") if f"{kind}/pose" in names), None)
    if kind is None:
        return {}
    columns = _angle_columns(records[f"{kind}/pose"].astype(np.float64))
    if f"{kind}/shift" in names:
        pixel_size = records[f"{kind}/psize_A" if f"{kind}/psize_A" in names else "blob/psize_A"]
        shift_angstrom = records[f"{kind}/shift"].astype(np.float64) * pixel_size[:, None]
        columns |= {"rlnOriginXAngst": shift_angstrom[:, 0], "rlnOriginYAngst": shift_angstrom[:, 1]}
    if f"{kind}/class" in names:
        columns["rlnClassNumber"] = records[f"{kind}/class"].astype(np.int64) + 1
    # one value for all means that the set was never split
    if f"{kind}/split" in names and len(np.unique(records[f"{kind}/split"])) > 1:
        columns["rlnRandomSubset"] = records[f"{kind}/split"].astype(np.int64) + 1
    return columns


def _angle_columns(pose_rad: np.ndarray) -> dict[str, np.ndarray]:
    if pose_rad.ndim == 1:
        return {"rlnAnglePsi": np.rad2deg(pose_rad)}
    euler_deg = quaternion_to_relion_euler(rotation_vector_to_quaternion(-torch.from_numpy(pose_rad))).numpy()
    return {name: euler_deg[:, axis] for axis, name in enumerate(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"))}


def _location_columns(records: np.ndarray) -> dict[str, np.ndarray]:
    names = records.dtype.names
    columns = {}
    if "location/micrograph_path" in names:
        columns["rlnMicrographName"] = _text(records["location/micrograph_path"])
    if "location/center_x_frac" in names and "location/micrograph_shape" in names:
        height, width = records["location/micrograph_shape"].astype(np.float64).T
        columns["rlnCoordinateX"] = records["location/center_x_frac"] * width
        columns["rlnCoordinateY"] = (1.0 - records["location/center_y_frac"]) * height
    return columns


def _optics(records: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The optics table, one row per exposure group and distinct values, and each particle's group from 1 (N,)."""
    present = records.dtype.names
    fields = {name: field for name, field in _OPTICS_FIELDS.items() if field in present}
    keys = [records["ctf/exp_group_id"].astype(np.float64)] if "ctf/exp_group_id" in present else []
    keys += [records[field].astype(np.float64) for field in fields.values()]
    # images of one pixel size can have different boxes
    keys += [records["blob/shape"][:, 0].astype(np.float64)] if "blob/shape" in present else []
    keys = np.stack(keys, axis=1) if keys else np.zeros((len(records), 1))
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    optics = {"rlnOpticsGroup": np.arange(1, len(first) + 1),
              "rlnOpticsGroupName": np.array([f"opticsGroup{i + 1}" for i in range(len(first))], dtype=TEXT)}
    optics |= {name: records[field][first] for name, field in fields.items()}
    if "blob/shape" in present:
        optics["rlnImageSize"] = records["blob/shape"][first, 0]
        optics["rlnImageDimensionality"] = np.full(len(first), 2)
    return optics, group.reshape(-1) + 1
