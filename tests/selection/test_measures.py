"""The measures that the results of a run hold, and the scales on which they are compared."""

import numpy as np
import pytest

from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.selection.measures import MEASURES, measures_of, scaled, unscaled


def test_measures_take_the_networks_own_dispersions_and_leave_out_what_is_missing():
    own, refined = np.array([[0.0, 2.0, 3.0, 5.0]]), np.array([[0.0, 100.0, 200.0, 300.0]])
    arrays = {"eigenvalues": refined, "network_eigenvalues": own, "expected_error_deg": np.array([4.0]),
              "match_score": np.array([np.nan])}
    measures = measures_of(PoseResults.from_arrays(arrays))
    assert measures["dispersion-max"] == [-2.0]
    assert measures["dispersion-trace"] == [-10.0]
    spacing = np.array([2.0, 1.0, 2.0])
    assert measures["dispersion-wigner"] == pytest.approx([np.sum(np.log(spacing) - np.pi * spacing**2 / 4)])
    assert "match-score" not in measures and "error-bound" not in measures
    assert measures_of(PoseResults.from_arrays({"eigenvalues": refined}))["dispersion-max"] == [-100.0]


@pytest.mark.parametrize("name", MEASURES)
def test_scales_are_increasing_and_can_be_undone(name):
    measure = MEASURES[name]
    values = -np.geomspace(100, 0.01, 40) if name in ("dispersion-max", "dispersion-trace") else np.geomspace(0.01, 100, 40)
    scale = scaled(measure, values)
    assert (np.diff(scale) > 0).all()
    assert unscaled(measure, scale) == pytest.approx(values, rel=1e-6)


def test_errors_that_differ_by_a_factor_are_as_far_apart_at_any_size():
    scale = scaled(MEASURES["expected-error"], np.array([1.0, 2.0, 10.0, 20.0]))
    assert scale[1] - scale[0] == pytest.approx(scale[3] - scale[2])


def test_dispersions_of_a_table_that_was_filtered_are_those_that_it_kept():
    kept = measures_of(PoseResults.from_arrays({"dispersion_max": np.array([-5.0, -7.0]), "quaternion": np.zeros((2, 4))}))
    assert kept["dispersion-max"].tolist() == [-5.0, -7.0] and "dispersion-trace" not in kept
