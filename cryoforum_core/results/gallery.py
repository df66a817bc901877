"""Examples of a set's images beside the map's projections at their poses, for reports and viewers."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from ..config import AMBIGUOUS_REASON, JUNK_REASONS
from ..geometry.poses import displacement_px
from ..imaging.fourier import ifft_image
from ..matching.likelihood import predicted, to_images
from ..matching.matching_model import MatchingModel
from ..particles.preparation import ImagePreparation
from ..run_directory import atomic_path

N_EXAMPLES = 8


def write_gallery(path: Path, images: ImagePreparation, model: MatchingModel, arrays: Mapping[str, np.ndarray]) -> None:
    """Examples from the arrays of ``predict.finalise`` of all ``images``, projected from the model's map."""
    kinds, rows = zip(*_examples(arrays["match_score"], arrays.get("reason")))
    rows = np.array(rows)
    images_ft, ctf = images.transforms(rows)
    matched = model.images(images_ft, ctf)
    offset_px = displacement_px(arrays["shift_angstrom"][rows], images.pixel_size_angstrom)
    projections = predicted(matched, model.volume, *(torch.from_numpy(values).to(images_ft.device) for values in (
        arrays["quaternion"][rows], offset_px)))
    with atomic_path(path) as temporary:
        np.savez(temporary, images=ifft_image(images_ft).cpu().numpy(),
                 projections=to_images(projections, matched).cpu().numpy(), kind=np.array(kinds),
                 particle_id=images.particles.particle_id[rows], match_score=arrays["match_score"][rows],
                 expected_error_deg=arrays["expected_error_deg"][rows])


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
    for name in () if reason is None else (*JUNK_REASONS, AMBIGUOUS_REASON):
        rows = np.flatnonzero(reason == name)
        # from all over the set
        for place in np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)):
            yield name, int(rows[place])
