"""A set of particles, checked as a whole: table, images, CTF and poses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ..config import ImageInputConfig
from ..errors import InputError
from ..geometry.poses import Poses
from ..imaging.ctf import CTFParameters
from ..mrc import MrcStack
from ..problems import Problems
from . import fields
from .cryosparc import read_cryosparc
from .fields import PARTICLE_ID_COLUMNS, listed
from .image_stack import ImageLocations, ImageStack, locate_images, save_table
from .optics import ImageCorrection, read_correction
from .table import Indices, IndicesOrMask, ParticleTable


@dataclass(frozen=True, eq=False)
class ParticleBatch:
    """What a step sees: n images with what is known of them. ``indices`` are rows of the ``Particles``."""

    images: Float[Tensor, "n b b"]
    """float32 [y, x], as in the stack but for what ``Particles.images`` corrects."""
    ctf: CTFParameters | None
    poses: Poses | None
    indices: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "ParticleBatch":
        return ParticleBatch(self.images.to(device), None if self.ctf is None else self.ctf.to(device),
                             None if self.poses is None else self.poses.to(device), self.indices.to(device))


@runtime_checkable
class ParticleSource(Protocol):
    """N particles whose images can be asked for: ``Particles``, or simulated ones in their place."""

    poses: Poses | None
    ctf: CTFParameters | None
    box_size_px: int
    pixel_size_angstrom: float
    particle_id: Int[np.ndarray, " n"]

    def __len__(self) -> int: ...

    def batch(self, indices: Indices | Integer[Tensor, " k"]) -> ParticleBatch: ...

    def noise_rows(self, indices: Indices | Integer[Tensor, " k"]) -> Int[np.ndarray, " k"]:
        """Rows of the data set whose noise the images of ``indices`` have."""


@dataclass(frozen=True, eq=False)
class Particles:
    """N particles; row i of every field is row i of the file.

    ``half_set`` holds 1 and 2 (rlnRandomSubset) or is None. ``particle_id`` is unique: the column
    rlnParticleId, else rlnImageId, else 1..N; results are joined by it, never by row.
    """

    table: ParticleTable
    stack: ImageStack
    poses: Poses | None
    ctf: CTFParameters | None
    half_set: Int[np.ndarray, " n"] | None
    box_size_px: int
    pixel_size_angstrom: float
    particle_id: Int[np.ndarray, " n"]
    correction: ImageCorrection | None = None
    """How images of several optics groups become one set, without aberrations and distortion; None: they are one."""

    def __len__(self) -> int:
        return len(self.particle_id)

    def subset(self, indices: IndicesOrMask) -> "Particles":
        """The particles of ``indices`` or of a mask, in that order."""
        rows = np.asarray(indices)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return Particles(self.table.subset(rows), self.stack.subset(rows),
                         None if self.poses is None else self.poses[torch.from_numpy(rows)],
                         None if self.ctf is None else self.ctf[torch.from_numpy(rows)],
                         None if self.half_set is None else self.half_set[rows],
                         self.box_size_px, self.pixel_size_angstrom, self.particle_id[rows],
                         None if self.correction is None else self.correction.subset(rows))

    def images(self, indices: Indices | Integer[Tensor, " k"]) -> Float[Tensor, "k b b"]:
        """The images of ``indices``: float32, as in the stack; those of several optics groups on one grid, without
        anisotropic magnification and antisymmetric aberrations."""
        rows = np.atleast_1d(np.asarray(indices))
        return torch.from_numpy(self.stack.read(rows)) if self.correction is None else self.correction.read(self.stack, rows)

    def batch(self, indices: Indices | Integer[Tensor, " k"]) -> ParticleBatch:
        """Images, CTF and poses of ``indices``."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return ParticleBatch(self.images(rows), None if self.ctf is None else self.ctf[rows],
                             None if self.poses is None else self.poses[rows], rows)

    def noise_rows(self, indices: Indices | Integer[Tensor, " k"]) -> Int[np.ndarray, " k"]:
        """The particles' own."""
        return np.asarray(indices)

    def save(self, path: Path | str, poses: Poses | None = None, columns: Mapping[str, Iterable] | None = None) -> None:
        """Writes the table, rows and columns as read, with ``poses`` (N,) in RELION's columns and more ``columns``.

        Particles without an id column get rlnParticleId, so that a subset still says who is who.
        """
        added = {} if poses is None else fields.pose_columns(self.table, poses, self.pixel_size_angstrom)
        added |= columns or {}
        if fields.particle_id_column(self.table) is None:
            added[PARTICLE_ID_COLUMNS[0]] = self.particle_id
        save_table(self.table.with_columns(added), path)


def read_table(path: Path | str) -> ParticleTable:
    """The table of a ``.star`` or cryoSPARC ``.cs`` file."""
    path = Path(path)
    return read_cryosparc(path) if path.suffix == ".cs" else ParticleTable.read(path)


def load_particles(path: Path | str, image_input: ImageInputConfig | None = None, require_poses: bool = False,
                   require_ctf: bool = True) -> Particles:
    """Reads a set of particles and checks table, CTF, poses and the headers of all stacks.

    ``image_input.pixel_size_angstrom`` takes the place of the file's. Without ``require_poses`` poses are read where
    the file has them; with ``ctf_state`` none the CTF is 1, whatever columns there are. Raises one InputError with
    every problem found. Pixel values are checked by ``check_images``. Where optics groups differ in pixel size or box, or
    have aberrations or a magnification matrix, images and poses are those of the corrected images (``ImageCorrection``).
    """
    table = read_table(path)
    if not len(table):
        raise InputError(f"A set of particles must not be empty; {path} has no rows. Check the selection that made it.")
    given = image_input.pixel_size_angstrom if image_input is not None else None
    without_ctf = image_input is not None and image_input.ctf_state == "none"
    headers = []
    with Problems() as problems:
        locations = problems.attempt(locate_images, table)
        if locations is not None:
            headers = [problems.attempt(_read_header, path) for path in locations.paths]
            problems.attempt(_check_stack_lengths, locations, headers)
        boxes_px = problems.attempt(_boxes_px, table, locations, headers)
        headers = [header for header in headers if header is not None]
        pixel_size_angstrom = problems.attempt(fields.read_pixel_size_angstrom, table,
                                               np.array([header.pixel_size_angstrom for header in headers]), given)
        ctf = CTFParameters.without_effect(len(table)) if without_ctf else problems.attempt(
            fields.read_ctf, table, require_ctf)
        poses = problems.attempt(fields.read_poses, table, pixel_size_angstrom, require_poses)
        half_set = problems.attempt(fields.read_half_set, table)
        particle_id = problems.attempt(fields.read_particle_id, table)
    correction = read_correction(table, fields.particle_pixel_sizes_angstrom(table, pixel_size_angstrom), boxes_px,
                                 with_phases=not without_ctf)
    box_size_px = int(boxes_px[0]) if correction is None else correction.box_size_px
    return Particles(table, ImageStack(locations), poses, ctf, half_set, box_size_px, pixel_size_angstrom, particle_id,
                     correction)


def read_poses(table: ParticleTable, pixel_size_angstrom: float | None = None) -> Poses:
    """The poses of a table alone, whose images need not be there. ``pixel_size_angstrom`` takes the place of the
    table's (origins in pixels need one). Raises InputError where poses are missing or cannot be right."""
    with Problems() as problems:
        if not table.has("rlnOriginXAngst", "rlnOriginYAngst") and table.has("rlnOriginX", "rlnOriginY"):
            pixel_size_angstrom = problems.attempt(fields.read_pixel_size_angstrom, table, np.array([]),
                                                   pixel_size_angstrom)
        poses = problems.attempt(fields.read_poses, table, pixel_size_angstrom, True)
    return poses


@dataclass(frozen=True)
class _Header:
    path: Path
    shape: tuple[int, int, int]
    pixel_size_angstrom: float


def _read_header(path: Path) -> _Header:
    with MrcStack(path) as stack:
        return _Header(path, stack.shape, stack.pixel_size_angstrom)


def _check_stack_lengths(locations: ImageLocations, headers: list[_Header | None]) -> None:
    """Raises InputError where the rows refer to images that a stack does not have; None: its header cannot be read."""
    last_index = np.full(len(locations.paths), -1)
    np.maximum.at(last_index, locations.path_of_image, locations.index_in_stack)
    short = [f"{header.path} has {header.shape[0]}, and the rows refer to image {last + 1}"
             for header, last in zip(headers, last_index.tolist(), strict=True)
             if header is not None and last >= header.shape[0]]
    if short:
        raise InputError(f"A stack must contain every image that the rows refer to; {listed(short)}. "
                         "Copy the stack again, or export the particles again.")


def _boxes_px(table: ParticleTable, locations: ImageLocations | None, headers: list[_Header | None]
              ) -> Int[np.ndarray, " n"] | None:
    """The box of every particle's image; None where a stack cannot be read. One box for all, or one for each of several
    optics groups."""
    shapes: dict[tuple[int, int], Path] = {}
    for header in headers:
        if header is not None:
            shapes.setdefault(header.shape[1:], header.path)
    with Problems() as problems:
        for (height, width), path in shapes.items():
            if height != width:
                problems.append(f"Images must be square; {path} has {width} x {height} px. Extract them with a square "
                                "box.")
            elif height % 2:
                problems.append(f"Images must have an even box; {path} has {height} px. Crop or pad them by one pixel "
                                "(relion_image_handler --new_box).")
        if len(shapes) > 1 and not _is_known_group_by_group(table, locations, headers):
            found = listed([f"{width} px ({path})" for (_, width), path in shapes.items()])
            problems.append(f"All stacks must have one box size, or each optics group its own; found {found}. Extract or "
                            "rescale them to one box.")
    return None if locations is None or None in headers else _box_of_image(locations, headers)


def _box_of_image(locations: ImageLocations, headers: list[_Header]) -> np.ndarray:
    return np.array([header.shape[-1] for header in headers])[locations.path_of_image]


def _is_known_group_by_group(table: ParticleTable, locations: ImageLocations | None, headers: list[_Header | None]) -> bool:
    """Whether all images of each optics group have one box: else a stack of another box is there by mistake."""
    if table.optics is None or "rlnOpticsGroup" not in table.particles.columns or locations is None or None in headers:
        return False
    groups = table.integers("rlnOpticsGroup")
    boxes = _box_of_image(locations, headers)
    return len(np.unique(groups)) == len(np.unique(np.stack([groups, boxes]), axis=1).T)
