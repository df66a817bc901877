"""The page of a run of evaluate."""

import numpy as np

from . import plots
from .error_plots import error_histogram, expected_against_true, shift_error_histogram
from .map_page import fsc_picture
from .page import Assessment, Page, Picture, Table, degrees, level_of, percent, significant
from .run_files import RunFiles, column

# a median error of 3 degrees moves a detail 100 A from the axis by 5 A
GOOD_BELOW_DEG = 3.0
# particles further off count as misassigned
USEFUL_BELOW_DEG = 10.0
# mean over median; 1.04 for normal errors about three axes
_TAIL_ABOVE = 2.0
# of a curve in the page, which would grow with the number of particles
_MAX_POINTS = 400


def evaluation_page(files: RunFiles) -> Page:
    """Errors against known poses: how many are small, how large the others are, and whether the run expected them."""
    summary = files.summary
    facts = {"median error": degrees(summary["median_error_deg"]), "mean error": degrees(summary["mean_error_deg"]),
             "within 5°": percent(summary["fraction_below_5deg"]),
             "within 10°": percent(summary["fraction_below_10deg"]),
             "median shift error": f"{significant(summary['median_shift_error_angstrom'])} Å"}
    if summary.get("resolution_angstrom"):
        facts["resolution against the known map"] = f"{significant(summary['resolution_angstrom'])} Å"
    return Page("Evaluation against known poses", _assessment(summary), (), facts, tuple(_pictures(files)), _tables(summary))


def _tables(summary: dict) -> tuple[Table, ...]:
    """Errors and coverage of each group of the known particles, where it has groups."""
    groups = summary.get("by_group", ())
    if not groups:
        return ()
    measures = {"median_error_deg": ("median error", degrees), "error_bound_held": ("empirical coverage", percent)}
    measures = {key: measure for key, measure in measures.items() if key in groups[0]}
    rows = tuple((group["group"], f"{group['n_compared']:,}", *(text(group[key]) for key, (_, text) in measures.items()))
                 for group in groups)
    return (Table("By group", "Groups by the columns of the known particles. Bounds should hold for about the same fraction "
                  "of every group.", ("group", "particles", *(name for name, _ in measures.values())), rows),)


def _assessment(summary: dict) -> Assessment:
    median, mean, within = summary["median_error_deg"], summary["mean_error_deg"], summary["fraction_below_10deg"]
    sentences = [f"Half of the orientations are within {degrees(median)} of the known ones, {percent(within)} within 10°."]
    if mean > _TAIL_ABOVE * median and within < 1:
        sentences.append(f"The mean, {degrees(mean)}, is far above the median because {percent(1 - within)} are off by "
                         "more than 10°.")
    if "error_bound_held" in summary:
        coverage = f"The error bounds hold for {percent(summary['error_bound_held'])} of the orientations"
        shifts = summary.get("shift_error_bound_held")
        sentences.append(f"{coverage}." if shifts is None else f"{coverage} and {percent(shifts)} of the shifts.")
    if "with_junk" in summary:
        sentences.append("Junk is excluded from these values.")
    if summary.get("is_mirrored"):
        sentences.append("The poses have the opposite hand; they were mirrored for the comparison.")
    return Assessment(level_of(median, GOOD_BELOW_DEG, USEFUL_BELOW_DEG), tuple(sentences))


def _pictures(files: RunFiles) -> list[Picture]:
    pictures = []
    errors = files.csv_columns(files.run.errors.name)
    if errors is not None:
        error, junk = errors["error_deg"], errors["is_junk"] > 0
        pictures += [error_histogram(error, junk), _cumulative(error[~junk])]
        expected = column(files.table(files.config.get("particles")), "rlnCryoforumExpectedError")
        if expected is not None and len(expected) == len(error):
            pictures.append(expected_against_true(expected, error, junk))
        pictures.append(shift_error_histogram(errors["shift_error_angstrom"], junk))
    fsc = fsc_picture(files)
    return pictures + ([fsc] if fsc is not None else [])


def _cumulative(error_deg: np.ndarray) -> Picture:
    ordered = np.sort(np.maximum(error_deg, 0.01))  # a logarithmic scale has no zero
    share = np.arange(1, len(ordered) + 1) / len(ordered)
    shown = np.linspace(0, len(ordered) - 1, min(len(ordered), _MAX_POINTS)).astype(int)
    return Picture("Cumulative distribution of the errors",
                   "It should rise steeply and end near 1; the gap between a plateau and 1 is the fraction of "
                   "misassigned particles.",
                   plots.curves(ordered[shown], {"particles": share[shown]}, "error (degrees)",
                                "fraction of particles within", x_scale="log"))
