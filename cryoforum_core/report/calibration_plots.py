"""How well the error estimates are calibrated, measured on particles whose poses are known."""

import numpy as np

from ..geometry.even_directions import even_directions
from ..uncertainty.coverage_by_chance import lowest_by_chance
from . import plots
from .page import Picture, Table, degrees, percent
from .run_files import RunFiles

# few enough groups of viewing directions that each has the particles to tell a poor coverage from chance
N_GROUPS = 12
# with fewer particles, a coverage of 90 % is known to no better than 7 %
MIN_IN_GROUP = 20
# a logarithmic scale has no zero: smaller errors, in degrees, are drawn as this
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
    n_in_groups, of_groups = _by_viewing_direction(within, known["view_direction"])
    if len(of_groups) > 1:
        least = lowest_by_chance(n_in_groups, float(known["coverage"]))
        rows.append((f"{nominal} bound", f"lowest of {len(of_groups)} groups of viewing directions",
                     f"{percent(of_groups.min())} ({'within' if of_groups.min() >= least else 'below'} chance: "
                     f"{percent(least)} or more)"))
    if "shift_error_bound_angstrom" in known:
        shifts_within = known["shift_error_angstrom"] <= known["shift_error_bound_angstrom"]
        rows.append((f"{nominal} bound on the shift", "all", percent(shifts_within.mean())))
    source, median = str(known["source"]), degrees(float(np.median(known["error_deg"])))
    return Table("Coverage of the error bounds", f"Empirical coverage: the fraction of {source} whose true error is within "
                 "the bound. It should match the nominal coverage of the bound; in small groups, differences of a few "
                 "per cent are chance. The lowest of several groups is low by chance alone: if every group had the nominal "
                 "coverage, the lowest would be at or above the value in brackets in at least 95 of 100 runs. The median "
                 f"true error is {median}.",
                 ("error bound", "particles", "empirical coverage"), tuple(rows))


def _coverage(files: RunFiles) -> list[tuple[float, float]]:
    """Nominal and empirical coverage of calibration.csv."""
    columns = files.csv_columns(files.run.calibration_table.name) or {}
    # the second names are those of earlier versions
    nominal, empirical = (columns.get(name, columns.get(earlier, ())) for name, earlier in (
        ("nominal_coverage", "promised_fraction"), ("empirical_coverage", "held_fraction")))
    return list(zip(nominal, empirical, strict=True))


def _by_viewing_direction(within: np.ndarray, view_direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Size and empirical coverage of each group of viewing directions that has at least ``MIN_IN_GROUP`` particles."""
    group = (view_direction @ even_directions(N_GROUPS).T).argmax(axis=1)
    groups = [found for found in (within[group == number] for number in range(N_GROUPS)) if len(found) >= MIN_IN_GROUP]
    return np.array([len(found) for found in groups], dtype=int), np.array([found.mean() for found in groups])
