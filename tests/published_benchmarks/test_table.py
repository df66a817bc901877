"""The table as Markdown and CSV: one row for each set and method, means over the runs."""

import csv

import pytest

from cryoforum_core.config import BenchmarkConfig
from cryoforum_core.published_benchmarks.table import table_cells, write_table
from cryoforum_core.report.benchmark_results import Result

FIGURES = {"median_error_deg": 4.0, "mean_error_deg": 12.0, "median_error_modulo_deg": 2.0, "mean_error_modulo_deg": 3.0,
           "resolution_05_angstrom": 9.0, "resolution_0143_angstrom": 8.0, "ceiling_05_angstrom": 8.5,
           "ceiling_0143_angstrom": 7.5, "shells_below_ceiling_05": 0.5, "shells_below_ceiling_0143": 0.25,
           "half_map_resolution_angstrom": 8.2, "seconds": 90.0}


def result(name: str, method: str, seed: int, **changes) -> Result:
    return Result({"set": name, "label": "0 dB", "method": method, "seed": seed, "converged": True, "n_train": 2700,
                   "box_size_px": 64, "pixel_size_angstrom": 1.6, "hardware": f"machine {seed}"} | FIGURES | changes, {})


@pytest.fixture
def rows(tmp_path):
    results = [result("A", "hybrid", 0), result("A", "hybrid", 1, median_error_deg=6.0, converged=False),
               result("A", "known", 0, test_median_error_modulo_deg=1.0, test_mean_error_modulo_deg=1.5)]
    return write_table(results, tmp_path, BenchmarkConfig(table="cryoposenet", out=tmp_path))


def test_figures_are_means_over_the_runs_with_their_standard_deviation(rows):
    two, one = rows
    assert two["n_runs"] == 2 and two["n_converged"] == 1 and two["hardware"] == "machine 0; machine 1"
    assert two["median_error_deg"] == 5.0 and two["median_error_deg_sd"] == pytest.approx(2 ** 0.5)
    assert one["median_error_deg_sd"] is None and two["test_median_error_modulo_deg"] is None


def test_cells_show_means_spreads_and_a_dash_for_what_is_missing(rows):
    two, one = map(table_cells, rows)
    assert two[:5] == ("A", "0 dB", "hybrid", "1 of 2", "5.00 +- 1.41, 12.0 +- 0.00") and two[6] == "-"
    assert one[3:7] == ("1 of 1", "4.00, 12.0", "2.00, 3.00", "1.00, 1.50")
    assert one[-2:] == ("1.6", "1.5")  # the published resolution, and minutes


def test_both_files_hold_the_same_rows(rows, tmp_path):
    with open(tmp_path / "table.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["method"] for row in read] == ["hybrid", "known"] and float(read[0]["median_error_deg"]) == 5.0
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("# cryoposenet, small scale") and text.count("\n| A |") == 2
    assert "2,700 training images of 64 px, 1.6 A/px" in text
