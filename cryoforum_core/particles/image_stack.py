"""Particle images of many stacks, read where they lie with a bounded number of open files."""

import contextlib
import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..errors import InputError
from ..mrc import MrcStack
from .star import TEXT
from .table import Indices, IndicesOrMask, ParticleTable

# more names in one message are not read
_MAX_LISTED = 10


@dataclass(frozen=True, eq=False)
class ImageLocations:
    """Where N images are: ``paths[path_of_image[i]]`` holds image i at the 0-based ``index_in_stack[i]``."""

    paths: tuple[Path, ...]
    path_of_image: Int[np.ndarray, " n"]
    index_in_stack: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.path_of_image)

    def subset(self, indices: IndicesOrMask) -> "ImageLocations":
        """The locations of ``indices`` or of a mask."""
        indices = np.asarray(indices)
        return dataclasses.replace(self, path_of_image=self.path_of_image[indices],
                                   index_in_stack=self.index_in_stack[indices])


def search_directories(star_path: Path | str | None) -> tuple[Path, ...]:
    """Where relative image names are looked for: the STAR file's directory, the current directory (RELION's project),
    then the STAR file's parents (the project of a file deep in a RELION or Scipion project)."""
    directories = [Path.cwd()]
    if star_path is not None:
        beside = Path(star_path).absolute().parent
        directories = [beside, *directories, *beside.parents]
    return tuple(dict.fromkeys(directories))


def find_stack(name: str, directories: tuple[Path, ...]) -> Path | None:
    """The first file called ``name`` in ``directories``; None where there is none."""
    candidates = (Path(os.path.normpath(directory / name)) for directory in directories)
    return next((path for path in candidates if path.is_file()), None)


def parse_image_names(names: Shaped[np.ndarray, " n"]) -> tuple[Shaped[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """RELION's ``000012@stack.mrcs`` to stack names and 0-based indices.

    A name without ``@`` is the first image of its file. Raises InputError naming the first malformed row.
    """
    number, mark, stack = np.strings.partition(names, np.array("@", dtype=TEXT))
    stack = np.where(mark == "@", stack, number)
    number = np.where(mark == "@", number, np.array("1", dtype=TEXT))
    well_formed = np.strings.isdecimal(number) & (stack != "")
    if well_formed.all():
        index = number.astype(np.int64) - 1
        well_formed = index >= 0
    if not well_formed.all():
        row = int(np.argmin(well_formed))
        raise InputError("rlnImageName must be a number from 1, @, and a file, like 000012@stack.mrcs; "
                         f"particle {row + 1} has {names[row]!r}. Export the particles again.")
    return stack, index


def locate_images(table: ParticleTable) -> ImageLocations:
    """Where the images of a table are. Raises InputError with the missing stacks (at most ten named) and the directories
    searched."""
    names = table.strings("rlnImageName")
    stack_names, index = parse_image_names(names)
    unique, path_of_image = np.unique(stack_names, return_inverse=True)
    directories = search_directories(table.path)
    found = [find_stack(name, directories) for name in unique.tolist()]
    missing = [name for name, path in zip(unique.tolist(), found) if path is None]
    if missing:
        raise InputError(_missing_problem(missing, directories))
    return ImageLocations(tuple(found), path_of_image.astype(np.int64), index)


def _missing_problem(missing: list[str], directories: tuple[Path, ...]) -> str:
    listed = ", ".join(missing[:_MAX_LISTED])
    more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
    relative = any(not os.path.isabs(name) for name in missing)
    looked = f" (looked in {', '.join(map(str, directories))})" if relative else ""
    return (f"Every image stack must exist; {len(missing)} do not: {listed}{more}{looked}. "
            "Check the paths, or start from the directory to which they are relative.")


def save_table(table: ParticleTable, path: Path | str) -> None:
    """Writes a table to ``path``; relative image names that would no longer be found from there become absolute."""
    if table.path is not None and "rlnImageName" in table.names:
        table = _with_names_valid_from(table, search_directories(path))
    table.write(path)


def _with_names_valid_from(table: ParticleTable, directories: tuple[Path, ...]) -> ParticleTable:
    names = table.strings("rlnImageName")
    stack_names, index = parse_image_names(names)
    origin = search_directories(table.path)
    unique, inverse = np.unique(stack_names, return_inverse=True)
    moved = unique.copy()
    for row, name in enumerate(unique.tolist()):
        found = find_stack(name, origin)
        if found is not None and find_stack(name, directories) != found:
            moved[row] = str(found)
    changed = (moved != unique)[inverse]
    if not changed.any():
        return table
    names = names.copy()
    names[changed] = [f"{number + 1:06d}@{stack}" for number, stack
                      in zip(index[changed], moved[inverse][changed].tolist())]
    return table.with_columns({"rlnImageName": names})


class ImageStack:
    """N images of any number of stacks as one, with at most ``max_open`` files open. Threads may share it.

    It can be pickled (to data-loader processes): the copy opens its own files.
    """

    def __init__(self, locations: ImageLocations, max_open: int = 32):
        self.locations, self._max_open = locations, max_open
        self._open: OrderedDict[int, tuple[MrcStack, list[int]]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return ImageStack, (self.locations, self._max_open)

    def __len__(self) -> int:
        return len(self.locations)

    @property
    def n_open(self) -> int:
        """How many files are open now."""
        return len(self._open)

    def subset(self, indices: IndicesOrMask) -> "ImageStack":
        """The images of ``indices`` or of a mask, in that order."""
        return ImageStack(self.locations.subset(indices), self._max_open)

    def read(self, indices: Indices) -> Float[np.ndarray, "k y x"]:
        """The images of 0-based ``indices``: float32, in that order.

        Each file is opened once per call and read in ascending order. Smaller images among larger ones, of other optics
        groups, are set into their mean.
        """
        indices = np.atleast_1d(np.asarray(indices))
        paths, within = self.locations.path_of_image[indices], self.locations.index_in_stack[indices]
        order = np.lexsort((within, paths))
        images = None
        for rows in np.split(order, np.flatnonzero(np.diff(paths[order])) + 1):
            if not len(rows):
                continue
            with self._lease(int(paths[rows[0]])) as stack:
                part = stack.read(within[rows])
            if images is None:
                images = np.zeros((len(indices), *part.shape[1:]), dtype=np.float32)
            box = max(images.shape[-1], part.shape[-1])
            images = _in_box(images, box)
            images[rows] = _in_box(part, box)
        return np.empty((0, 0, 0), dtype=np.float32) if images is None else images

    @contextlib.contextmanager
    def _lease(self, path_index: int) -> Iterator[MrcStack]:
        """An open stack that is not closed before the block ends, whatever other threads open meanwhile."""
        with self._lock:
            if path_index not in self._open:
                self._open[path_index] = (MrcStack(self.locations.paths[path_index]), [0])
            self._open.move_to_end(path_index)
            stack, users = self._open[path_index]
            users[0] += 1
            self._close_idle(self._max_open)
        try:
            yield stack
        finally:
            with self._lock:
                users[0] -= 1
                self._close_idle(self._max_open)

    def _close_idle(self, keep: int) -> None:
        for path_index, (stack, users) in list(self._open.items()):
            if len(self._open) <= keep:
                return
            if users[0] == 0:
                stack.close()
                del self._open[path_index]

    def close(self) -> None:
        """Closes all files that no thread is reading; the next read opens them again."""
        with self._lock:
            self._close_idle(0)


def _in_box(images: np.ndarray, box_size_px: int) -> np.ndarray:
    """Images (k, b, b) in the middle of a larger box, surrounded by their mean."""
    if images.shape[-1] == box_size_px:
        return images
    larger = np.empty((len(images), box_size_px, box_size_px), dtype=np.float32)
    larger[:] = images.mean(axis=(1, 2), keepdims=True)
    before = box_size_px // 2 - images.shape[-1] // 2
    larger[:, before:before + images.shape[-2], before:before + images.shape[-1]] = images
    return larger
