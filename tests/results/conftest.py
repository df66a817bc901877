"""Results of a run of chance."""

import numpy as np

from cryoforum_core.results.pose_results import (
    ErrorEstimates,
    JunkLabels,
    Match,
    MatchEvidence,
    NetworkPoses,
    PoseResults,
)


def example(n: int = 6, seed: int = 0) -> PoseResults:
    rng = np.random.default_rng(seed)
    quaternion = rng.normal(size=(n, 4)).astype(np.float32)
    evidence = MatchEvidence(rng.random((n, 3)), rng.random((n, 3)), rng.random((n, 3)), rng.random((n, 2)), quaternion)
    return PoseResults(
        np.arange(10, 10 + n), quaternion, rng.normal(size=(n, 2)), rng.random((n, 4, 4)), rng.random((n, 4)),
        NetworkPoses(rng.random((n, 4)), quaternion[::-1].copy()),
        Match(rng.normal(size=n), rng.normal(size=n), rng.random(n) < 0.5, rng.normal(size=n), evidence),
        ErrorEstimates(*rng.random((5, n))),
        JunkLabels(np.array(["none", "off-centre"] * (n // 2)), rng.random(n), rng.random((n, 2)), quaternion))
