"""Figures show the data they are given, even where there is little or none."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cryoforum_core.report import plots


def bar_heights(figure) -> np.ndarray:
    return np.array([patch.get_height() for patch in figure.axes[0].patches])


@pytest.mark.parametrize("scale", ["linear", "log", "asinh"])
def test_histogram_counts_every_value_on_every_scale(scale):
    values = np.abs(np.random.default_rng(0).standard_cauchy(500)) + 0.01
    figure = plots.histogram({"kept": values[:300], "rejected": values[300:]}, "x", {"median": 1.0}, x_scale=scale)
    assert bar_heights(figure).sum() == 500
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {"kept", "rejected", "median"}


def test_histogram_leaves_out_values_the_scale_cannot_show():
    figure = plots.histogram({"x": np.array([np.nan, -1.0, 0.0, 2.0, 3.0])}, "x", x_scale="log")
    assert bar_heights(figure).sum() == 2


@pytest.mark.parametrize("values", [[], [4.0], [4.0] * 10, [np.nan]])
def test_histogram_of_few_values_is_drawn(values):
    figure = plots.histogram({"x": np.array(values)}, "x")
    assert bar_heights(figure).sum() == np.isfinite(values).sum()
    assert plots.to_svg(figure)


def test_svg_is_reproducible_and_png_has_its_size():
    def draw():
        return plots.curves(np.arange(5.0), {"a": np.arange(5.0), "b": np.full(5, np.nan)}, "x", "y")
    assert plots.to_svg(draw()) == plots.to_svg(draw())
    png = plots.to_png(draw(), dpi=50)
    width, height = (int.from_bytes(png[start:start + 4], "big") for start in (16, 20))
    assert (width, height) == tuple(int(50 * side) for side in plots.HALF_WIDTH)


def test_curve_skips_missing_values():
    figure = plots.curves(np.arange(4.0), {"held out": np.array([np.nan, 3.0, np.nan, 1.0])}, "step", "error")
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1.0, 3.0], [3.0, 1.0]]


def test_scatter_separates_highlighted_points():
    x = np.arange(1.0, 101.0)
    figure = plots.scatter(x, 2 * x, "x", "y", highlighted=x > 90, highlighted_label="junk", with_median=True,
                           with_diagonal=True)
    clouds = [cloud for cloud in figure.axes[0].collections if len(cloud.get_offsets())]
    assert [len(cloud.get_offsets()) for cloud in clouds] == [90, 10]
    assert tuple(clouds[1].get_facecolor()[0][:3]) == to_rgb(plots.VERMILION)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["junk", "median", "equal"]
    median = next(line for line in figure.axes[0].lines if line.get_label() == "median").get_xydata()
    assert median[:, 1] == pytest.approx(2 * median[:, 0])


def test_shift_map_shows_particle_positions_which_are_minus_the_origins():
    figure = plots.shift_map(np.array([[3.0, -4.0], [0.0, 1.0]]))
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[-3.0, 4.0], [0.0, -1.0]]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top  # rows run downwards


def test_mosaic_puts_each_image_above_its_projection():
    images, projections = np.zeros((3, 8, 8)), np.zeros((3, 8, 8))
    images[:, :2], projections[:, :, :2] = 1.0, 1.0
    figure = plots.image_pairs(images, projections, ["a", "b", "c"], ["best", "best", "worst"])
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    texts = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert set(texts) == {"a", "b", "c", "best", "worst"}
    row, column = round(texts["b"][1]), round(texts["b"][0]) - 4
    assert canvas[row:row + 8, column:column + 8] == pytest.approx(images[1], abs=1e-6)
    assert canvas[row + 9:row + 17, column:column + 8] == pytest.approx(projections[1], abs=1e-6)
    assert texts["c"][1] > texts["a"][1] and texts["c"][0] == texts["a"][0]


def test_grid_shows_a_blank_image_as_black_and_breaks_rows():
    images = np.stack([np.full((6, 6), 7.0), np.arange(36.0).reshape(6, 6), np.eye(6)])
    canvas = np.asarray(plots.image_grid(images, ["1", "2", "3"], columns=2).axes[0].images[0].get_array())
    assert canvas.shape == (2 * (1 + 6 + 1), 13)
    assert canvas[1:7, :6].max() == 0 and canvas[1:7, 7:].max() == 1
    assert canvas[9:15, 7:].min() == 1  # nothing there: paper


def test_slices_of_a_map_are_cut_through_the_centre():
    z, y, x = np.indices((16,) * 3)
    volume = np.exp(-((z - 8) ** 2 + (y - 4) ** 2 + (x - 12) ** 2) / 2.0)
    figure = plots.map_views(volume, 2.0)
    across_z, across_y, across_x = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3])
    assert across_z[4, 12] == 1 and across_y.max() < 1e-3 and across_x.max() < 1e-3
    along_z, along_y, along_x = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[3:])
    assert along_z[4, 12] == along_y[8, 12] == along_x[8, 4] == 1
    assert max(along_z[12, 4], along_y[12, 8], along_x[4, 8]) < 1e-3


def test_fsc_marks_the_resolution():
    frequency = np.linspace(0.01, 0.2, 20)
    figure = plots.fsc_curves(frequency, {"half maps": np.linspace(1, 0, 20)}, 6.5)
    assert any("6.5 Å" in text.get_text() for text in figure.axes[0].texts)
    vertical = [line for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]
    assert vertical[0].get_xdata()[0] == pytest.approx(1 / 6.5)


def test_bars_show_every_name_and_count():
    figure = plots.bars({"noise": 12, "blank": 3}, "rejected")
    assert [patch.get_width() for patch in figure.axes[0].patches] == [12, 3]
    assert [text.get_text() for text in figure.axes[0].texts] == ["12", "3"]


def test_maps_of_viewing_directions_share_one_scale():
    even, peaked = np.ones((6, 12)), np.full((6, 12), 0.5)
    peaked[3, 3] = 9.0
    figure = plots.view_maps({"before": even, "after": peaked})
    limits = {axes.collections[0].get_clim() for axes in figure.axes[:2]}
    assert len(limits) == 1


def test_low_pass_keeps_the_mean_and_removes_noise():
    images = np.random.default_rng(0).normal(3, 1, (2, 32, 32))
    smooth = plots.low_passed(images, 2.0)
    assert smooth.mean((1, 2)) == pytest.approx(images.mean((1, 2)))
    # a Gaussian of sigma s leaves 1 / (4 pi s^2) of the variance of white noise
    assert smooth.var((1, 2)) == pytest.approx(1 / (16 * np.pi), rel=0.4)


def test_drawing_touches_no_global_state_and_opens_no_window():
    code = ("import sys, numpy as np, matplotlib; names = ('font.size', 'axes.grid', 'svg.hashsalt');"
            "before = [matplotlib.rcParams[name] for name in names]; from cryoforum_core.report import plots; "
            "plots.to_svg(plots.curves(np.arange(3.), {'a': np.ones(3)}, 'x', 'y'));"
            "assert 'matplotlib.pyplot' not in sys.modules; "
            "assert before == [matplotlib.rcParams[name] for name in names]")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lines_keep_their_colours_where_a_panel_lacks_one():
    x = np.linspace(0, 1, 5)
    course = plots.Course(x, 1 - x, 0.1 * x)
    rows = {"loss": {"A": {"second": course}, "B": {"first": course, "second": course}}}
    first, second = plots.course_grid(rows, ["first", "second"], "minutes").axes
    assert [line.get_color() for line in first.lines] == [plots.VERMILION]
    assert [line.get_color() for line in second.lines] == [plots.BLUE, plots.VERMILION]
    assert first.get_ylim() == second.get_ylim() == (0, pytest.approx(1.05))


def test_fsc_curves_and_their_upper_limits_are_drawn_in_every_panel():
    frequency, fall = np.linspace(0, 0.2, 9), np.linspace(1, 0, 9)
    panels = {"hybrid": {"A": (0.9 * fall, fall), "B": (0.5 * fall, fall)}, "known": {"A": (fall, fall)}}
    figure = plots.fsc_grid(frequency, panels)
    curves = [[line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 9] for axes in figure.axes]
    assert [len(lines) for lines in curves] == [4, 2] and np.allclose(curves[0][1], 0.9 * fall)
    assert plots.to_png(figure).startswith(b"\x89PNG")


def test_values_in_order_are_all_drawn_and_marked_ones_named():
    values, marked = np.array([1.0, 2.0, np.nan, 5.0, 1.5]), np.array([False, False, False, True, False])
    panels = {"noise": plots.OrderedValues(values, marked), "contrast": plots.OrderedValues(values, values == 2.0)}
    figure = plots.in_order(panels, "micrograph", "unusual", {3: "m4.mrc"})
    plain, special = (collection.get_offsets().tolist() for collection in figure.axes[0].collections)
    assert plain == [[1, 1], [2, 2], [5, 1.5]] and special == [[4, 5]]
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["m4.mrc"], []]
    assert figure.axes[1].get_xlabel() == "micrograph" and plots.to_svg(figure)


def test_image_table_leaves_missing_cells_empty():
    image = np.random.default_rng(0).standard_normal((8, 8))
    figure = plots.picture_table({"A": [image, None], "B": [image, image]}, ["image", "projection"])
    assert [len(axes.images) for axes in figure.axes] == [1, 0, 1, 1]


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_chosen_fraction_is_marked_and_better_is_up(lower_is_better):
    kept, best, random = np.array([100.0, 90.0, 80.0]), np.array([5.0, 5.2, 5.1]), np.array([5.0, 4.8, 4.5])
    figure = plots.kept_against_random(kept, best, random, np.array([0.0, 0.1, 0.2]), 1, "figure", "best by score",
                                       lower_is_better)
    axes, = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["best by score", "random subset of this size",
                                                                           "kept: 90 %"]
    assert axes.yaxis_inverted() == lower_is_better
    assert any(line.get_xydata().tolist() == [[90.0, 5.2]] for line in axes.lines)
