"""Pictures of errors against known poses, for every page that has some."""

import numpy as np

from . import plots
from .page import Picture, degrees

# a logarithmic scale has no zero: smaller errors, in degrees or Angstrom, are drawn as this
_FLOOR = 0.01


def error_picture(error_deg: np.ndarray, junk: np.ndarray | None = None, what: str = "orientation error") -> Picture:
    """Histogram of errors (n,) in degrees on a logarithmic scale, junk (n,) apart."""
    junk = np.zeros(len(error_deg), dtype=bool) if junk is None else junk
    error_deg = np.maximum(error_deg, _FLOOR)
    good = error_deg[~junk]
    groups = {"particles": good} | ({"junk": error_deg[junk]} if junk.any() else {})
    marks = {f"median {degrees(np.median(good))}": float(np.median(good)),
             f"mean {degrees(good.mean())}": float(good.mean())}
    return Picture("Orientation errors",
                   "Look for one hill at small angles; a second one at the right is particles that are plainly wrong.",
                   plots.histogram(groups, f"{what} (degrees)", marks, x_scale="log"))


def shift_error_picture(shift_error_angstrom: np.ndarray, junk: np.ndarray | None = None) -> Picture:
    """Histogram of shift errors (n,) in Angstrom, junk (n,) left out."""
    good = shift_error_angstrom if junk is None else shift_error_angstrom[~junk]
    marks = {f"median {np.median(good):.2g} Å": float(np.median(good))}
    return Picture("Shift errors",
                   "Good shifts are right to a fraction of a pixel; the long tail goes with wrong orientations.",
                   plots.histogram({"particles": np.maximum(good, _FLOOR)}, "shift error (Å)", marks, x_scale="log"))


def expected_against_true(expected_deg: np.ndarray, error_deg: np.ndarray, junk: np.ndarray | None = None) -> Picture:
    """Expected errors (n,) against true ones (n,)."""
    return Picture("Expected and true error",
                   "An honest expectation keeps the median near the dashed line; what is wrong should be at the right.",
                   plots.scatter(expected_deg, np.maximum(error_deg, _FLOOR), "expected error (degrees)",
                                 "true error (degrees)", x_scale="log", y_scale="log",
                                 with_diagonal=True, with_median=True, highlighted=junk, highlighted_label="junk"))
