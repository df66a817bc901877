"""Results of a benchmark on disk."""

import numpy as np

from cryoforum_core.report.benchmark_results import METHOD_NAMES, Result, read_results, result_path, write_result


def result(name: str, method: str, seed: int) -> Result:
    return Result({"set": name, "method": method, "seed": seed, "median_error_deg": 1.5, "test_median_error_deg": None},
                  {"fsc": np.linspace(1, 0, 5), "image": np.arange(4.0).reshape(2, 2)})


def test_results_are_read_back_by_set_method_and_seed(tmp_path):
    """Methods in the order of the table, not of the alphabet."""
    (tmp_path / "results").mkdir()
    keys = [("B", "hybrid", 0), ("A", "known", 1), ("A", "known", 0), ("A", "end-to-end", 0), ("A", "hybrid", 0)]
    for key in keys:
        write_result(tmp_path, result(*key))
    found = read_results(tmp_path)
    order = list(METHOD_NAMES)
    assert [(one.set, one.method, one.seed) for one in found] == sorted(keys, key=lambda k: (k[0], order.index(k[1]), k[2]))
    assert found[0].figures == result("A", "hybrid", 0).figures
    np.testing.assert_array_equal(found[0].arrays["image"], [[0.0, 1.0], [2.0, 3.0]])


def test_a_run_is_finished_where_its_figures_are(tmp_path):
    (tmp_path / "results").mkdir()
    assert not result_path(tmp_path, "A", "hybrid", 0).is_file() and read_results(tmp_path) == []
    write_result(tmp_path, result("A", "hybrid", 0))
    assert result_path(tmp_path, "A", "hybrid", 0).is_file()
