"""Nominal against empirical coverage, as tables and figures."""

import numpy as np
import pytest

from cryoforum_core.report.calibration_plots import error_calibration
from cryoforum_core.report.prediction_page import prediction_page
from cryoforum_core.report.run_files import RunFiles

from .example_runs import predict_run


@pytest.mark.parametrize("header", ["nominal_coverage,empirical_coverage,n_particles",
                                    "promised_fraction,held_fraction,n_particles"])
def test_coverage_table_reads_the_headers_of_this_and_of_earlier_versions(tmp_path, header):
    run, rng = predict_run(tmp_path / "run")[0], np.random.default_rng(0)
    np.savez(run.calibration, expected_error_deg=np.full(200, 2.0), error_bound_deg=np.full(200, 4.0),
             error_deg=rng.uniform(0, 5, 200), view_direction=np.tile([0.0, 0, 1], (200, 1)),
             defocus_angstrom=rng.uniform(8000, 20000, 200), coverage=0.8, source="200 simulated images of the map")
    run.calibration_table.write_text(f"{header}\n0.5,0.47,200\n0.8,0.81,200\n")
    table = next(table for table in prediction_page(RunFiles(run)).tables if table.title == "Coverage of the error bounds")
    assert table.rows[:2] == (("50 % bound", "all", "47 %"), ("80 % bound", "all", "81 %"))
    assert [row[1] for row in table.rows[2:]] == [f"{name} defocus quartile" for name in (
        "lowest", "second", "third", "highest")]


def test_runs_without_calibrated_errors_have_neither_table_nor_figure(runs):
    assert error_calibration(RunFiles(runs["predict"])) == ([], [])


def test_the_worst_group_of_viewing_directions_is_named(tmp_path):
    """Particles seen from one side have errors beyond their bounds, all others within."""
    run = predict_run(tmp_path / "run")[0]
    direction = np.repeat(np.eye(3), 100, axis=0)
    error = np.where(direction[:, 0] == 1, 9.0, 1.0)
    np.savez(run.calibration, expected_error_deg=np.full(300, 2.0), error_bound_deg=np.full(300, 4.0), error_deg=error,
             view_direction=direction, defocus_angstrom=np.linspace(8000, 20000, 300), coverage=0.8, source="300 images",
             shift_error_angstrom=np.linspace(0, 2, 300), shift_error_bound_angstrom=np.full(300, 1.0))
    (table,), (picture,) = error_calibration(RunFiles(run))
    rows = {row[1]: row[2] for row in table.rows}
    worst = next(value for name, value in rows.items() if name.startswith("worst of"))
    assert worst == "0 %" and table.rows[-1] == ("80 % bound on the shift", "all", "50 %")
    assert "300 images" in table.caption and "Calibration" in picture.title
