"""States that unfinished runs leave on disk and --resume goes on from: tensors and plain values, never objects."""

from collections.abc import Mapping
from pathlib import Path

import torch

from .errors import InputError
from .run_directory import atomic_path


def save_state(path: Path, state: Mapping) -> None:
    """Writes tensors and plain values, nested in dicts and lists; a stop leaves the file before, or none."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict:
    """What ``save_state`` wrote, its tensors on ``device``. Raises InputError where the file is no such state."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    # whatever its reader meets in such a file; its own message would advise to let the file run code
    except Exception as error:
        raise InputError(f"--resume needs the saved state of the same run; {path} is damaged, or another file. Remove it "
                         "to do that part again, or choose another --out.") from error
