"""The page of a benchmark, and its figures as PNG files."""

from pathlib import Path

import numpy as np

from ..run_directory import RunDirectory, atomic_path
from . import plots
from .benchmark_results import METHOD_NAMES, Result, read_results
from .page import Assessment, NextStep, Page, Picture, Table, command, significant
from .run_files import RunFiles

# smoothing of noisy images in figures: enough to see the particle, too little to blur its outline
_DISPLAY_SIGMA_PX = 1.0
# of a training curve: more than its evaluations
_N_POINTS = 60
# of metrics.csv
_ERROR_COLUMN = "training_mean_error_modulo_deg"
_LOSS_COLUMN = "reconstruction_loss"
# a map as good as the one from true poses: closer than the FSC, which is sampled in whole shells, can tell
_WITHIN_SHELLS = 1.0


def benchmark_page(files: RunFiles) -> Page:
    """The table, and the three figures."""
    summary, results = files.summary, read_results(files.path)
    rows = summary["rows"]
    facts = {"runs": f"{summary['n_runs']}", "sets": f"{len({row['set'] for row in rows})}",
             "scale": summary["scale"]}
    tables = tuple(_table(name, [row for row in rows if row["method"] == name])
                   for name in METHOD_NAMES if any(row["method"] == name for row in rows))
    return Page(f"Benchmark: {summary['table']}", _assessment(rows), _next_steps(files), facts,
                tuple(picture for _, picture in _figures(files.path, results)), tables,
                ("Poses and maps are compared with the true ones, which no method knew. Modulo C2, the error is to the "
                 "nearer of the two poses that the pseudo-symmetry (C2) of the molecule relates.",
                 f"Hardware: {'; '.join(summary['hardware'])}."))


def write_figures(out: Path) -> None:
    """figure2.png, figure3.png and figure4.png, where there are runs for them."""
    for name, picture in _figures(out, read_results(out)):
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(plots.to_png(picture.figure))


def _assessment(rows: list[dict]) -> Assessment:
    sentences = []
    level = "good"
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        near, nearer = ([row["set"] for row in own if row[f"shells_below_ceiling_{limit}"] <= _WITHIN_SHELLS]
                        for limit in ("0143", "05"))
        sentences.append(f"{METHOD_NAMES[method].capitalize()}: {len(near)} of {len(own)} sets are within one Fourier shell "
                         f"of the map from true poses at FSC 0.143, {len(nearer)} at FSC 0.5.")
        if min(len(near), len(nearer)) < len(own):
            level = "caution"
    return Assessment(level, tuple(sentences))


def _next_steps(files: RunFiles) -> tuple[NextStep, ...]:
    first = next((files.path / "runs").glob("*_hybrid_*/summary.json"), None)
    more = NextStep("Add sets, methods or seeds to this table", command(
        f"benchmark {files.summary['table']}", out=files.path) + " --scale " + files.summary["scale"]
        + " --resume --sets ... --methods ... --seeds ...")
    return (more,) if first is None else (more, NextStep("Make the report of a single run", command(
        "report", run=first.parent, out=files.path.with_name(files.path.name + "_report"))))


def _table(method: str, rows: list[dict]) -> Table:
    header = ("set", "images", "converged", "median error, modulo C2", "mean", "test, median", "map (FSC 0.5)",
              "FSC 0.143", "true poses", "shells short", "published", "minutes")
    cells = [(row["set"], row["images"], f"{row['n_converged']} of {row['n_runs']}",
              _degrees(row["median_error_modulo_deg"]), _degrees(row["mean_error_modulo_deg"]),
              _degrees(row["test_median_error_modulo_deg"]), f"{significant(row['resolution_05_angstrom'])} Å",
              f"{significant(row['resolution_0143_angstrom'])} Å", f"{significant(row['ceiling_0143_angstrom'])} Å",
              f"{row['shells_below_ceiling_0143']:.1f}", _angstrom(row["published_0143_angstrom"]),
              f"{row['seconds'] / 60:.1f}") for row in rows]
    return Table(f"Method: {METHOD_NAMES[method]}", "Resolutions against the true map. True poses: resolution of the map "
                 "from true poses, and shells short: how many Fourier shells the map lies below it, both at FSC 0.143. "
                 "Published values are for 128 px at 0.8 Å/px (Nyquist 1.6 Å).", header,
                 tuple(cells), wide=True)


def _degrees(value: float | None) -> str:
    return "-" if value is None else f"{significant(value)}°"


def _angstrom(published: str) -> str:
    return published if published == "-" else f"{published} Å"


def _figures(out: Path, results: list[Result]) -> list[tuple[str, Picture]]:
    """File name and picture of each figure for which there are runs."""
    figures = []
    courses = _courses(out, results)
    if courses:
        figures.append(("figure2.png", Picture(
            "Training with and without an encoder", "Loss (unexplained fraction of the power of the images) and mean pose "
            "error modulo C2: mean and standard deviation over the runs. Known poses have no error. A step with an encoder "
            "takes far longer than one without; the table has the times.",
            plots.course_grid(courses, list(METHOD_NAMES.values())[1:], "training steps", logarithmic=True), wide=True)))
    if results:
        figures.append(("figure3.png", Picture(
            "FSC against the true map", "Each solid line should follow its dashed line: the map of the same images "
            "reconstructed with their true poses.", _fsc_figure(results), wide=True)))
        figures.append(("figure4.png", Picture(
            "Images, projections, maps", "An image (slightly smoothed below 0 dB), the matching projection of the "
            "reconstructed map, and central slices of the reconstructed and of the true map.",
            _picture_table(results), wide=True)))
    return figures


def _courses(out: Path, results: list[Result]) -> dict[str, dict[str, dict[str, plots.Course]]]:
    """Loss and error over the steps of training: y label -> set -> method; empty without end-to-end runs."""
    metrics: dict[tuple[str, str], list[dict[str, np.ndarray]]] = {}
    for result in results:
        run = RunDirectory(out / "runs" / f"{result.set}_{result.method}_{result.seed}")
        columns = RunFiles(run).csv_columns(run.metrics.name) if run.finished and result.method != "hybrid" else None
        if columns is not None and _ERROR_COLUMN in columns:
            metrics.setdefault((_title(result), METHOD_NAMES[result.method]), []).append(columns)
    # a curve needs two evaluations
    metrics = {key: runs for key, runs in metrics.items()
               if all(np.isfinite(run[_ERROR_COLUMN]).sum() > 1 for run in runs)}
    panels = {"loss": _LOSS_COLUMN, "mean error, modulo C2 (degrees)": _ERROR_COLUMN}
    return {label: {title: {method: _course(runs, column) for (other, method), runs in metrics.items() if other == title}
                    for title, _ in metrics} for label, column in panels.items()} if metrics else {}


def _title(result: Result) -> str:
    return f"{result.set}: {result.figures['label']}"


def _course(runs: list[dict[str, np.ndarray]], name: str) -> plots.Course:
    """The mean over runs, each interpolated to common steps up to where the shortest one ends."""
    there = [np.isfinite(run[name]) for run in runs]
    steps = [run["step"][rows] for run, rows in zip(runs, there, strict=True)]
    x = np.geomspace(max(s[0] for s in steps), min(s[-1] for s in steps), _N_POINTS)
    values = np.stack([np.interp(x, s, run[name][rows]) for s, run, rows in zip(steps, runs, there, strict=True)])
    return plots.Course(x, values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else np.zeros_like(x))


def _fsc_figure(results: list[Result]) -> plots.Figure:
    """A panel for each method, a line for each set (the mean over runs)."""
    first = results[0].figures
    n_shells = len(results[0].arrays["fsc"])
    frequency = np.arange(n_shells) / (first["box_size_px"] * first["pixel_size_angstrom"])
    panels: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        if len(result.arrays["fsc"]) == n_shells:
            panels.setdefault(METHOD_NAMES[result.method], {}).setdefault(_title(result), []).append(result)
    return plots.fsc_grid(frequency, {method: {name: tuple(
        np.mean([run.arrays[curve] for run in runs], axis=0) for curve in ("fsc", "ceiling_fsc"))
        for name, runs in lines.items()} for method, lines in panels.items()})


def _picture_table(results: list[Result]) -> plots.Figure:
    """A row for each set: image, then projection and slice of each method's first run, then the true slice."""
    firsts: dict[str, dict[str, Result]] = {}
    for result in results:
        firsts.setdefault(result.set, {}).setdefault(result.method, result)
    methods = [name for name in METHOD_NAMES if any(name in row for row in firsts.values())]
    columns = ["image", *(f"{METHOD_NAMES[name]}:\n{what}" for name in methods for what in ("projection", "slice")),
               "true map:\nslice"]
    rows = {}
    for name, row in firsts.items():
        some = next(iter(row.values()))
        pictures = [row[method].arrays[kind] if method in row else None
                    for method in methods for kind in ("projection", "found_slice")]
        image, snr_db = some.arrays["image"], some.figures["snr_db"]
        if snr_db is not None and snr_db < 0:
            image = plots.low_passed(image[None], _DISPLAY_SIGMA_PX)[0]
        rows[f"{name}\n{some.figures['label']}".replace(", ", ",\n")] = [image, *pictures, some.arrays["true_slice"]]
    return plots.picture_table(rows, columns)
