"""What the errors in degrees promise, and how that held for particles whose poses are known."""

import numpy as np

from ..geometry.even_directions import even_directions
from . import plots
from .page import Picture, Table, degrees, percent
from .run_files import RunFiles

# few enough groups of views to hold the particles that tell a broken promise from chance
N_GROUPS, MIN_IN_GROUP = 12, 20
_FLOOR_DEG = 1e-3


def promises(files: RunFiles) -> tuple[list[Table], list[Picture]]:
    """Tables and pictures; nothing where a run has learnt no errors."""
    if not files.run.calibration.is_file():
        return [], []
    with np.load(files.run.calibration, allow_pickle=False) as arrays:
        known = dict(arrays)
    picture = Picture(
        "Expected error, tested", "Where the points lie on the dashed line, an expected error is the mean error of those "
        "that have it. Each particle was judged by a model that had not seen it.",
        plots.reliability(known["expected_error_deg"], np.maximum(known["error_deg"], _FLOOR_DEG),
                          "expected error (degrees)", "true error of the known particles (degrees)"))
    return [_table(files, known)], [picture]


def _table(files: RunFiles, known: dict[str, np.ndarray]) -> Table:
    within, coverage = known["error_deg"] <= known["error_bound_deg"], float(known["coverage"])
    rows = []
    columns = files.csv_columns(files.run.promises.name) or {}
    for promised, held in zip(columns.get("promised_fraction", ()), columns.get("held_fraction", ()), strict=True):
        rows.append((f"bound for {percent(promised)}", "all", percent(held)))
    quarter = np.digitize(known["defocus_angstrom"], np.quantile(known["defocus_angstrom"], (0.25, 0.5, 0.75)))
    rows += [(f"bound for {percent(coverage)}", f"{name} quarter of defocus", percent(within[quarter == i].mean()))
             for i, name in enumerate(("lowest", "second", "third", "highest")) if (quarter == i).any()]
    of_cones = _by_cone(within, known["view_direction"])
    if len(of_cones):
        rows.append((f"bound for {percent(coverage)}", f"poorest of {len(of_cones)} groups of views",
                     percent(of_cones.min())))
    if "shift_error_bound_angstrom" in known:
        shifts_within = known["shift_error_angstrom"] <= known["shift_error_bound_angstrom"]
        rows.append((f"bound of the shift for {percent(coverage)}", "all", percent(shifts_within.mean())))
    source = str(known["source"])
    return Table("Promised and held", f"A bound in degrees is a promise; this is how often it held for {source} "
                 f"(median error {degrees(float(np.median(known['error_deg'])))}). Groups are small: a few per cent "
                 "either way are chance.", ("promise", "particles", "held"), tuple(rows))


def _by_cone(within: np.ndarray, view_direction: np.ndarray) -> np.ndarray:
    """Part of the particles whose bound holds, of each group of views that has enough particles to tell."""
    cone = (view_direction @ even_directions(N_GROUPS).T).argmax(axis=1)
    groups = [within[cone == number] for number in range(N_GROUPS)]
    return np.array([group.mean() for group in groups if len(group) >= MIN_IN_GROUP])
