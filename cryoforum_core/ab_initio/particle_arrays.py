"""The arrays of a run's particles: the one place that speaks to ``inference.predict`` in its names of arrays."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..geometry.poses import Poses
from ..inference.predict import PredictionSetup, finalise, matched_arrays, write_predictions
from ..junk.classifier import simulated_like, verdict_arrays
from ..junk.simulation import JunkSimulation
from ..matching.matcher import Matches
from ..model.orientation_head import PoseEstimate
from ..particles.preparation import ImagePreparation
from ..run_directory import RunDirectory
from ..uncertainty.calibration import Calibration
from .plan import AbInitioPlan

Arrays = dict[str, np.ndarray]
"""(n, ...) each, by name."""


def of_matches(matches: Matches, images: ImagePreparation, plan: AbInitioPlan) -> dict[str, Tensor]:
    """Of n matched images, lengths in Angstrom."""
    return matched_arrays(matches, PredictionSetup(None, images, None, plan.group, plan.symmetry))


def of_poses(poses: Poses) -> Arrays:
    """Of N poses about whose errors nothing is known."""
    n = len(poses)
    nothing = np.full(n, np.nan, dtype=np.float32)
    flat = np.broadcast_to(np.eye(4, dtype=np.float32), (n, 4, 4)).copy()
    return {"quaternion": poses.quaternion.cpu().numpy(), "bingham": flat, "fit": nothing, "residual": nothing,
            "searched": np.zeros(n, dtype=bool), "shift_angstrom": poses.shift_angstrom.cpu().numpy()}


def of_network(estimate: PoseEstimate) -> Arrays:
    """Of N poses that a network alone found."""
    arrays = of_poses(Poses(estimate.quaternion, estimate.shift_angstrom))
    return arrays | {"bingham": estimate.bingham.numpy()}


def joined(parts: Sequence[Arrays]) -> Arrays:
    """Arrays of all parts, one after the other; those that every part has."""
    return {name: np.concatenate([part[name] for part in parts])
            for name in parts[0] if all(name in part for part in parts)}


def with_junk_labels(arrays: Arrays, rows: np.ndarray, junk: JunkSimulation) -> Arrays:
    """Of matched particles ``rows`` (n,)."""
    return arrays | verdict_arrays(arrays, rows, junk, simulated_like(arrays, junk))


def finalised(arrays: Arrays, network: PoseEstimate | None, plan: AbInitioPlan, calibration: Calibration | None) -> Arrays:
    """With expected errors and bounds; ``network``: what it finds, where it is not the arrays' own poses."""
    found = network or PoseEstimate(*(torch.from_numpy(arrays[name])
                                      for name in ("quaternion", "bingham", "shift_angstrom")))
    by_network = {"network_quaternion": found.quaternion.cpu().numpy(),
                  "network_eigenvalues": torch.linalg.eigvalsh(found.bingham).cpu().numpy()}
    return finalise(arrays | by_network, plan.group.cpu(), calibration and calibration.model, plan.config.coverage)


def write(run: RunDirectory, plan: AbInitioPlan, arrays: Arrays, halves: np.ndarray) -> None:
    """particles.star, with the half sets (N,) of 1 and 2, and orientation_posterior.npz."""
    write_predictions(run, plan.particles, arrays, {"rlnRandomSubset": halves.astype(int)})
