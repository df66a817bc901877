"""Results of the particles of a run: made from poses alone, given errors, and converted to and from the state of a stage."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ..errors import InputError
from ..geometry.poses import Poses
from ..junk.features import FEATURES
from ..model.orientation_head import PoseEstimate
from ..results.pose_results import NetworkPoses, PoseResults
from ..uncertainty.calibration import Calibration, with_errors
from .plan import AbInitioPlan


def of_poses(particle_id: Int[np.ndarray, " n"], poses: Poses) -> PoseResults:
    """N poses about whose errors nothing is known."""
    flat = np.broadcast_to(np.eye(4, dtype=np.float32), (len(poses), 4, 4)).copy()
    return PoseResults(particle_id, poses.quaternion.cpu().numpy(), poses.shift_angstrom.cpu().numpy(), flat)


def of_network(particle_id: Int[np.ndarray, " n"], estimate: PoseEstimate) -> PoseResults:
    """N poses that a network alone found."""
    return PoseResults(particle_id, estimate.quaternion.numpy(), estimate.shift_angstrom.numpy(), estimate.bingham.numpy())


def with_estimated_errors(results: PoseResults, network: PoseEstimate | None, plan: AbInitioPlan,
                          calibration: Calibration | None) -> PoseResults:
    """With expected errors and bounds; ``network``: what it finds, where it is not the results' own poses."""
    bingham, quaternion = (torch.from_numpy(results.bingham), results.quaternion) if network is None else (
        network.bingham, network.quaternion.cpu().numpy())
    by_network = NetworkPoses(torch.linalg.eigvalsh(bingham).cpu().numpy(), quaternion)
    return with_errors(replace(results, network=by_network), plan.group.cpu(), calibration and calibration.model,
                       plan.config.coverage)


def to_state(results: PoseResults) -> dict[str, Shaped[Tensor, "n ..."]]:
    """Matched results as plain tensors, as ``saved_state`` takes them."""
    return {name: torch.from_numpy(values) for name, values in results.arrays(with_evidence=True).items()}


def from_state(state: dict[str, Shaped[Tensor, "n ..."]], particle_id: Int[np.ndarray, " n"]) -> PoseResults:
    """What ``to_state`` made of the results of these particles. Raises InputError where an earlier version made it, which
    found junk by other features."""
    features = state.get("evidence_junk_features")
    if features is not None and features.shape[1] != len(FEATURES):
        raise InputError("A run must be continued by the version that matched its particles; this one was matched by an "
                         "earlier version, which found junk by other features. Run again in a new directory.")
    arrays = {name: values.cpu().numpy() for name, values in state.items()}
    return PoseResults.from_arrays(arrays | {"particle_id": particle_id})
