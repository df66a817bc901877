"""How well the error estimates are calibrated, measured on particles whose poses are known."""

import numpy as np

from ..geometry.even_directions import even_directions
from . import plots
from .page import Picture, Table, degrees, percent
from .run_files import RunFiles

# few enough groups of viewing directions that each has the particles to tell a poor coverage from chance
N_GROUPS, MIN_IN_GROUP = 12, 20
_FLOOR_DEG = 1e-3


def error_calibration(files: RunFiles) -> tuple[list[Table], list[Picture]]:
    """Tables and figures; empty where a run has no calibrated errors."""
    if not files.run.calibration.is_file():
        return [], []
    with np.load(files.run.calibration, allow_pickle=False) as arrays:
        known = dict(arrays)
    picture = Picture(
        "Calibration of the expected error", "The dashed line is perfect calibration. Each "
        "particle was assessed by an error model fitted without it (cross-validation).",
        plots.reliability(known["expected_error_deg"], np.maximum(known["error_deg"], _FLOOR_DEG),
                          "expected error (degrees)", "true error (degrees)"))
    return [_coverage_table(files, known)], [picture]


def _coverage_table(files: RunFiles, known: dict[str, np.ndarray]) -> Table:
    within, nominal = known["error_deg"] <= known["error_bound_deg"], percent(float(known["coverage"]))
    rows = [(f"{percent(level)} bound", "all", percent(empirical)) for level, empirical in _coverage(files)]
    quarter = np.digitize(known["defocus_angstrom"], np.quantile(known["defocus_angstrom"], (0.25, 0.5, 0.75)))
    rows += [(f"{nominal} bound", f"{name} defocus quartile", percent(within[quarter == i].mean()))
             for i, name in enumerate(("lowest", "second", "third", "highest")) if (quarter == i).any()]
    of_groups = _by_viewing_direction(within, known["view_direction"])
    if len(of_groups) > 1:
        rows.append((f"{nominal} bound", f"worst of {len(of_groups)} groups of viewing directions",
                     percent(of_groups.min())))
    if "shift_error_bound_angstrom" in known:
        shifts_within = known["shift_error_angstrom"] <= known["shift_error_bound_angstrom"]
        rows.append((f"{nominal} bound on the shift", "all", percent(shifts_within.mean())))
    source, median = str(known["source"]), degrees(float(np.median(known["error_deg"])))
    return Table("Coverage of the error bounds", f"Empirical coverage: the fraction of {source} whose true error is within "
                 f"the bound. It should match the nominal coverage of the bound; in small groups, differences of a few "
                 f"per cent are chance. The median true error is {median}.",
                 ("error bound", "particles", "empirical coverage"), tuple(rows))


def _coverage(files: RunFiles) -> list[tuple[float, float]]:
    """Nominal and empirical coverage of calibration.csv."""
    columns = files.csv_columns(files.run.calibration_table.name) or {}
    # the second names are those of earlier versions
    nominal, empirical = (columns.get(name, columns.get(earlier, ())) for name, earlier in (
        ("nominal_coverage", "promised_fraction"), ("empirical_coverage", "held_fraction")))
    return list(zip(nominal, empirical, strict=True))


def _by_viewing_direction(within: np.ndarray, view_direction: np.ndarray) -> np.ndarray:
    """Empirical coverage of each group of viewing directions that has at least ``MIN_IN_GROUP`` particles."""
    group = (view_direction @ even_directions(N_GROUPS).T).argmax(axis=1)
    groups = [within[group == number] for number in range(N_GROUPS)]
    return np.array([group.mean() for group in groups if len(group) >= MIN_IN_GROUP])
