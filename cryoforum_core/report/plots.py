"""Figures of the reports. The only module that imports matplotlib.

Every function returns a Figure that belongs to no window and no global state; ``to_svg`` and ``to_png`` turn it into
bytes. Colours are of Okabe and Ito's palette, which colour-blind readers can distinguish; maps use cividis for the
same reason.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

# of Okabe and Ito
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
PURPLE = "#CC79A7"
# for what is compared with, and for junk
GREY = "#6B7280"
# two neighbours differ in brightness, too
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, GREY)

Scale = Literal["linear", "log", "asinh"]
"""asinh: linear around zero, logarithmic far from it."""

# width and height in inches of a figure in one of the two columns of a page
HALF_WIDTH = (5.6, 3.3)
# width in inches over both columns
FULL_WIDTH = 11.4
# of images and points within an SVG: sharp on a screen at the page's width
_RASTER_DPI = 120
_STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 9.5,
    "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9CA3AF", "axes.labelcolor": "#374151",
    "xtick.color": "#6B7280", "ytick.color": "#6B7280", "text.color": "#1F2937", "axes.titlecolor": "#1F2937",
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#E5E7EB", "grid.linewidth": 0.7, "axes.axisbelow": True,
    "lines.linewidth": 1.6, "figure.constrained_layout.use": True, "figure.dpi": 100,
    "axes.prop_cycle": matplotlib.cycler(color=CYCLE), "svg.hashsalt": "cryoforum",
}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws a figure in the style of the reports, whatever the caller's style is."""
    @wraps(draw)
    def drawn(*arguments, **keywords) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*arguments, **keywords)
    return drawn


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", dpi=_RASTER_DPI, metadata={"Date": None})
    return buffer.getvalue()


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


@_styled
def curves(x: Float[np.ndarray, " n"], series: Mapping[str, Float[np.ndarray, " n"]], x_label: str, y_label: str,
           x_scale: Scale = "linear", y_scale: Scale = "linear") -> Figure:
    """Lines over ``x``; values that are not finite are left out. Few points are marked by dots."""
    figure = Figure(HALF_WIDTH)
    axes = figure.subplots()
    for name, values in series.items():
        there = np.isfinite(values)
        axes.plot(x[there], values[there], label=name, marker="o" if there.sum() <= 40 else None, markersize=3)
    axes.set(xlabel=x_label, ylabel=y_label)
    _set_scales(axes, x_scale, y_scale)
    if y_scale == "linear":
        _cut_spikes(axes, np.concatenate([values[np.isfinite(values)] for values in series.values()]))
    if len(series) > 1:
        axes.legend()
    return figure


def _cut_spikes(axes: Axes, values: np.ndarray) -> None:
    """Limits the y axis where a few outliers would flatten the rest of the curve."""
    if len(values) < 20:
        return
    low, high = np.percentile(values, [0, 98])
    if values.max() > low + 3 * (high - low) > low:
        axes.set_ylim(low - 0.05 * (high - low), low + 1.3 * (high - low))


@_styled
def histogram(groups: Mapping[str, Float[np.ndarray, " _"]], x_label: str,
              marks: Mapping[str, float] | None = None, x_scale: Scale = "linear", y_label: str = "particles") -> Figure:
    """Stacked histograms of one or more groups of values, with named vertical lines at ``marks``."""
    groups = {name: values[_is_shown(values, x_scale)] for name, values in groups.items()}
    figure = Figure(HALF_WIDTH)
    axes = figure.subplots()
    everything = np.concatenate(list(groups.values()))
    if len(everything):
        colours = [BLUE] if len(groups) == 1 else [GREY if name == "junk" else colour
                                                    for name, colour in zip(groups, CYCLE)]
        axes.hist(list(groups.values()), _bins(everything, x_scale), stacked=True, color=colours, label=list(groups),
                  edgecolor="white", linewidth=0.3)
    _set_scales(axes, x_scale, "linear")
    for style, (name, value) in zip(("-", "--", ":"), (marks or {}).items()):
        axes.axvline(value, color="#111827", linestyle=style, linewidth=1.2, label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    if len(groups) > 1 or marks:
        axes.legend()
    return figure


@_styled
def kept_against_random(kept: Float[np.ndarray, " n"], best: Float[np.ndarray, " n"], random: Float[np.ndarray, " n"],
                        deviation: Float[np.ndarray, " n"], chosen: int, y_label: str, best_label: str,
                        lower_is_better: bool = False) -> Figure:
    """A quality measure of the best ``kept`` percent and of random subsets of the same size, with bands of one and two
    standard deviations of the latter; better is up. ``chosen``: the point that is marked."""
    figure = Figure(HALF_WIDTH)
    axes = figure.subplots()
    axes.plot(kept, best, color=BLUE, marker="o", markersize=3, label=best_label, zorder=3)
    axes.plot(kept, random, color=GREY, label="random subset of this size")
    for width in (1, 2):
        reach = width * deviation
        axes.fill_between(kept, random - reach, random + reach, color=GREY, alpha=0.2, linewidth=0)
    axes.axvline(kept[chosen], color="#111827", linewidth=1, label=f"kept: {kept[chosen]:.0f} %")
    axes.plot(kept[chosen], best[chosen], color=VERMILION, marker="o", markersize=6, linestyle="none", zorder=4)
    axes.set(xlabel="particles kept (%)", ylabel=y_label)
    if lower_is_better:
        axes.invert_yaxis()
    axes.legend(loc="lower right")
    return figure


@_styled
def scatter(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], x_label: str, y_label: str,
            x_scale: Scale = "linear", y_scale: Scale = "linear", highlighted: Bool[np.ndarray, " n"] | None = None,
            highlighted_label: str = "", with_median: bool = False, with_diagonal: bool = False) -> Figure:
    """Points of two quantities, with the running median of y; ``highlighted`` ones are drawn in another colour."""
    figure = Figure(HALF_WIDTH)
    axes = figure.subplots()
    there = _is_shown(x, x_scale) & _is_shown(y, y_scale)
    special = np.zeros(len(x), dtype=bool) if highlighted is None else highlighted
    _points(axes, x, y, there, special, highlighted_label)
    plain = there & ~special
    if with_median and plain.sum() >= 50:
        axes.plot(*_running_median(x[plain], y[plain]), color="#111827", linewidth=1.4, label="median")
    _set_scales(axes, x_scale, y_scale)
    if with_diagonal and there.any():
        ends = [min(x[there].min(), y[there].min()), max(x[there].max(), y[there].max())]
        axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="equal")
    axes.set(xlabel=x_label, ylabel=y_label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


@_styled
def reliability(expected: Float[np.ndarray, " n"], observed: Float[np.ndarray, " n"], x_label: str,
                y_label: str) -> Figure:
    """Reliability diagram: mean observed over mean expected values, for each tenth of the particles sorted by the
    latter, with standard errors of the means."""
    figure = Figure(HALF_WIDTH)
    axes = figure.subplots()
    parts = np.array_split(np.argsort(expected, kind="stable"), int(np.clip(len(expected) // 20, 1, 10)))
    x, y = (np.array([values[part].mean() for part in parts]) for values in (expected, observed))
    error = np.array([observed[part].std() / max(len(part), 1) ** 0.5 for part in parts])
    ends = [0.9 * min(x.min(), y.min()), 1.1 * max(x.max(), y.max())]
    axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="equal")
    # on a logarithmic axis, an error bar cannot reach zero
    axes.errorbar(x, y, yerr=[np.minimum(error, 0.9 * y), error], color=BLUE, marker="o", markersize=4, linewidth=1.2,
                  capsize=2, label="tenths of the particles")
    axes.set(xlabel=x_label, ylabel=y_label)
    _set_scales(axes, "log", "log")
    axes.legend()
    return figure


def _points(axes: Axes, x: np.ndarray, y: np.ndarray, there: np.ndarray, special: np.ndarray, label: str) -> None:
    """Dots whose size depends on their number; the ``special`` ones (n,) in another colour and in the legend."""
    size = float(np.clip(4000 / max(there.sum(), 1), 1.0, 12))
    for rows, colour, name in ((there & ~special, BLUE, None), (there & special, VERMILION, label)):
        if rows.any():
            axes.scatter(x[rows], y[rows], s=size, color=colour, alpha=0.45, linewidths=0, rasterized=True)
            if name:
                axes.scatter([], [], s=20, color=colour, label=name)


class OrderedValues(NamedTuple):
    """Values of things in an order, and which of them are marked."""

    values: Float[np.ndarray, " n"]
    marked: Bool[np.ndarray, " n"]


@_styled
def in_order(panels: Mapping[str, OrderedValues], x_label: str, marked_label: str, names: Mapping[int, str]) -> Figure:
    """Panels of values over their place in an order, one above the other, y label -> values; marked ones in another colour,
    those of ``names`` with their name."""
    figure = Figure((FULL_WIDTH, 0.8 + 1.35 * len(panels)))
    stack = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (y_label, (values, marked)) in zip(stack, panels.items(), strict=True):
        there, place = np.isfinite(values), np.arange(1, len(values) + 1)
        size = float(np.clip(6000 / max(len(values), 1), 3.0, 18))
        axes.scatter(place[there & ~marked], values[there & ~marked], s=size, color=BLUE, linewidths=0, rasterized=True)
        axes.scatter(place[there & marked], values[there & marked], s=24, color=VERMILION, linewidths=0, label=marked_label)
        axes.axhline(np.median(values[there]), color=GREY, linestyle="--", linewidth=1, label="median")
        axes.set_ylabel(y_label)
        axes.margins(x=0.01, y=0.12)
        for row in (row for row in names if marked[row]):
            is_left = row < len(values) / 2
            axes.annotate(names[row], (place[row], values[row]), xytext=(6 if is_left else -6, 0), va="center", fontsize=7.5,
                          ha="left" if is_left else "right", textcoords="offset points")
    stack[-1].set_xlabel(x_label)
    stack[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    _shared_legend(figure, stack)
    return figure


@_styled
def shift_map(shift_angstrom: Float[np.ndarray, "n 2"]) -> Figure:
    """Positions of the particles relative to the image centre: minus RELION's origins."""
    figure = Figure((HALF_WIDTH[0], 3.6))
    axes = figure.subplots()
    _points(axes, *-shift_angstrom.T, *np.array([[True], [False]]).repeat(len(shift_angstrom), 1), "")
    axes.axhline(0, color=GREY, linewidth=0.7)
    axes.axvline(0, color=GREY, linewidth=0.7)
    axes.set(xlabel="shift along x (Å)", ylabel="shift along y (Å)", aspect="equal")
    axes.invert_yaxis()  # rows run downwards, as in the images
    axes.grid(False)
    return figure


@_styled
def view_maps(densities: Mapping[str, Float[np.ndarray, "latitudes longitudes"]]) -> Figure:
    """Densities of viewing directions, 1 = uniform, in Mollweide's equal-area projection."""
    n = len(densities)
    figure = Figure((HALF_WIDTH[0] if n == 1 else FULL_WIDTH, 3.3 if n == 1 else 3.4))
    highest = max(2.0, max(float(np.percentile(density, 99.5)) for density in densities.values()))
    panels = figure.subplots(1, n, subplot_kw={"projection": "mollweide"}, squeeze=False)[0]
    for axes, (title, density) in zip(panels, densities.items(), strict=True):
        longitude = np.linspace(-np.pi, np.pi, density.shape[1] + 1)
        latitude = np.linspace(-np.pi / 2, np.pi / 2, density.shape[0] + 1)
        mesh = axes.pcolormesh(longitude, latitude, density, cmap="cividis", vmin=0, vmax=highest, rasterized=True)
        axes.set_title(title)
        axes.grid(True, which="major", axis="both", color="white", alpha=0.25, linewidth=0.5)
        axes.set_xticklabels([])
        axes.set_yticklabels([])
    bar = figure.colorbar(mesh, ax=list(panels), shrink=0.75, pad=0.02)
    bar.set_label("density (1 = uniform)")
    bar.outline.set_visible(False)
    return figure


@_styled
def image_grid(images: Float[np.ndarray, "k b b"], titles: Sequence[str], columns: int = 10) -> Figure:
    """Images, each scaled to its own grey range, with a title above."""
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    return _mosaic([(images[list(row)], [titles[i] for i in row], "") for row in rows], columns)


@_styled
def image_rows(rows: Mapping[str, Float[np.ndarray, "_ b b"]]) -> Figure:
    """Rows of images, the name of each above its first image."""
    return _mosaic([(np.asarray(images), [name], "") for name, images in rows.items()], max(map(len, rows.values())))


@_styled
def image_pairs(images: Float[np.ndarray, "k b b"], projections: Float[np.ndarray, "k b b"], titles: Sequence[str],
                groups: Sequence[str]) -> Figure:
    """Images above the projections that match them; equal ``groups`` share two rows."""
    rows, columns = [], 0
    for name in dict.fromkeys(groups):
        members = [i for i, group in enumerate(groups) if group == name]
        columns = max(columns, len(members))
        rows += [(images[members], [titles[i] for i in members], name), (projections[members], [], "")]
    return _mosaic(rows, columns)


def _mosaic(rows: Sequence[tuple[np.ndarray, Sequence[str], str]], columns: int) -> Figure:
    """Rows of images (k, B, B) with titles above each image (or none) and a name at the left.

    They share one canvas: a hundred axes would take seconds to lay out.
    """
    box = rows[0][0].shape[-1]
    gap, title_height = max(1, round(0.03 * box)), round(0.17 * box)
    tops, height = [], 0
    for _, titles, _ in rows:
        height += title_height if titles else 0
        tops.append(height)
        height += box + gap
    canvas = np.ones((height, columns * (box + gap) - gap))
    for top, (images, _, _) in zip(tops, rows, strict=True):
        for column, image in enumerate(images):
            left = column * (box + gap)
            canvas[top:top + box, left:left + box] = _grey(image)
    figure = Figure((FULL_WIDTH, FULL_WIDTH * canvas.shape[0] / canvas.shape[1]))
    axes = figure.subplots()
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    for top, (_, titles, name) in zip(tops, rows, strict=True):
        for column, title in enumerate(titles):
            axes.text(column * (box + gap) + box / 2, top - 0.03 * box, title, ha="center", va="bottom", fontsize=7.5)
        if name:
            axes.text(-0.05 * box, top + box, name, ha="right", va="center", rotation=90, fontsize=10)
    return figure


def _grey(image: np.ndarray) -> np.ndarray:
    """Grey values from 0 to 1, clipped at half a per cent of the pixels on either side; a constant image is black."""
    low, high = np.percentile(image, [0.5, 99.5])
    return np.clip((image - low) / (high - low), 0, 1) if high > low else np.zeros_like(image)


@_styled
def map_views(volume: Float[np.ndarray, "d d d"], pixel_size_angstrom: float) -> Figure:
    """Central slices (upper row) and projections (lower row) of a map [z, y, x] along z, y and x."""
    # the layout is fixed: constrained layout would take longer than drawing
    figure = Figure((FULL_WIDTH, FULL_WIDTH * 0.69), layout="none")
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.965, wspace=0.02, hspace=0.085)
    panels = figure.subplots(2, 3)
    middle = len(volume) // 2
    slices = (volume[middle], volume[:, middle], volume[:, :, middle])
    step = max(1, len(volume) // 64)
    low, high = np.percentile(volume[::step, ::step, ::step], [1, 99.9])
    for column, (cut, axis_name) in enumerate(zip(slices, "zyx")):
        panels[0, column].imshow(cut, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
        panels[0, column].set_title(f"slice perpendicular to {axis_name}")
        panels[1, column].imshow(_grey(volume.sum(axis=column)), cmap="gray", interpolation="bilinear")
        panels[1, column].set_title(f"projection along {axis_name}")
    for axes in panels.ravel():
        axes.set_axis_off()
    _scale_bar(panels[0, 0], len(volume), pixel_size_angstrom)
    return figure


@_styled
def fsc_curves(frequency: Float[np.ndarray, " n"], curves_: Mapping[str, Float[np.ndarray, " n"]],
               resolution_angstrom: float | None = None, levels: Sequence[float] = (0.5, 0.143)) -> Figure:
    """Fourier shell correlations over the spatial frequency in 1/Angstrom."""
    figure = Figure(HALF_WIDTH)
    axes = figure.subplots()
    for name, values in curves_.items():
        axes.plot(frequency, values, label=name)
    for level in levels:
        axes.axhline(level, color=GREY, linestyle="--", linewidth=0.9)
        axes.annotate(f"{level:g}", (0, level), xytext=(4, 2), textcoords="offset points", fontsize=8, color=GREY)
    if resolution_angstrom:
        axes.axvline(1 / resolution_angstrom, color="#111827", linewidth=1)
        axes.annotate(f" {resolution_angstrom:.3g} Å", (1 / resolution_angstrom, 0.92), fontsize=9)
    axes.set(xlabel="resolution (Å)", ylabel="Fourier shell correlation", ylim=(-0.1, 1.05), xlim=(0, frequency[-1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "∞" if value <= 0 else f"{1 / value:.1f}"))
    if len(curves_) > 1:
        axes.legend(loc="lower left")
    return figure


class Course(NamedTuple):
    """A quantity over time or steps: its mean and standard deviation over several runs."""

    x: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    deviation: Float[np.ndarray, " n"]


@_styled
def course_grid(rows: Mapping[str, Mapping[str, Mapping[str, Course]]], lines: Sequence[str], x_label: str,
                logarithmic: bool = False) -> Figure:
    """Panels of lines with bands of one standard deviation: y label -> title of a column -> line. ``lines``: all of
    their names, in the order of their colours. ``logarithmic``: the x axis."""
    columns = list(next(iter(rows.values())))
    colour = _colours(lines)
    figure = Figure((FULL_WIDTH, 2.7 * len(rows)))
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharey="row", sharex=True)
    for own, (y_label, row) in zip(panels, rows.items(), strict=True):
        for axes, title in zip(own, columns, strict=True):
            for name in (name for name in lines if name in row[title]):
                course = row[title][name]
                axes.plot(course.x, course.mean, color=colour[name], label=name, clip_on=False)
                axes.fill_between(course.x, course.mean - course.deviation, course.mean + course.deviation,
                                  color=colour[name], alpha=0.2, linewidth=0)
        highest = max((np.nanmax(course.mean + course.deviation) for panel in row.values() for course in panel.values()))
        own[0].set(ylabel=y_label, ylim=(0, 1.05 * max(highest, 1e-6)))
    for axes, title in zip(panels[0], columns, strict=True):
        axes.set_title(title)
    for axes in panels[-1]:
        axes.set_xlabel(x_label)
        if logarithmic:
            axes.set_xscale("log")
    _shared_legend(figure, panels.ravel())
    return figure


def _shared_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend for all panels, above them."""
    panels = sorted(panels, key=lambda axes: -len(axes.lines))  # one that has all lines has them in their order
    handles = {name: line for axes in panels for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=min(len(handles), 8))


def _colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, black after the six of the cycle."""
    return dict(zip(dict.fromkeys(names), (*CYCLE, "#111827"), strict=False))


@_styled
def fsc_grid(frequency: Float[np.ndarray, " n"],
             panels: Mapping[str, Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]],
             levels: Sequence[float] = (0.5, 0.143)) -> Figure:
    """Panels of correlations over the spatial frequency in 1/Angstrom, each line with its dashed upper limit, the map from
    true poses: title -> line -> both."""
    colour = _colours(sorted({name for panel in panels.values() for name in panel}))
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = Figure((FULL_WIDTH if n_columns == 2 else 1.4 * HALF_WIDTH[0], (3.4 if n_columns == 2 else 4.2) * n_rows))
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    for axes, (title, lines) in zip(grid.ravel(), panels.items(), strict=False):
        for name, (found, ceiling) in lines.items():
            axes.plot(frequency, ceiling, color=colour[name], linestyle=(0, (4, 2)), linewidth=1.0, alpha=0.8)
            axes.plot(frequency, found, color=colour[name], label=name)
        for level in levels:
            axes.axhline(level, color=GREY, linestyle=":", linewidth=0.9)
            axes.annotate(f"{level:g}", (0, level), xytext=(4, 2), textcoords="offset points", fontsize=8, color=GREY)
        axes.set(title=title, xlabel="resolution (Å)", ylim=(-0.2, 1.05), xlim=(0, frequency[-1]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "∞" if value <= 0 else f"{1 / value:.1f}"))
    grid[0, 0].plot([], [], color=GREY, linestyle=(0, (4, 2)), linewidth=1.0, label="true poses")
    _shared_legend(figure, grid.ravel())
    for axes in grid.ravel()[len(panels):]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel("FSC against the true map")
    return figure


@_styled
def picture_table(rows: Mapping[str, Sequence[Float[np.ndarray, "b b"] | None]], columns: Sequence[str]) -> Figure:
    """A table of images with a name for each row and a title for each column; None leaves a cell empty."""
    n_rows, n_columns = len(rows), len(columns)
    size = min(1.6, (FULL_WIDTH - 0.8) / n_columns)
    figure = Figure((0.8 + size * n_columns, 0.35 + size * n_rows), layout="none")
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left=0.8 / width, right=1, bottom=0, top=1 - 0.35 / height, wspace=0.04, hspace=0.04)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for row, (name, images) in zip(panels, rows.items(), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.set_axis_off()
            if image is not None:
                axes.imshow(_grey(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        row[0].text(-0.06, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    for axes, title in zip(panels[0], columns, strict=True):
        axes.set_title(title, fontsize=8, pad=3)
    return figure


@_styled
def bars(values: Mapping[str, float], x_label: str) -> Figure:
    """Horizontal bars with their values, with room for long names."""
    figure = Figure((HALF_WIDTH[0], 0.6 + 0.34 * len(values)))
    axes = figure.subplots()
    drawn = axes.barh(list(values), list(values.values()), color=BLUE, height=0.7)
    axes.bar_label(drawn, [f"{value:,g}" for value in values.values()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(False)
    axes.set_xlabel(x_label)
    return figure


def low_passed(images: Float[np.ndarray, "k b b"], sigma_px: float) -> Float[np.ndarray, "k b b"]:
    """Images smoothed by a Gaussian of ``sigma_px``, so that noisy particles are easier to see."""
    k_y, k_x = np.fft.fftfreq(images.shape[-2]), np.fft.rfftfreq(images.shape[-1])
    weight = np.exp(-2 * (np.pi * sigma_px) ** 2 * (k_y[:, None] ** 2 + k_x**2))
    return np.fft.irfft2(np.fft.rfft2(images) * weight, s=images.shape[-2:])


def _scale_bar(axes: Axes, size_px: int, pixel_size_angstrom: float) -> None:
    length = 10 ** np.floor(np.log10(0.4 * size_px * pixel_size_angstrom))
    length *= next(f for f in (4, 2, 1) if f * length <= 0.4 * size_px * pixel_size_angstrom)
    start, row = 0.04 * size_px, 0.95 * size_px
    axes.plot([start, start + length / pixel_size_angstrom], [row, row], color="white", linewidth=3)
    axes.text(start, row - 0.02 * size_px, f"{length:g} Å", color="white", fontsize=9, va="bottom")


def _set_scales(axes: Axes, x_scale: Scale, y_scale: Scale) -> None:
    for axis, scale, setter in ((axes.xaxis, x_scale, axes.set_xscale), (axes.yaxis, y_scale, axes.set_yscale)):
        if scale == "log":
            setter("log")
            _plain_numbers(axis)
        elif scale == "asinh":
            setter("asinh", linear_width=1.0)
            axis.set_major_locator(FixedLocator([sign * value for value in (0, 2, 5, 10, 30, 100, 300, 1000, 10000)
                                                 for sign in (-1, 1)]))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _plain_numbers(axis: matplotlib.axis.Axis) -> None:
    """Tick labels 0.1, 1, 10 instead of powers of ten, and more ticks where those would be few."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    low, high = axis.get_view_interval()
    if low > 0 and high / low < 5:
        axis.set_major_locator(MaxNLocator(6))
        axis.set_minor_locator(NullLocator())
    elif low > 0 and high / low < 50:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _is_shown(values: np.ndarray, scale: Scale) -> np.ndarray:
    return np.isfinite(values) & ((values > 0) | (scale != "log"))


# to a scale and back
_FORWARD_BACKWARD = {"linear": (np.asarray, np.asarray), "log": (np.log, np.exp), "asinh": (np.arcsinh, np.sinh)}


def _bins(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Edges evenly spaced on the scale over 99.8 % of the values; the outer bins include the rest."""
    forward, backward = _FORWARD_BACKWARD[scale]
    scaled = forward(values)
    low, high = np.percentile(scaled, [0.1, 99.9])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = backward(np.linspace(low, high, int(np.clip(3 * len(values) ** (1 / 3), 15, 80)) + 1))
    edges[0], edges[-1] = min(edges[0], values.min()), max(edges[-1], values.max())
    return edges


def _running_median(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(x)
    parts = np.array_split(order, int(np.clip(len(x) // 25, 2, 20)))
    return (np.array([np.median(x[part]) for part in parts]), np.array([np.median(y[part]) for part in parts]))
