"""The page of evaluate."""

import numpy as np
import pytest

from cryoforum_core.report.evaluation_page import evaluation_page
from cryoforum_core.report.run_files import RunFiles

from .page_texts import words


def test_evaluation_mentions_the_tail_and_excludes_junk(pages):
    text, summary = pages["evaluate"]
    assert "far above the median" in summary["assessment"] and "Junk is excluded" in summary["assessment"]
    assert "Expected and true error" in text  # the run of predict has expected errors


@pytest.mark.parametrize("median, level", [(1.0, "good"), (6.0, "caution"), (40.0, "poor")])
def test_level_follows_the_median_error(runs, tmp_path, median, level):
    files = RunFiles(runs["evaluate"])
    files.summary = files.summary | {"median_error_deg": median, "mean_error_deg": median}
    assert evaluation_page(files).assessment.level == level


def test_coverage_of_the_bounds_and_a_mirrored_hand_are_mentioned(runs):
    files = RunFiles(runs["evaluate"])
    files.summary = files.summary | {"error_bound_held": 0.91, "shift_error_bound_held": 0.88, "is_mirrored": True}
    said = words(evaluation_page(files))
    assert "91 % of the orientations and 88 % of the shifts" in said and "opposite hand" in said


def test_the_cumulative_distribution_ends_at_1_and_leaves_junk_out(runs):
    pictures = {picture.title: picture for picture in evaluation_page(RunFiles(runs["evaluate"])).pictures}
    line = pictures["Cumulative distribution of the errors"].figure.axes[0].lines[0]
    assert line.get_ydata()[-1] == pytest.approx(1.0) and (np.diff(line.get_ydata()) > 0).all()


def test_groups_of_the_known_particles_are_a_table(runs):
    files = RunFiles(runs["evaluate"])
    assert not evaluation_page(files).tables
    group = {"n_compared": 1200, "median_error_deg": 1.5, "median_shift_error_angstrom": 1.0, "error_bound_held": 0.875}
    files.summary = files.summary | {"by_group": [{"group": "class 1", **group}, {"group": "class 2", **group}]}
    table, = evaluation_page(files).tables
    assert table.header == ("group", "particles", "median error", "empirical coverage")
    assert table.rows[1] == ("class 2", "1,200", "1.50°", "88 %")
