"""The files in which a run leaves its poses: particles.star, orientation_posterior.npz, gallery.npz and micrographs.csv."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped

from ..catalogue import CHOSEN_REASONS
from ..geometry.poses import Poses, displacement_px
from ..imaging.fourier import ifft_image
from ..matching.likelihood import predicted
from ..matching.matching_model import MatchingModel
from ..matching.whitened_images import to_images
from ..particles.dataset import Particles
from ..particles.fields import pose_columns
from ..particles.image_preparation import ImagePreparation
from ..particles.image_stack import save_table
from ..particles.particle_groups import ParticleGroups
from ..run_directory import RunDirectory, atomic_path
from .micrographs import Micrographs
from .pose_results import PoseResults
from .star_columns import star_columns

logger = logging.getLogger("cryoforum")

# of each kind in the gallery: what a page shows in one row
N_EXAMPLES = 8


def poses_of(results: PoseResults, dtype: torch.dtype = torch.float64) -> Poses:
    """The poses as tensors."""
    return Poses(torch.from_numpy(results.quaternion).to(dtype), torch.from_numpy(results.shift_angstrom).to(dtype))


def write_results(run: RunDirectory, particles: Particles, results: PoseResults,
                  more_columns: Mapping[str, Shaped[np.ndarray, " n"]] | None = None) -> None:
    """particles.star: the particles' table with poses, what is known about them, and ``more_columns``.

    orientation_posterior.npz, where there is a posterior or a match: the same and more, as arrays.
    """
    columns = pose_columns(particles.table, poses_of(results), particles.pixel_size_angstrom)
    save_table(particles.table.with_columns({**columns, **star_columns(results), **(more_columns or {})}), run.particles)
    if results.errors is not None:
        results.save(run.orientation_posterior)


def write_micrographs(run: RunDirectory, images: ImagePreparation, results: PoseResults) -> dict[str, list[str]]:
    """micrographs.csv of the results of all ``images``; what the summary says of it. Nothing where there is one group."""
    noise = images.noise
    groups = ParticleGroups.of(images.particles.table) if noise is None else noise.groups
    if len(groups) < 2:
        return {}
    micrographs = Micrographs.of(groups, None if noise is None else noise.level(), results)
    micrographs.write(run.micrographs)
    worst = micrographs.worst()
    if worst:
        logger.info("Micrographs with unusual noise or contrast: %s.", "; ".join(worst))
    return {"unusual_micrographs": worst}


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
