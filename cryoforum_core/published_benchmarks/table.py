"""The table as Markdown and as CSV: one row for each set and method, means over the runs with different seeds."""

import csv
import math
from pathlib import Path

import numpy as np

from ..config import BenchmarkConfig
from ..report.benchmark_results import METHOD_NAMES, Result
from ..run_directory import atomic_path
from .published import CRYOPOSENET

_MEANS = (
    "median_error_deg", "mean_error_deg", "median_error_modulo_deg", "mean_error_modulo_deg",
    "test_median_error_modulo_deg", "test_mean_error_modulo_deg", "test_network_median_error_modulo_deg",
    "test_network_mean_error_modulo_deg", "test_median_error_deg", "test_mean_error_deg", "resolution_05_angstrom",
    "resolution_0143_angstrom", "ceiling_05_angstrom", "ceiling_0143_angstrom", "shells_below_ceiling_05",
    "shells_below_ceiling_0143", "half_map_resolution_angstrom", "seconds",
)
_HEADER = ("set", "images", "method", "converged", "error (deg): median, mean", "modulo C2: median, mean",
           "test, modulo C2: median, mean", "network alone, test", "map, FSC 0.5 / 0.143 (A)",
           "map from true poses, FSC 0.5 / 0.143 (A)", "shells short, 0.5 / 0.143", "published, 0.143 (A)", "time (min)")


def write_table(results: list[Result], out: Path, config: BenchmarkConfig) -> list[dict]:
    """Writes table.md and table.csv; returns the rows."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        groups.setdefault((result.set, result.method), []).append(result.figures)
    rows = [_row(figures) for figures in groups.values()]
    with atomic_path(out / "table.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(_markdown(rows, config))
    return rows


def _row(runs: list[dict]) -> dict:
    """One row of means and standard deviations over the runs; None where no run has the figure."""
    first = runs[0]
    row = {"set": first["set"], "images": first["label"], "method": first["method"], "n_runs": len(runs),
           "n_converged": sum(run["converged"] for run in runs), "n_train": first["n_train"],
           "box_size_px": first["box_size_px"], "pixel_size_angstrom": first["pixel_size_angstrom"]}
    for name in _MEANS:
        values = [run[name] for run in runs if run.get(name) is not None]
        row[name] = float(np.mean(values)) if values else None
        row[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    row["published_0143_angstrom"] = CRYOPOSENET[first["set"]].resolution
    row["hardware"] = "; ".join(sorted({run["hardware"] for run in runs}))
    return row


def _markdown(rows: list[dict], config: BenchmarkConfig) -> str:
    lines = [f"# {config.table}, {config.scale} scale", "", "| " + " | ".join(_HEADER) + " |",
             "|" + "---|" * len(_HEADER)]
    lines += ["| " + " | ".join(table_cells(row)) + " |" for row in rows]
    hardware = sorted({row["hardware"] for row in rows})
    sizes = sorted({f"{row['n_train']:,} training images of {row['box_size_px']} px, {row['pixel_size_angstrom']:g} A/px"
                    for row in rows})
    lines += ["", f"{'; '.join(sizes)}. Published: 9,000 training images of 128 px, 0.8 A/px.",
              "", f"Hardware: {'; '.join(hardware)}.", "", _EXPLANATION]
    return "\n".join(lines) + "\n"


_EXPLANATION = """\
Errors are angles between estimated and true poses after alignment of frame and hand. 4AKE is pseudo-symmetric (C2); modulo
C2, the error is to the nearer of the two equivalent poses. Test images were not used for training; "network alone" is
before matching. Maps are compared with the true map after alignment, within a sphere with a radius of 45 % of the box.
"Shells short" says by how many Fourier shells the resolution is below that of the map of the same images from their true
poses. Means over runs, +- standard deviation where there are several."""


def table_cells(row: dict) -> tuple[str, ...]:
    """The row as text, in the order of the header."""
    return (row["set"], row["images"], METHOD_NAMES[row["method"]], f"{row['n_converged']} of {row['n_runs']}",
            _pair(row, "median_error_deg", "mean_error_deg", ", "),
            _pair(row, "median_error_modulo_deg", "mean_error_modulo_deg", ", "),
            _pair(row, "test_median_error_modulo_deg", "test_mean_error_modulo_deg", ", "),
            _pair(row, "test_network_median_error_modulo_deg", "test_network_mean_error_modulo_deg", ", "),
            _pair(row, "resolution_05_angstrom", "resolution_0143_angstrom"),
            _pair(row, "ceiling_05_angstrom", "ceiling_0143_angstrom"),
            _pair(row, "shells_below_ceiling_05", "shells_below_ceiling_0143", digits=1),
            row["published_0143_angstrom"], _minutes(row))


def _pair(row: dict, first: str, second: str, between: str = " / ", digits: int = 2) -> str:
    return between.join(_value(row, name, digits) for name in (first, second)) if row[first] is not None else "-"


def _value(row: dict, name: str, digits: int) -> str:
    value, spread = row[name], row[f"{name}_sd"]
    if not math.isfinite(value):
        return "-"
    text = f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.1f}"
    return text if spread is None else f"{text} +- {spread:.{digits}f}"


def _minutes(row: dict) -> str:
    return f"{row['seconds'] / 60:.1f}"
