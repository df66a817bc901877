"""Plots of errors against known poses, shared by the pages that have them."""

import numpy as np
from jaxtyping import Bool, Float

from . import plots
from .page import Picture, degrees

# a logarithmic scale has no zero: smaller errors, in degrees or Angstrom, are drawn as this
_FLOOR = 0.01


def error_histogram(error_deg: Float[np.ndarray, " n"], junk: Bool[np.ndarray, " n"] | None = None,
                    what: str = "orientation error") -> Picture:
    """Histogram of errors on a logarithmic scale, junk in a colour of its own."""
    junk = np.zeros(len(error_deg), dtype=bool) if junk is None else junk
    error_deg = np.maximum(error_deg, _FLOOR)
    good = error_deg[~junk]
    groups = {"particles": good} | ({"junk": error_deg[junk]} if junk.any() else {})
    marks = {f"median {degrees(np.median(good))}": float(np.median(good)),
             f"mean {degrees(good.mean())}": float(good.mean())}
    return Picture("Orientation errors",
                   "There should be one peak at small angles; a second peak at large angles is misassigned particles.",
                   plots.histogram(groups, f"{what} (degrees)", marks, x_scale="log"))


def shift_error_histogram(shift_error_angstrom: Float[np.ndarray, " n"], junk: Bool[np.ndarray, " n"] | None = None
                          ) -> Picture:
    """Histogram of shift errors, junk left out."""
    good = shift_error_angstrom if junk is None else shift_error_angstrom[~junk]
    marks = {f"median {np.median(good):.2g} Å": float(np.median(good))}
    return Picture("Shift errors",
                   "Most shifts should be accurate to a fraction of a pixel; a long tail is misassigned particles.",
                   plots.histogram({"particles": np.maximum(good, _FLOOR)}, "shift error (Å)", marks, x_scale="log"))


def expected_against_true(expected_deg: Float[np.ndarray, " n"], error_deg: Float[np.ndarray, " n"],
                          junk: Bool[np.ndarray, " n"] | None = None) -> Picture:
    """True errors over expected ones."""
    return Picture("Expected and true error",
                   "The median should follow the dashed line, and misassigned particles should lie on the right.",
                   plots.scatter(expected_deg, np.maximum(error_deg, _FLOOR), "expected error (degrees)",
                                 "true error (degrees)", x_scale="log", y_scale="log",
                                 with_diagonal=True, with_median=True, highlighted=junk, highlighted_label="junk"))
