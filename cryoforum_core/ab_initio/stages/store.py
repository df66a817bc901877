"""What the finished stages of a run leave in ``stages/``, so that ``--resume`` goes on with the next one."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ...run_directory import atomic_path
from ...saved_state import load_state, save_state

logger = logging.getLogger("cryoforum")

State = dict
"""Tensors and plain values, nested in dicts and lists: a file of them never runs code."""


@dataclass(frozen=True)
class StageStore:
    """One file for each part of a run. A run that does not resume reads none of them."""

    directory: Path
    is_resuming: bool
    device: torch.device
    """Where the tensors of a file that is read go"""

    def path(self, name: str) -> Path:
        return self.directory / f"{name.replace(' ', '_')}.pt"

    def has(self, name: str) -> bool:
        """Whether the run that is resumed left this part."""
        return self.is_resuming and self.path(name).is_file()

    def load(self, name: str) -> State:
        """Raises InputError where the file is damaged."""
        return load_state(self.path(name), self.device)

    def save(self, name: str, state: State) -> None:
        save_state(self.path(name), state)

    def kept(self, name: str, compute: Callable[[], State]) -> State:
        """The part as a stopped run left it, else computed and saved."""
        if self.has(name):
            logger.info("%s: done before, continuing after it", name)
            return self.load(name)
        state = compute()
        self.save(name, state)
        return state

    def save_seconds(self, seconds: dict[str, float]) -> None:
        """How long each finished stage took."""
        with atomic_path(self._seconds_path) as temporary:
            temporary.write_text(json.dumps(seconds))

    def seconds(self) -> dict[str, float]:
        """Of the run that is resumed; empty where no stage was finished, or nothing is resumed."""
        if not self.is_resuming or not self._seconds_path.is_file():
            return {}
        return json.loads(self._seconds_path.read_text())

    @property
    def _seconds_path(self) -> Path:
        return self.directory / "seconds.json"
