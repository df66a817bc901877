"""Estimated poses and maps compared with known ones: rows joined by particle, frames aligned, errors in degrees and
Angstrom, FSC."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..catalogue import JUNK_KIND_COLUMN
from ..errors import InputError
from ..geometry.pose_errors import (
    FrameAlignment,
    align_poses,
    error_summary,
    rotation_errors_deg,
    shift_errors_angstrom,
)
from ..imaging.masks import soft_sphere
from ..imaging.resolution import fourier_shell_correlation, resolution_angstrom
from ..imaging.volume_frame import mirror_volume, move_volume
from ..mrc import read_map, write_map
from ..particles.dataset import PARTICLE_ID_COLUMNS, read_poses
from ..particles.image_stack import parse_image_names
from ..particles.table import ParticleTable
from ..problems import Problems
from ..run_directory import RunDirectory, atomic_path
from .groups import known_groups

_MASK_RADIUS_BOXES = 0.45
_PIXEL_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """Row i belongs to row i of the estimated particles. ``is_junk`` (N,): junk according to the known table."""

    particle: np.ndarray
    """Id or image name (N,)."""
    error_deg: Tensor
    shift_error_angstrom: Tensor
    is_junk: np.ndarray
    alignment: FrameAlignment | None
    within_bound: dict[str, np.ndarray]
    """Key of the summary -> bool (N,): the error is within the bound of the estimated table."""
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> bool (N,): the particle belongs to this group of the known table."""

    def summary(self) -> dict:
        """Figures without junk, those of each group under ``by_group``, and where there is junk those of all particles under
        ``with_junk``."""
        good = torch.from_numpy(~self.is_junk)
        figures = self._figures(good) | {"n_compared": int(good.sum())}
        figures |= {name: float(within[~self.is_junk].mean()) for name, within in self.within_bound.items()}
        if self.groups:
            figures["by_group"] = [self._figures_of_group(name, ~self.is_junk & members)
                                   for name, members in self.groups.items() if (~self.is_junk & members).any()]
        if self.is_junk.any():
            everything = torch.ones_like(good)
            figures["with_junk"] = self._figures(everything) | {"n_compared": len(good)}
        if self.alignment is not None:
            figures["frame_quaternion"] = self.alignment.rotation.tolist()
            figures["frame_translation_angstrom"] = self.alignment.translation_angstrom.tolist()
            figures["is_mirrored"] = self.alignment.is_mirrored
        return figures

    def _figures_of_group(self, name: str, rows: np.ndarray) -> dict:
        """Number of particles, median errors and, with bounds, their coverage."""
        here = torch.from_numpy(rows)
        return {"group": name, "n_compared": int(rows.sum()), "median_error_deg": float(self.error_deg[here].median()),
                "median_shift_error_angstrom": float(self.shift_error_angstrom[here].median())} | {
            key: float(within[rows].mean()) for key, within in self.within_bound.items()}

    def _figures(self, rows: Tensor) -> dict:
        return error_summary(self.error_deg[rows]) | {
            "median_shift_error_angstrom": float(self.shift_error_angstrom[rows].median())}


@dataclass(frozen=True, eq=False)
class TwoMaps:
    """An estimated and a known map (D, D, D) of the same box and pixel size."""

    estimated: Tensor
    known: Tensor
    pixel_size_angstrom: float


def read_two_maps(estimated: Path, known: Path) -> TwoMaps:
    """Raises InputError where a map cannot be read, or the two differ in box or pixel size."""
    with Problems() as problems:
        found = [problems.attempt(read_map, path) for path in (estimated, known)]
    (volume, pixel_size), (known_volume, known_pixel_size) = found
    if volume.shape != known_volume.shape or abs(pixel_size / known_pixel_size - 1) > _PIXEL_SIZE_TOLERANCE:
        raise InputError(f"Two maps to compare must have the same box and pixel size; {estimated} has {len(volume)} "
                         f"px at {pixel_size:g} A/px, {known} {len(known_volume)} px at {known_pixel_size:g} A/px. "
                         "Rescale one of them (relion_image_handler --rescale_angpix --new_box).")
    return TwoMaps(torch.from_numpy(volume), torch.from_numpy(known_volume), pixel_size)


def write_evaluation(run: RunDirectory, errors: PoseErrors, maps: TwoMaps | None) -> dict:
    """Writes errors.csv and, with maps, fsc.csv, and map.mrc where the map was aligned to the known one; returns
    the summary.

    Resolutions are where the FSC against the known map, inside a soft sphere of 45 % of the box, falls to 0.143 and
    0.5; without maps they are None.
    """
    rows = zip(errors.particle.tolist(), errors.error_deg.tolist(), errors.shift_error_angstrom.tolist(),
               errors.is_junk.tolist(), strict=True)
    header = ("particle", "error_deg", "shift_error_angstrom", "is_junk")
    _write_csv(run.errors, header, ((p, f"{e:.4f}", f"{s:.4f}", int(j)) for p, e, s, j in rows))
    summary = errors.summary() | {"resolution_angstrom": None, "resolution_at_fsc_0.5_angstrom": None}
    if maps is not None:
        aligned = _onto_known_map(maps, errors.alignment)
        if errors.alignment is not None:
            write_map(run.map, aligned.cpu().numpy(), maps.pixel_size_angstrom)
        fsc = _fsc(aligned, maps.known)
        box = len(maps.known)
        _write_csv(run.fsc, ("shell", "resolution_angstrom", "fsc"),
                   ((i, f"{box * maps.pixel_size_angstrom / max(i, 1):.4f}", f"{c:.5f}")
                    for i, c in enumerate(fsc.tolist())))
        summary["resolution_angstrom"] = resolution_angstrom(fsc, box, maps.pixel_size_angstrom, 0.143)
        summary["resolution_at_fsc_0.5_angstrom"] = resolution_angstrom(fsc, box, maps.pixel_size_angstrom, 0.5)
    return summary


def _onto_known_map(maps: TwoMaps, alignment: FrameAlignment | None) -> Tensor:
    """The estimated map (D, D, D), mirrored, rotated and shifted where the frames were aligned."""
    if alignment is None:
        return maps.estimated
    estimated = mirror_volume(maps.estimated) if alignment.is_mirrored else maps.estimated
    return move_volume(estimated, alignment.rotation, alignment.translation_angstrom / maps.pixel_size_angstrom)


def _fsc(estimated: Tensor, known: Tensor) -> Tensor:
    mask = soft_sphere(len(estimated), _MASK_RADIUS_BOXES * len(estimated))
    return fourier_shell_correlation(estimated * mask, known * mask)


def _write_csv(path: Path, header: tuple, rows) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def compare_poses(estimated: ParticleTable, known: ParticleTable, group: Tensor, align: bool = False,
                  allow_mirror: bool = False, pixel_size_angstrom: float | None = None) -> PoseErrors:
    """Errors of the poses of ``estimated``, each against the same particle of ``known``, which may have more rows.

    ``group`` (G, 4): the molecule's symmetry. ``align``: first find the rotation and the translation between the
    frames, and with ``allow_mirror`` the hand, without junk. Raises InputError where a particle is not in
    ``known``, poses are missing, or all compared particles are junk.
    """
    particle, rows = join_rows(estimated, known)
    truth = read_poses(known, pixel_size_angstrom)[torch.from_numpy(rows)]
    poses = read_poses(estimated, pixel_size_angstrom)
    is_junk = np.zeros(len(rows), dtype=bool)
    if known.has(JUNK_KIND_COLUMN):
        is_junk = known.strings(JUNK_KIND_COLUMN)[rows] != "none"
    if is_junk.all():
        raise InputError(f"At least one particle must not be junk; all {len(rows)} particles of {estimated.path} are "
                         f"labelled as junk in {known.path} ({JUNK_KIND_COLUMN}). Check the selection.")
    alignment = None
    if align:
        good = torch.from_numpy(~is_junk)
        alignment = align_poses(poses[good], truth[good], group, allow_mirror)
        poses = alignment.apply_to_poses(poses)
    error_deg = rotation_errors_deg(poses.quaternion, truth.quaternion, group)
    shift_error = shift_errors_angstrom(poses.shift_angstrom, truth.shift_angstrom)
    within = {name: error.numpy() <= estimated.floats(column) for name, column, error in (
        ("error_bound_held", "rlnCryoforumErrorBound", error_deg),
        ("shift_error_bound_held", "rlnCryoforumShiftErrorBound", shift_error)) if estimated.has(column)}
    return PoseErrors(particle, error_deg, shift_error, is_junk, alignment, within, known_groups(known, rows))


def join_rows(table: ParticleTable, known: ParticleTable) -> tuple[np.ndarray, np.ndarray]:
    """The identity of each particle of ``table`` (N,), and its row in ``known`` (N,).

    Joined by the first of rlnParticleId and rlnImageId that both have, else by image (number and file name, without
    directories where those differ). Raises InputError where a particle is missing in ``known`` or not unique.
    """
    if not len(table) or not len(known):
        empty = table if not len(table) else known
        raise InputError(f"A set of particles must not be empty; {empty.path} has no rows.")
    column = next((name for name in PARTICLE_ID_COLUMNS if table.has(name) and known.has(name)), None)
    if column is not None:
        return _join(table.integers(column), known.integers(column), column, table, known)
    names = [_image_keys(t, with_directory=True) for t in (table, known)]
    if not np.isin(names[0], names[1]).all():
        names = [_image_keys(t, with_directory=False) for t in (table, known)]
    return _join(*names, "rlnImageName", table, known)


def _image_keys(table: ParticleTable, with_directory: bool) -> np.ndarray:
    stacks, index = parse_image_names(table.strings("rlnImageName"))
    stacks = stacks.tolist() if with_directory else [name.rsplit("/", 1)[-1] for name in stacks.tolist()]
    return np.array([f"{i + 1}@{stack}" for i, stack in zip(index.tolist(), stacks, strict=True)], dtype=object)


def _join(ids: np.ndarray, known_ids: np.ndarray, column: str, table: ParticleTable, known: ParticleTable
          ) -> tuple[np.ndarray, np.ndarray]:
    with Problems() as problems:
        for values, path in ((ids, table.path), (known_ids, known.path)):
            if len(np.unique(values)) < len(values):
                problems.append(f"{column} must be unique for every particle; {path} repeats some values. "
                                "Add a column rlnParticleId to both tables.")
        row_of = {value: row for row, value in enumerate(known_ids.tolist())}
        missing = [value for value in ids.tolist() if value not in row_of]
        if missing:
            problems.append(f"Every particle must be in the table of known poses; {len(missing)} of {len(ids)} particles "
                            f"of {table.path} are not in {known.path} (joined by {column}; the first is {missing[0]}). "
                            "Check that both tables describe the same particles.")
    return ids, np.array([row_of[value] for value in ids.tolist()])
