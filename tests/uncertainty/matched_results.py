"""Results of matching at known poses, as if matching had found them."""

import numpy as np
import torch

from cryoforum_core.geometry.bingham import isotropic_bingham
from cryoforum_core.results.pose_results import Match, MatchEvidence, PoseResults


def results_of(quaternion, shift_angstrom, deviation_rad=1e-4, shift_deviation_angstrom=1e-4):
    """As if matching had found these poses, with such errors."""
    n = len(quaternion)
    bingham = isotropic_bingham(quaternion.double(), torch.full((n,), 2 / deviation_rad ** 2, dtype=torch.float64))
    evidence = MatchEvidence(np.ones((n, 1)), np.zeros((n, 1)), np.full((n, 3), deviation_rad),
                             np.full((n, 2), shift_deviation_angstrom), quaternion.numpy(), contrast=np.ones(n, np.float32))
    return PoseResults(np.arange(n), quaternion.numpy(), shift_angstrom.numpy(), bingham.numpy(),
                       match=Match(np.zeros(n), evidence=evidence))
