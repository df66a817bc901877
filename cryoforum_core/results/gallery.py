"""Examples of a set's images beside the map's projections at their poses, for reports and viewers: ``gallery.npz``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from ..catalogue import CHOSEN_REASONS
from ..geometry.poses import displacement_px
from ..imaging.fourier import ifft_image
from ..matching.likelihood import predicted, to_images
from ..matching.matching_model import MatchingModel
from ..particles.image_preparation import ImagePreparation
from ..run_directory import atomic_path
from .pose_results import PoseResults
from .write import poses_of


@dataclass(frozen=True, eq=False)
class Gallery:
    """k examples. ``images`` and ``projections`` [y, x], protein bright, the projections with the particle's
    pose, shift and CTF; ``kind``: best, median, worst, or a reason of select."""

    images: Float[np.ndarray, "k b b"]
    projections: Float[np.ndarray, "k b b"]
    kind: Shaped[np.ndarray, " k"]
    particle_id: Int[np.ndarray, " k"]
    match_score: Float[np.ndarray, " k"]
    expected_error_deg: Float[np.ndarray, " k"]

    def of(self, kinds: Sequence[str]) -> "Gallery":
        """The examples of some kinds, in the order of the kinds."""
        rows = np.concatenate([np.flatnonzero(self.kind == kind) for kind in kinds]) if kinds else np.array([], dtype=int)
        return Gallery(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def read_gallery(path: Path | str) -> Gallery:
    """Reads the arrays of a gallery.npz, which holds no pickled objects."""
    with np.load(path, allow_pickle=False) as arrays:
        return Gallery(**{name: arrays[name] for name in Gallery.__dataclass_fields__})


# of each kind at most
N_EXAMPLES = 8


def write_gallery(path: Path, images: ImagePreparation, model: MatchingModel, results: PoseResults) -> None:
    """Examples from the results of all ``images``, projected from the model's map."""
    match_score = results.match.match_score
    kinds, rows = zip(*_examples(match_score, None if results.junk is None else results.junk.reason), strict=True)
    rows = np.array(rows)
    images_ft, ctf = images.transforms(rows)
    matched = model.images(images_ft, ctf)
    chosen = poses_of(results[rows], torch.float32).to(images_ft.device)
    projections = predicted(matched, model.volume, chosen.quaternion,
                            displacement_px(chosen.shift_angstrom, images.pixel_size_angstrom))
    with atomic_path(path) as temporary:
        np.savez(temporary, images=ifft_image(images_ft).cpu().numpy(),
                 projections=to_images(projections, matched).cpu().numpy(), kind=np.array(kinds),
                 particle_id=images.particles.particle_id[rows], match_score=match_score[rows],
                 expected_error_deg=results.errors.expected_error_deg[rows])


def _examples(score: np.ndarray, reason: np.ndarray | None) -> Iterator[tuple[str, int]]:
    """Kind and row of the best and usual matches, of some all over the poorest tenth, and of each reason."""
    order = np.argsort(-score, kind="stable")
    each = min(N_EXAMPLES, max(1, len(order) // 3))
    middle = len(order) // 2 - each // 2
    # the very last ones are all alike: blank images, where there are some
    poorest = order[-max(each, len(order) // 10):]
    worst = poorest[np.linspace(0, len(poorest) - 1, each).round().astype(int)]
    for kind, rows in (("best", order[:each]), ("median", order[middle:middle + each]), ("worst", worst)):
        yield from ((kind, int(row)) for row in rows)
    for name in () if reason is None else CHOSEN_REASONS:
        rows = np.flatnonzero(reason == name)
        # from all over the set
        for place in np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)):
            yield name, int(rows[place])
