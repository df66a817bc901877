"""MRC files: maps and particle stacks. The only module that imports mrcfile."""

import warnings
from pathlib import Path

import mrcfile
import numpy as np

from .errors import InputError
from .problems import Problems
from .run_directory import atomic_path


class MrcStack:
    """A memory-mapped stack ``.mrc``/``.mrcs`` (float32, float16, int8, int16, uint16): shape ``(n, y, x)``.

    One image, also in an ``.mrc`` of two dimensions, is a stack of one. Close it, or use it as a context manager:
    an open stack holds file descriptors.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            with warnings.catch_warnings():
                # stacks of many programs carry sloppy headers (map id, machine stamp) that do not matter to us
                warnings.simplefilter("ignore", RuntimeWarning)
                self._file = mrcfile.mmap(self.path, mode="r", permissive=True)
        except (OSError, ValueError) as error:
            raise InputError(f"A stack must be a readable MRC file; {self.path} is not ({error}).") from error
        if self._file.data is None:
            self._file.close()
            raise InputError(f"A stack must contain as many images as its header states; {self.path} is cut short or "
                             "is no MRC file. Copy it again from its source.")

    @property
    def shape(self) -> tuple[int, int, int]:
        shape = self._file.data.shape
        return shape if len(shape) == 3 else (1, *shape)

    @property
    def pixel_size_angstrom(self) -> float:
        """The header's pixel size; 0 where the header has none."""
        return float(self._file.voxel_size.x)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images of the 0-based ``indices`` (k,) as float32 (k, y, x)."""
        data = self._file.data
        data = data if data.ndim == 3 else data[None]
        return np.asarray(data[np.asarray(indices)], dtype=np.float32)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MrcStack":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_map(path: Path | str) -> tuple[np.ndarray, float]:
    """A cubic map as float32 ``[z, y, x]`` and its pixel size in Angstrom.

    Raises InputError where the file is missing, is no MRC file, is not a cube with an even box, has no pixel size,
    or holds values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"A map must exist; {path} does not. Check the path.")
    with MrcStack(path) as stack:
        shape, pixel_size_angstrom = stack.shape, stack.pixel_size_angstrom
        volume = stack.read(np.arange(shape[0]))
    with Problems() as problems:
        if len(set(shape)) != 1:
            problems.append(f"A map must be a cube; {path} is {' x '.join(map(str, shape))}. "
                            "Give a map, not a stack of images.")
        elif shape[0] % 2:
            problems.append(f"A map must have an even box; {path} has {shape[0]} px. Crop or pad it by one voxel.")
        if not pixel_size_angstrom > 0:
            problems.append(f"A map must have a pixel size; in the header of {path} it is {pixel_size_angstrom:g} A. "
                            "Set it (relion_image_handler --angpix).")
        if not np.isfinite(volume).all():
            problems.append(f"A map must have finite values; {path} has NaN or infinite ones. Make the map again.")
    return volume, pixel_size_angstrom


def write_map(path: Path | str, volume: np.ndarray, pixel_size_angstrom: float) -> None:
    """Writes a map (D, D, D) [z, y, x] as float32, whole or not at all."""
    with atomic_path(path) as temporary, mrcfile.new(temporary, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(volume, dtype=np.float32))
        file.set_volume()
        file.voxel_size = pixel_size_angstrom


def write_stack(path: Path | str, images: np.ndarray, pixel_size_angstrom: float, dtype=np.float32) -> None:
    """Writes images (n, B, B) as a stack, whole or not at all. ``dtype``: float32, float16 (mode 12) or int16."""
    with atomic_path(path) as temporary, mrcfile.new(temporary, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(images, dtype=dtype))
        file.set_image_stack()
        file.voxel_size = pixel_size_angstrom


class StackWriter:
    """Writes a stack of a known length batch by batch, with one batch in memory.

    As a context manager: leaving the block without an error puts the stack in its place; an error leaves nothing.
    """

    def __init__(self, path: Path | str, n_images: int, box_size_px: int, pixel_size_angstrom: float):
        self._atomic = atomic_path(path)
        self._shape = (n_images, box_size_px, box_size_px)
        self._pixel_size_angstrom = pixel_size_angstrom
        self._next = 0

    def __enter__(self) -> "StackWriter":
        temporary = self._atomic.__enter__()
        self._file = mrcfile.new_mmap(temporary, self._shape, mrc_mode=2, overwrite=True)
        self._file.set_image_stack()
        self._file.voxel_size = self._pixel_size_angstrom
        return self

    def append(self, images: np.ndarray) -> None:
        """Adds images (k, B, B)."""
        self._file.data[self._next:self._next + len(images)] = images
        self._next += len(images)

    def __exit__(self, *exception) -> None:
        if exception[0] is None:
            self._file.update_header_stats()
        self._file.close()
        self._atomic.__exit__(*exception)
