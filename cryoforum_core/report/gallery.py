"""Examples of particles beside the projections that match them: which to show, and their file.

``predict`` saves them while it has the images and the map at hand; the report needs neither.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..run_directory import atomic_path

FILE_NAME = "gallery.npz"
KINDS = ("best", "median", "worst")


@dataclass(frozen=True, eq=False)
class Gallery:
    """k examples. ``images`` and ``projections`` (k, B, B) [y, x], protein bright, the projections with the particle's
    pose, shift and CTF; ``kind`` (k,) one of ``KINDS``; ``score`` (k,) and ``expected_error_deg`` (k,)."""

    images: np.ndarray
    projections: np.ndarray
    kind: np.ndarray
    particle_id: np.ndarray
    score: np.ndarray
    expected_error_deg: np.ndarray


def choose_gallery(score: np.ndarray, per_kind: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Rows (k,) and kinds (k,) to show, by score (n,), higher is better: the best, those about the median, the worst.

    No row twice; fewer per kind where there are not enough particles. Scores that are not finite count as worst.
    """
    order = np.argsort(-np.where(np.isfinite(score), score, -np.inf), kind="stable")
    n = min(per_kind, max(len(order) // len(KINDS), 1))
    middle = (len(order) - n) // 2
    starts = {"best": 0, "median": middle, "worst": len(order) - n}
    rows = np.concatenate([order[start:start + n] for start in starts.values()])
    kinds = np.repeat(list(starts), n)
    _, first = np.unique(rows, return_index=True)
    keep = np.sort(first)
    return rows[keep], kinds[keep]


def write_gallery(path: Path | str, gallery: Gallery) -> None:
    """Writes the gallery, whole or not at all."""
    fields = {name: np.asarray(value) for name, value in vars(gallery).items()}
    fields |= {name: fields[name].astype(np.float32) for name in ("images", "projections")}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **fields)


def read_gallery(path: Path | str) -> Gallery:
    with np.load(path, allow_pickle=False) as arrays:
        return Gallery(**{name: arrays[name] for name in Gallery.__dataclass_fields__})
