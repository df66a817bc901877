"""The page of a benchmark, from results that are invented."""

import numpy as np
import pytest

from cryoforum_core.report.benchmark_page import benchmark_page, write_figures
from cryoforum_core.report.benchmark_results import Result, write_result
from cryoforum_core.report.run_files import RunFiles

from .example_runs import make_run
from .page_texts import titles_of, words

D = 16
CURVE = np.linspace(1, 0, D // 2 + 1)


def row(name: str, method: str, shells: float) -> dict:
    return {"set": name, "images": "0 dB", "method": method, "n_runs": 2, "n_converged": 1, "median_error_modulo_deg": 1.234,
            "mean_error_modulo_deg": 2.0, "test_median_error_modulo_deg": None, "resolution_05_angstrom": 9.0,
            "resolution_0143_angstrom": 8.0, "ceiling_0143_angstrom": 7.9, "shells_below_ceiling_0143": shells,
            "shells_below_ceiling_05": shells, "published_0143_angstrom": "-", "seconds": 90.0}


@pytest.fixture
def run(tmp_path):
    rows = [row("A", "hybrid", 0.2), row("B", "hybrid", 3.0), row("A", "known", 0.0)]
    run = make_run(tmp_path / "run", "benchmark", {}, {"rows": rows, "n_runs": 6, "scale": "small", "table": "cryoposenet",
                                                       "hardware": ["a processor"]})
    (run.path / "results").mkdir()
    rng = np.random.default_rng(0)
    for one in rows:
        figures = {"set": one["set"], "label": "0 dB", "snr_db": 0, "method": one["method"], "seed": 0, "box_size_px": D,
                   "pixel_size_angstrom": 4.0}
        write_result(run.path, Result(figures, {"fsc": CURVE, "ceiling_fsc": CURVE} | {
            name: rng.normal(size=(D, D)) for name in ("image", "projection", "found_slice", "true_slice")}))
    return run


def test_each_method_has_a_table_with_a_row_for_each_set(run):
    page = benchmark_page(RunFiles(run))
    assert [table.title for table in page.tables] == ["Method: hybrid", "Method: known poses"]
    first = page.tables[0].rows[0]
    assert first[:4] == ("A", "0 dB", "1 of 2", "1.23°") and first[5] == "-" and first[-1] == "1.5"
    assert page.facts == {"runs": "6", "sets": "2", "scale": "small"}


def test_sets_within_a_shell_of_the_map_from_true_poses_are_counted(run):
    page = benchmark_page(RunFiles(run))
    assert page.assessment.level == "caution"  # set B is three shells short
    assert "Hybrid: 1 of 2 sets are within one Fourier shell" in words(page)
    assert "Known poses: 1 of 1 sets" in words(page)


def test_figures_without_end_to_end_runs_are_those_of_maps_and_images(run):
    assert titles_of(benchmark_page(RunFiles(run))) == ["FSC against the true map", "Images, projections, maps"]
    write_figures(run.path)
    assert sorted(path.name for path in run.path.glob("*.png")) == ["figure3.png", "figure4.png"]


def test_the_course_of_trainings_is_the_mean_over_their_runs(run):
    for seed, factor in ((0, 1.0), (1, 3.0)):
        figures = {"set": "A", "label": "0 dB", "snr_db": 0, "method": "end-to-end", "seed": seed, "box_size_px": D,
                   "pixel_size_angstrom": 4.0}
        write_result(run.path, Result(figures, {"fsc": CURVE, "ceiling_fsc": CURVE} | {
            name: np.ones((D, D)) for name in ("image", "projection", "found_slice", "true_slice")}))
        training = make_run(run.path / f"runs/A_end-to-end_{seed}", "ab-initio", {}, {})
        training.metrics.write_text("step,training_mean_error_modulo_deg,reconstruction_loss\n" + "".join(
            f"{step},{factor * 10},{factor * 0.1}\n" for step in (1, 10, 100)))
    page = benchmark_page(RunFiles(run))
    assert titles_of(page)[0] == "Training with and without an encoder"
    drawn = np.concatenate([line.get_ydata() for axes in page.pictures[0].figure.axes for line in axes.lines])
    assert np.isclose(drawn, 20.0).any() and np.isclose(drawn, 0.2).any()  # means of 10 and 30, 0.1 and 0.3
