"""The particles' table: RELION's columns as text, so that what no one changed is written as it was read."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped

from ..errors import InputError
from .star import TEXT, StarBlock, read_star, write_star

# RELION reads and warns about optics tables by this version line
RELION_31_COMMENT = "# version 30001"

_WHOLE_NUMBER = re.compile(r"\d+(\.0*)?")

# rows of a set, in the order wanted
Indices = Integer[np.ndarray, " k"] | Sequence[int]
IndicesOrMask = Indices | Bool[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class ParticleTable:
    """Rows of particles, beside every other block of their file.

    RELION 3.1 and later keep the optics (voltage, pixel size, ...) in a table of their own, joined by
    ``rlnOpticsGroup``; RELION 3.0 keeps them in each row. ``has``, ``floats`` and ``strings`` look in both places, so
    that a caller sees one value per particle either way. The optics table wins, as in RELION.
    """

    blocks: tuple[StarBlock, ...]
    path: Path | None = None
    """The file it was read from: named in messages, and image names are relative to its directory."""

    @classmethod
    def read(cls, path: Path | str) -> "ParticleTable":
        """Reads a STAR file of RELION 3.0, 3.1 or later.

        Raises InputError where it is no STAR file, holds no particles, or a particle's optics group is missing.
        """
        table = cls(read_star(path), Path(path))
        table._check()
        return table

    @classmethod
    def from_columns(cls, columns: Mapping[str, Iterable], optics: Mapping[str, Iterable] | None = None
                     ) -> "ParticleTable":
        """A new table from columns of numbers or text; with ``optics`` it is a RELION 3.1 table, else a 3.0 one."""
        if optics is None:
            return cls((StarBlock("", as_text_columns(columns)),))
        comments = (RELION_31_COMMENT,)
        table = cls((StarBlock("optics", as_text_columns(optics), comments=comments),
                     StarBlock("particles", as_text_columns(columns), comments=comments)))
        table._check()
        return table

    def _check(self) -> None:
        if self._particles_index is None:
            found = ", ".join(f"data_{block.name}" for block in self.blocks)
            raise InputError(f"A particles' STAR file must contain a block with rlnImageName; {self.path} contains {found}. "
                             "Give the file of particles, not of micrographs or models.")
        if self.optics is not None and len(self):
            self._optics_row  # noqa: B018 - raises where a group is missing

    @cached_property
    def _particles_index(self) -> int | None:
        names = [block.name for block in self.blocks]
        with_images = [i for i, block in enumerate(self.blocks) if "rlnImageName" in block.columns]
        if "particles" in names:
            return names.index("particles")
        if with_images:
            return with_images[0]
        return 0 if len(names) == 1 and self.blocks[0].is_loop else None

    @property
    def particles(self) -> StarBlock:
        return self.blocks[self._particles_index]

    @property
    def optics(self) -> StarBlock | None:
        """The optics table; None for RELION 3.0."""
        return next((block for block in self.blocks if block.name == "optics"), None)

    @property
    def version(self) -> str:
        """``3.0`` or ``3.1`` (and later): whether there is an optics table."""
        return "3.0" if self.optics is None else "3.1"

    @property
    def names(self) -> tuple[str, ...]:
        """The particles' own columns, in order."""
        return tuple(self.particles.columns)

    def __len__(self) -> int:
        return len(self.particles)

    def has(self, *names: str) -> bool:
        """Whether every particle has all of these values, its own or its optics group's."""
        return all(name in self.particles.columns or self._is_optics(name) for name in names)

    def strings(self, name: str) -> Shaped[np.ndarray, " n"]:
        """The text of a column, or of its optics group's value. Raises InputError where there is none."""
        if self._is_optics(name):
            return self.optics.columns[name][self._optics_row]
        if name not in self.particles.columns:
            raise InputError(f"The particles need the column {name}; {self.path or 'the table'} has "
                             f"{', '.join(self.names)}. Export them with it.")
        return self.particles.columns[name]

    def floats(self, name: str) -> Float[np.ndarray, " n"]:
        """The numbers of a column, float64. Raises InputError naming the first row that is none."""
        text = self.strings(name)
        try:
            return text.astype(np.float64)
        except ValueError:
            row = next((i for i, value in enumerate(text.tolist()) if not _is_number(value)), 0)
            raise self._bad_value(name, row, "numbers") from None

    def integers(self, name: str) -> Int[np.ndarray, " n"]:
        """The whole numbers of a column, int64. Raises InputError naming the first row that is none."""
        try:
            return self.strings(name).astype(np.int64)
        except (ValueError, OverflowError):
            numbers = self.floats(name)
        whole = np.isfinite(numbers) & (numbers == np.round(numbers))
        if not whole.all():
            raise self._bad_value(name, int(np.argmin(whole)), "whole numbers")
        return numbers.astype(np.int64)

    def _bad_value(self, name: str, row: int, kind: str) -> InputError:
        return InputError(f"The column {name} must contain {kind}; particle {row + 1} of {self.path or 'the table'} has "
                          f"{self.strings(name)[row]!r}. Repair that row.")

    def _is_optics(self, name: str) -> bool:
        return self.optics is not None and name in self.optics.columns and name != "rlnOpticsGroup"

    @cached_property
    def _optics_row(self) -> np.ndarray:
        """The row (N,) of the optics table that each particle belongs to."""
        groups = self.optics.columns.get("rlnOpticsGroup")
        if groups is None or "rlnOpticsGroup" not in self.particles.columns:
            if len(self.optics) == 1:
                return np.zeros(len(self), dtype=np.int64)
            raise InputError("Particles with an optics table must have the column rlnOpticsGroup in both; "
                             f"{self.path or 'the table'} lacks it. Export the particles again.")
        if not len(self.optics):
            raise InputError(f"The optics table must have a row for each optics group; that of {self.path or 'the table'} "
                             "is empty. Export the particles again.")
        row_of_group = {group: row for row, group in enumerate(_group_numbers(groups))}
        present, inverse = np.unique(self.particles.columns["rlnOpticsGroup"], return_inverse=True)
        missing = [str(group) for group in _group_numbers(present) if group not in row_of_group]
        if missing:
            raise InputError(f"Every particle's optics group must be in the optics table; {self.path or 'the table'} "
                             f"has particles of group {', '.join(missing[:10])}, and the table lists "
                             f"{', '.join(map(str, row_of_group))}. Export the particles again.")
        return np.array([row_of_group[group] for group in _group_numbers(present)])[inverse]

    def with_columns(self, columns: Mapping[str, Iterable]) -> "ParticleTable":
        """The table with columns replaced, or added at the end; numbers are written as ``as_text`` says."""
        own = {**self.particles.columns, **as_text_columns(columns)}
        return self._with_particles(dataclasses.replace(self.particles, columns=own))

    def subset(self, indices: IndicesOrMask) -> "ParticleTable":
        """The rows of ``indices`` or of a mask, in that order; the other blocks stay whole."""
        rows = {name: column[np.asarray(indices)] for name, column in self.particles.columns.items()}
        return self._with_particles(dataclasses.replace(self.particles, columns=rows))

    def _with_particles(self, particles: StarBlock) -> "ParticleTable":
        blocks = list(self.blocks)
        blocks[self._particles_index] = particles
        return ParticleTable(tuple(blocks), self.path)

    def write(self, path: Path | str) -> None:
        """Writes the table as it is. ``image_stack.save_table`` also keeps relative image names pointing right."""
        write_star(path, self.blocks)


def as_text_columns(columns: Mapping[str, Iterable]) -> dict[str, Shaped[np.ndarray, " n"]]:
    """``as_text`` of every column."""
    return {name: as_text(values) for name, values in columns.items()}


def as_text(values: Iterable) -> Shaped[np.ndarray, " n"]:
    """Numbers or strings as STAR text: whole numbers as such, others with six decimals, below 0.001 with
    eight significant digits."""
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"a column has one dimension; got an array of shape {values.shape}")
    if values.dtype.kind == "b":
        values = values.astype(np.int64)
    if values.dtype.kind == "f":
        return np.array([_format_float(value) for value in values.tolist()], dtype=TEXT)
    return values.astype(TEXT)


def _format_float(value: float) -> str:
    return f"{value:.6f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.8g}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _group_numbers(groups: np.ndarray) -> list[int | str]:
    """Optics groups as numbers, so that ``1``, ``000001`` and ``1.000000`` are the same group."""
    return [int(float(group)) if _WHOLE_NUMBER.fullmatch(group) else group for group in groups.tolist()]
