"""Results of a run's particles: from poses alone, with errors, and as the state of a stage that a stopped run keeps."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..geometry.poses import Poses
from ..model.orientation_head import PoseEstimate
from ..results.pose_results import Match, MatchEvidence, NetworkPoses, PoseResults
from ..uncertainty.calibration import Calibration, with_errors
from .plan import AbInitioPlan

# names in a kept state -> fields of the evidence; the names are those of runs that were stopped by earlier versions
_EVIDENCE_KEYS = {"weight": "weight", "rival_angle_rad": "alternative_angle_rad", "local_deviation_rad": "local_deviation_rad",
                  "shift_deviation_angstrom": "shift_deviation_angstrom", "alternative_quaternion": "strongest_alternative",
                  "junk_statistics": "junk_features", "elsewhere_px": "elsewhere_px"}


def of_poses(particle_id: np.ndarray, poses: Poses) -> PoseResults:
    """N poses about whose errors nothing is known."""
    flat = np.broadcast_to(np.eye(4, dtype=np.float32), (len(poses), 4, 4)).copy()
    return PoseResults(particle_id, poses.quaternion.cpu().numpy(), poses.shift_angstrom.cpu().numpy(), flat)


def of_network(particle_id: np.ndarray, estimate: PoseEstimate) -> PoseResults:
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


def to_state(results: PoseResults) -> dict[str, Tensor]:
    """Matched results as plain tensors, as ``saved_state`` takes them."""
    arrays = {"quaternion": results.quaternion, "shift_angstrom": results.shift_angstrom, "bingham": results.bingham,
              "fit": results.match.fit, "residual": results.match.residual, "searched": results.match.searched}
    arrays |= {key: getattr(results.evidence, name) for key, name in _EVIDENCE_KEYS.items()}
    return {key: torch.from_numpy(values) for key, values in arrays.items()}


def from_state(state: dict[str, Tensor], particle_id: np.ndarray) -> PoseResults:
    """What ``to_state`` made of the results of these particles (n,)."""
    arrays = {key: values.cpu().numpy() for key, values in state.items()}
    evidence = MatchEvidence(**{name: arrays[key] for key, name in _EVIDENCE_KEYS.items()})
    match = Match(arrays["fit"], arrays["residual"], arrays["searched"], evidence=evidence)
    return PoseResults(particle_id, arrays["quaternion"], arrays["shift_angstrom"], arrays["bingham"], match=match)
