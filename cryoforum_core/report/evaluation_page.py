"""The page of a run of evaluate."""

import numpy as np

from . import plots
from .error_pictures import error_picture, expected_against_true, shift_error_picture
from .map_page import fsc_picture
from .page import Page, Picture, Verdict, degrees, level_of, percent, significant
from .run_files import RunFiles, column

GOOD_BELOW_DEG, USEFUL_BELOW_DEG = 3.0, 10.0
_TAIL_ABOVE = 2.0
_MAX_POINTS = 400


def evaluation_page(files: RunFiles) -> Page:
    """Errors against the truth: how many are right, how far off the others are, and whether the run knew it."""
    summary = files.summary
    facts = {"median error": degrees(summary["median_error_deg"]), "mean error": degrees(summary["mean_error_deg"]),
             "within 5°": percent(summary["fraction_below_5deg"]),
             "within 10°": percent(summary["fraction_below_10deg"]),
             "median shift error": f"{significant(summary['median_shift_error_angstrom'])} Å"}
    if summary.get("resolution_angstrom"):
        facts["resolution against the truth"] = f"{significant(summary['resolution_angstrom'])} Å"
    return Page("Evaluation against the truth", _verdict(summary), (), facts, tuple(_pictures(files)))


def _verdict(summary: dict) -> Verdict:
    median, mean, within = summary["median_error_deg"], summary["mean_error_deg"], summary["fraction_below_10deg"]
    sentences = [f"Half of the orientations are within {degrees(median)} of the truth, {percent(within)} within 10°."]
    if mean > _TAIL_ABOVE * median and within < 1:
        sentences.append(f"The mean, {degrees(mean)}, is far above the median because {percent(1 - within)} are off by "
                         "more than 10°.")
    if "error_bound_held" in summary:
        held = f"The bounds of the errors held for {percent(summary['error_bound_held'])} of them"
        shifts = summary.get("shift_error_bound_held")
        sentences.append(f"{held}." if shifts is None else f"{held}, those of the shifts for {percent(shifts)}.")
    if "with_junk" in summary:
        sentences.append("Junk is not counted in these figures.")
    if summary.get("is_mirrored"):
        sentences.append("The poses belong to the mirrored map; the other hand was taken for the comparison.")
    return Verdict(level_of(median, GOOD_BELOW_DEG, USEFUL_BELOW_DEG), tuple(sentences))


def _pictures(files: RunFiles) -> list[Picture]:
    pictures = []
    errors = files.csv_columns("errors.csv")
    if errors is not None:
        error, junk = errors["error_deg"], errors["is_junk"] > 0
        pictures += [error_picture(error, junk), _cumulative(error[~junk])]
        expected = column(files.table(files.config.get("particles")), "rlnCryoforumExpectedError")
        if expected is not None and len(expected) == len(error):
            pictures.append(expected_against_true(expected, error, junk))
        pictures.append(shift_error_picture(errors["shift_error_angstrom"], junk))
    fsc = fsc_picture(files)
    return pictures + ([fsc] if fsc is not None else [])


def _cumulative(error_deg: np.ndarray) -> Picture:
    ordered = np.sort(np.maximum(error_deg, 0.01))  # a logarithmic scale has no zero
    share = np.arange(1, len(ordered) + 1) / len(ordered)
    shown = np.linspace(0, len(ordered) - 1, min(len(ordered), _MAX_POINTS)).astype(int)
    return Picture("How many are within an angle",
                   "It should rise steeply and end near 1; a plateau below 1 leaves the share of lost particles.",
                   plots.curves(ordered[shown], {"particles": share[shown]}, "error (degrees)", "fraction within",
                                x_scale="log"))
