"""Prepared images of a particle set without labels, batch by batch: what an auto-encoder learns from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

# 1.6 GB; larger sets are prepared again for each batch
_CACHE_VALUES = 400_000_000
# images prepared at once
_BATCH = 256
# a tenth of the steps is enough for the poses of a tenth of the images
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class ImageBatch:
    """n prepared images on one device."""

    rows: Int[Tensor, " n"]
    """which images of the set they are"""
    images: Float[Tensor, "n b b"]
    """masked"""
    ctf: Float[Tensor, "n b b//2+1"]

    def __len__(self) -> int:
        return len(self.images)


class PreparedImages:
    """The images of ``rows``; kept in memory, once prepared, where the set is small enough.

    ``prepare``: rows (n,) -> images (n, b, b), masked, and CTFs (n, b, b // 2 + 1) on the device of the training, such
    as ``ImagePreparation.network_input``.
    """

    def __init__(self, prepare: Callable[[np.ndarray], tuple[Tensor, Tensor]], n_images: int, box_size_px: int):
        self._prepare, self._n_images = prepare, n_images
        self._fits = n_images * box_size_px * (1.5 * box_size_px + 1) <= _CACHE_VALUES
        self._kept: ImageBatch | None = None

    def __len__(self) -> int:
        return self._n_images

    def at(self, rows: Integer[np.ndarray, " n"] | Integer[Tensor, " n"]) -> ImageBatch:
        """The images of ``rows``."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        if not self._fits:
            images, ctf = self._prepare(rows.numpy())
            return ImageBatch(rows.to(images.device), images, ctf)
        if self._kept is None:
            parts = [self._prepare(part) for part in np.array_split(np.arange(self._n_images),
                                                                    -(-self._n_images // _BATCH))]
            images, ctf = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            self._kept = ImageBatch(torch.arange(self._n_images, device=images.device), images, ctf)
        rows = rows.to(self._kept.images.device)
        return ImageBatch(rows, self._kept.images[rows], self._kept.ctf[rows])

    def batches(self, rows: Integer[np.ndarray, " n"], size: int = _BATCH) -> Iterator[ImageBatch]:
        """The images of ``rows`` in parts of at most ``size``, one after the other."""
        return (self.at(part) for part in np.array_split(rows, -(-len(rows) // size)))


@dataclass(frozen=True)
class EpochStream:
    """Passes over the training images in a random order, another one each time: a function of the step alone.

    Where each image has a pose of its own, the held-out images need theirs, too: every tenth step from
    ``pose_steps_from`` on is theirs, and the map must not learn from it (``is_held_out``).
    """

    images: PreparedImages
    rows: Int[np.ndarray, " n"]
    held_out: Int[np.ndarray, " m"]
    batch_size: int
    seed: int
    pose_steps_from: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def is_held_out(self, step: int) -> bool:
        has_own_poses = self.pose_steps_from is not None and step >= self.pose_steps_from
        return has_own_poses and step % HELD_OUT_EVERY == HELD_OUT_EVERY - 1

    def __call__(self, step: int, progress: float) -> tuple[ImageBatch, int]:
        """The batch of a step, and the step."""
        if self.is_held_out(step):
            return self.images.at(self._part(self.held_out, step // HELD_OUT_EVERY)), step
        return self.images.at(self._part(self.rows, step)), step

    def _part(self, rows: np.ndarray, number: int) -> np.ndarray:
        n_parts = -(-len(rows) // self.batch_size)
        order = np.random.default_rng([self.seed, number // n_parts]).permutation(rows)
        return np.array_split(order, n_parts)[number % n_parts]
