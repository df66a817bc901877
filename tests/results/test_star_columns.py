"""The columns that a run adds to particles.star."""

import numpy as np

from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.results.star_columns import star_columns

from .conftest import example


def test_columns_are_those_that_are_known():
    assert list(star_columns(example())) == [
        "rlnCryoforumExpectedError", "rlnCryoforumErrorBound", "rlnCryoforumFigureOfMerit", "rlnCryoforumExpectedShiftError",
        "rlnCryoforumShiftErrorBound", "rlnCryoforumMatchScore", "rlnCryoforumReason", "rlnCryoforumParticleProbability"]
    assert star_columns(PoseResults(np.arange(2), np.zeros((2, 4)), np.zeros((2, 2)))) == {}
