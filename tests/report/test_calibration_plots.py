"""Nominal against empirical coverage, as tables and figures."""

import numpy as np
import pytest
from scipy.stats import binom

from cryoforum_core.geometry.even_directions import even_directions
from cryoforum_core.report.calibration_plots import error_calibration
from cryoforum_core.report.prediction_page import prediction_page
from cryoforum_core.report.run_files import RunFiles

from .example_runs import predict_run


def coverage_table(run):
    return next(table for table in prediction_page(RunFiles(run)).tables if table.title == "Coverage of the error bounds")


@pytest.mark.parametrize("n_outside, said", [(0, "90 % (within chance"), (5, "82 % (within chance"),
                                             (8, "77 % (below chance")])
def test_lowest_coverage_of_groups_is_compared_with_chance(tmp_path, n_outside, said):
    """12 groups of 60 particles. The lowest is the 5th percentile of one group at 1 - 0.95^(1/12)."""
    run, per_group = predict_run(tmp_path / "run")[0], 60
    error = np.tile(np.where(np.arange(per_group) % 10 == 0, 9.0, 1.0), (12, 1))  # 90 % in every group
    error[5, 1:1 + n_outside] = 9.0
    np.savez(run.calibration, expected_error_deg=np.full(720, 2.0), error_bound_deg=np.full(720, 4.0),
             error_deg=error.ravel(), view_direction=np.repeat(even_directions(12), per_group, axis=0),
             defocus_angstrom=np.linspace(8000, 20000, 720), coverage=0.9, source="720 simulated images of the map")
    run.calibration_table.write_text("nominal_coverage,empirical_coverage,n_particles\n0.9,0.9,720\n")
    least = binom.ppf(1 - 0.95 ** (1 / 12), per_group, 0.9) / per_group
    assert coverage_table(run).rows[-1] == ("90 % bound", "lowest of 12 groups of viewing directions",
                                              f"{said}: {100 * least:.0f} % or more)")


@pytest.mark.parametrize("header", ["nominal_coverage,empirical_coverage,n_particles",
                                    "promised_fraction,held_fraction,n_particles"])
def test_coverage_table_reads_the_headers_of_this_and_of_earlier_versions(tmp_path, header):
    run, rng = predict_run(tmp_path / "run")[0], np.random.default_rng(0)
    np.savez(run.calibration, expected_error_deg=np.full(200, 2.0), error_bound_deg=np.full(200, 4.0),
             error_deg=rng.uniform(0, 5, 200), view_direction=np.tile([0.0, 0, 1], (200, 1)),
             defocus_angstrom=rng.uniform(8000, 20000, 200), coverage=0.8, source="200 simulated images of the map")
    run.calibration_table.write_text(f"{header}\n0.5,0.47,200\n0.8,0.81,200\n")
    table = coverage_table(run)
    assert table.rows[:2] == (("50 % bound", "all", "47 %"), ("80 % bound", "all", "81 %"))
    assert [row[1] for row in table.rows[2:]] == [f"{name} defocus quartile" for name in (
        "lowest", "second", "third", "highest")]


def test_runs_without_calibrated_errors_have_neither_table_nor_figure(runs):
    assert error_calibration(RunFiles(runs["predict"])) == ([], [])


def test_bounds_of_shifts_have_a_row_where_their_errors_are_known(tmp_path):
    run = predict_run(tmp_path / "run")[0]
    np.savez(run.calibration, expected_error_deg=np.full(300, 2.0), error_bound_deg=np.full(300, 4.0),
             error_deg=np.ones(300), view_direction=np.tile([0.0, 0, 1], (300, 1)),
             defocus_angstrom=np.linspace(8000, 20000, 300), coverage=0.8, source="300 images",
             shift_error_angstrom=np.linspace(0, 2, 300), shift_error_bound_angstrom=np.full(300, 1.0))
    (table,), (picture,) = error_calibration(RunFiles(run))
    assert table.rows[-1] == ("80 % bound on the shift", "all", "50 %")
    assert "300 images" in table.caption and "Calibration" in picture.title
