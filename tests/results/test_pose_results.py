"""Results of a run in memory and on disk: rows, parts, columns, and files of other programs."""

from dataclasses import replace

import numpy as np
import pytest

from cryoforum_core.results.pose_results import (
    PoseResults,
)
from cryoforum_core.results.star_columns import star_columns

from .conftest import example


def assert_same(first, second):
    assert type(first) is type(second)
    for name in first.__dataclass_fields__:
        a, b = getattr(first, name), getattr(second, name)
        if a is None or b is None:
            assert a is b, name
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            assert_same(a, b)


@pytest.mark.parametrize("with_evidence", [False, True])
def test_a_file_gives_back_what_was_saved(tmp_path, with_evidence):
    results = example()
    results.save(tmp_path / "results.npz", with_evidence)
    expected = results if with_evidence else replace(results, match=replace(results.match, evidence=None))
    assert_same(PoseResults.load(tmp_path / "results.npz"), expected)


def test_results_of_a_network_alone_have_no_match(tmp_path):
    results = replace(example(), match=None, junk=None)
    results.save(tmp_path / "results.npz")
    with np.load(tmp_path / "results.npz") as arrays:
        assert np.isnan(arrays["match_score"]).all() and not arrays["searched"].any()
    assert_same(PoseResults.load(tmp_path / "results.npz"), results)
    assert "rlnCryoforumMatchScore" not in star_columns(results) and "rlnCryoforumReason" not in star_columns(results)


def test_rows_are_selected_in_every_group():
    results, rows = example(), np.array([4, 1])
    some = results[rows]
    assert some.particle_id.tolist() == [14, 11] and len(some) == 2
    np.testing.assert_array_equal(some.junk.reason, results.junk.reason[rows])
    np.testing.assert_array_equal(some.evidence.weight, results.evidence.weight[rows])
    assert_same(results[results.match.searched], results[np.flatnonzero(results.match.searched)])


def test_parts_are_joined_in_their_order():
    results = example()
    assert_same(PoseResults.concatenate([results[:2], results[2:]]), results)
    without_labels = PoseResults.concatenate([results[:2], replace(results[2:], junk=None)])
    assert without_labels.junk is None and len(without_labels) == 6


def test_rows_are_replaced_in_a_copy():
    results, other, rows = example(), example(2, seed=1), np.array([3, 0])
    changed = results.put(rows, replace(other, junk=None))
    assert_same(changed[rows], replace(other, junk=results.junk[rows]))
    untouched = np.array([1, 2, 4, 5])
    assert_same(changed[untouched], results[untouched])
    assert_same(results, example())


def test_a_table_of_another_program_may_lack_poses_and_groups(tmp_path):
    np.savez(tmp_path / "few.npz", particle_id=np.array([7, 9]), expected_error_deg=np.array([1.0, 2.0]),
             dispersion_max=np.array([-3.0, -4.0]))
    results = PoseResults.load(tmp_path / "few.npz")
    assert np.isnan(results.quaternion).all() and results.match is None and results.junk is None and results.network is None
    assert results.errors.expected_error_deg.tolist() == [1, 2] and results.errors.error_bound_deg is None
    assert results.dispersions.dispersion_max.tolist() == [-3, -4]


def test_a_file_that_would_run_code_is_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", particle_id=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        PoseResults.load(tmp_path / "objects.npz")


def test_what_a_stopped_run_of_an_earlier_version_left_is_read():
    """Its evidence had names of its own, and one of them is that of a junk label now."""
    results = replace(example(), junk=None)
    earlier = {"weight": "weight", "rival_angle_rad": "alternative_angle_rad", "local_deviation_rad": "local_deviation_rad",
               "shift_deviation_angstrom": "shift_deviation_angstrom", "alternative_quaternion": "strongest_alternative"}
    arrays = results.arrays() | {name: getattr(results.evidence, field) for name, field in earlier.items()}
    assert_same(PoseResults.from_arrays(arrays), results)
