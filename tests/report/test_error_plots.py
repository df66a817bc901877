"""Plots of errors against known poses."""

import numpy as np
import pytest

from cryoforum_core.report.error_plots import error_histogram, expected_against_true, shift_error_histogram

ERROR = np.array([0.0, 1.0, 2.0, 3.0, 100.0])
JUNK = np.array([False, False, False, False, True])


def texts(picture) -> str:
    """All words of a figure."""
    parts = [part for axes in picture.figure.axes for part in axes.findobj(lambda part: hasattr(part, "get_text"))]
    return " ".join(part.get_text() for part in parts)


def test_junk_is_a_group_of_its_own_and_not_in_median_and_mean():
    with_junk, alone = texts(error_histogram(ERROR, JUNK)), texts(error_histogram(ERROR))
    assert "junk" in with_junk and "median 1.50°" in with_junk and "mean 1.50°" in with_junk
    assert "junk" not in alone and "median 2.00°" in alone and "mean 21.2°" in alone


def test_shift_errors_leave_junk_out():
    assert "median 1.5 Å" in texts(shift_error_histogram(ERROR, JUNK))
    assert "median 2 Å" in texts(shift_error_histogram(ERROR))


def test_errors_of_zero_are_drawn_on_the_logarithmic_scale():
    axes = error_histogram(ERROR).figure.axes[0]
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] <= 0.01
    scatter = expected_against_true(np.full(5, 2.0), ERROR, JUNK).figure.axes[0]
    drawn = np.concatenate([points.get_offsets() for points in scatter.collections])
    assert len(drawn) == len(ERROR) and drawn[:, 1].min() == pytest.approx(0.01)
