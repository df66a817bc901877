"""The columns that a run adds to particles.star."""

import numpy as np

from cryoforum_core.results.pose_results import PoseResults, StateLabels
from cryoforum_core.results.star_columns import star_columns

from .conftest import example


def test_columns_are_those_that_are_known():
    assert list(star_columns(example())) == [
        "rlnCryoforumExpectedError", "rlnCryoforumErrorBound", "rlnCryoforumFigureOfMerit", "rlnCryoforumExpectedShiftError",
        "rlnCryoforumShiftErrorBound", "rlnCryoforumMatchScore", "rlnCryoforumReason", "rlnCryoforumParticleProbability"]
    assert star_columns(PoseResults(np.arange(2), np.zeros((2, 4)), np.zeros((2, 2)))) == {}


def test_states_have_columns_where_there_are_two():
    found = PoseResults(np.arange(2), np.zeros((2, 4)), np.zeros((2, 2)), states=StateLabels(np.array([1, 2]),
                                                                                           np.array([0.1, 0.9])))
    columns = star_columns(found)
    assert {name: values.tolist() for name, values in columns.items()} == {
        "rlnCryoforumState": [1, 2], "rlnCryoforumMinorStateProbability": [0.1, 0.9]}
