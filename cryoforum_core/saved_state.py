"""The states from which --resume continues an unfinished run: tensors and plain values, never pickled objects."""

from collections.abc import Mapping
from pathlib import Path

import torch

from .errors import InputError
from .run_directory import atomic_path


def save_state(path: Path, state: Mapping) -> None:
    """Writes tensors and plain values, nested in dicts and lists; if the write is interrupted, the old file stays."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict:
    """What ``save_state`` wrote, its tensors on ``device``. Raises InputError where the file is no such state."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    # a damaged file raises many kinds of error, and torch's own message advises to allow code in the file
    except Exception as error:
        raise InputError(f"--resume needs the saved state of the same run; {path} is damaged, or not such a file. "
                         "Remove it to do that part again, or choose another --out.") from error
