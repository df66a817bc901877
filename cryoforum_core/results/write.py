"""The files in which a run leaves its poses: particles.star and orientation_posterior.npz."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Shaped

from ..geometry.poses import Poses
from ..particles.dataset import Particles
from ..particles.fields import pose_columns
from ..particles.image_stack import save_table
from ..run_directory import RunDirectory
from .pose_results import PoseResults


def poses_of(results: PoseResults, dtype: torch.dtype = torch.float64) -> Poses:
    """The poses as tensors."""
    return Poses(torch.from_numpy(results.quaternion).to(dtype), torch.from_numpy(results.shift_angstrom).to(dtype))


def write_results(run: RunDirectory, particles: Particles, results: PoseResults,
                  more_columns: Mapping[str, Shaped[np.ndarray, " n"]] | None = None) -> None:
    """particles.star: the particles' table with poses, what is known about them, and ``more_columns``.

    orientation_posterior.npz, where there is a posterior or a match: the same and more, as arrays.
    """
    columns = pose_columns(particles.table, poses_of(results), particles.pixel_size_angstrom)
    save_table(particles.table.with_columns({**columns, **results.star_columns(), **(more_columns or {})}), run.particles)
    if results.errors is not None:
        results.save(run.orientation_posterior)
