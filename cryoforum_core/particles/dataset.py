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
from .table import Indices, IndicesOrMask, ParticleTable


@dataclass(frozen=True, eq=False)
class ParticleBatch:
    """What a step sees: n images with what is known of them. ``indices`` are rows of the ``Particles``."""

    images: Float[Tensor, "n b b"]
    """float32 [y, x], as in the stack."""
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
                         self.box_size_px, self.pixel_size_angstrom, self.particle_id[rows])

    def images(self, indices: Indices | Integer[Tensor, " k"]) -> Float[Tensor, "k b b"]:
        """The images of ``indices``, as in the stack: float32."""
        return torch.from_numpy(self.stack.read(np.asarray(indices)))

    def batch(self, indices: Indices | Integer[Tensor, " k"]) -> ParticleBatch:
        """Images, CTF and poses of ``indices``."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return ParticleBatch(self.images(rows), None if self.ctf is None else self.ctf[rows],
                             None if self.poses is None else self.poses[rows], rows)

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
    every problem found. Pixel values are checked by ``check_images``.
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
        headers = [header for header in headers if header is not None]
        box_size_px = problems.attempt(_box_size_px, headers)
        pixel_size_angstrom = problems.attempt(fields.read_pixel_size_angstrom, table,
                                               np.array([header.pixel_size_angstrom for header in headers]), given)
        ctf = CTFParameters.without_effect(len(table)) if without_ctf else problems.attempt(
            fields.read_ctf, table, require_ctf)
        poses = problems.attempt(fields.read_poses, table, pixel_size_angstrom, require_poses)
        half_set = problems.attempt(fields.read_half_set, table)
        particle_id = problems.attempt(fields.read_particle_id, table)
    return Particles(table, ImageStack(locations), poses, ctf, half_set, box_size_px, pixel_size_angstrom, particle_id)


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


def _box_size_px(headers: list[_Header]) -> int | None:
    """The one box of the stacks; None where there is no stack to read it from."""
    shapes: dict[tuple[int, int], Path] = {}
    for header in headers:
        shapes.setdefault(header.shape[1:], header.path)
    with Problems() as problems:
        for (height, width), path in shapes.items():
            if height != width:
                problems.append(f"Images must be square; {path} has {width} x {height} px. Extract them with a square "
                                "box.")
            elif height % 2:
                problems.append(f"Images must have an even box; {path} has {height} px. Crop or pad them by one pixel "
                                "(relion_image_handler --new_box).")
        if len(shapes) > 1:
            found = listed([f"{width} px ({path})" for (_, width), path in shapes.items()])
            problems.append(f"All stacks must have one box size; found {found}. Extract or rescale them to one box.")
    return next(iter(shapes))[0] if shapes else None
