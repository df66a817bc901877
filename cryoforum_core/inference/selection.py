"""Which particles to keep, and for each of the others the reason why not."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..particles.dataset import PARTICLE_ID_COLUMNS
from ..particles.image_stack import save_table
from ..particles.table import ParticleTable
from ..run_directory import RunDirectory
from .measures import MEASURES, Measure
from .populations import find_valley

REASON_COLUMN = "rlnCryoforumReason"


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows kept and rejected, both ascending; ``reason`` and ``rule`` have one entry per rejected row.

    A rule is what many rows share (``match-score<-4.1``), a reason adds the row's value (``match-score=-9<-4.1``).
    Neither holds a blank, so that every STAR reader takes it as one value.
    """

    measure: Measure
    kept: np.ndarray
    rejected: np.ndarray
    reason: np.ndarray
    rule: np.ndarray
    threshold: float | None
    """Value of the measure on the border; None where everything is kept."""
    explanation: str
    """One sentence: how the border came about."""

    def summary(self) -> dict:
        """What ``summary.json`` says."""
        return {"n_selected": len(self.kept), "n_rejected": len(self.rejected),
                "reasons": dict(Counter(self.rule.tolist())), "measure": self.measure.name,
                "column": self.measure.column, "threshold": self.threshold, "explanation": self.explanation}


def select(measures: Mapping[str, np.ndarray], measure: str = "auto", *, keep_fraction: float | None = None,
           keep_count: int | None = None, threshold: float | None = None, max_error_deg: float | None = None
           ) -> Selection:
    """Chooses rows by one criterion, or by two limits together (``threshold`` and ``max_error_deg``).

    measures: (n,) each, by the names of ``MEASURES``. ``auto`` is the match score where there is one, else the
    expected error. keep_fraction and keep_count keep exactly so many, of equal values the earlier rows. threshold is
    the worst value kept. Without a criterion the measure's own distribution decides (``find_valley``): where it is no
    two populations, everything is kept. Rows whose measure is not finite are always rejected.

    Raises InputError where the measure is missing, criteria contradict each other, or nothing would be kept.
    """
    chosen = _chosen_measure(measures, measure, keep_fraction, keep_count, threshold, max_error_deg)
    values = np.asarray(measures[chosen.name], dtype=np.float64)
    if keep_fraction is not None or keep_count is not None:
        return _by_count(chosen, values, keep_fraction, keep_count)
    if threshold is None and max_error_deg is None:
        return _by_populations(chosen, values)
    limits = [(chosen, values, threshold)] if threshold is not None else []
    if max_error_deg is not None:
        limits.append((MEASURES["expected-error"], measures["expected-error"], max_error_deg))
    explanation = "Kept by " + " and ".join(
        f"{m.label} of at {'least' if m.higher_is_better else 'most'} {m.text(limit)}" for m, _, limit in limits) + "."
    return _by_limits(limits, explanation)


def _chosen_measure(measures: Mapping[str, np.ndarray], name: str, keep_fraction: float | None, keep_count: int | None,
                    threshold: float | None, max_error_deg: float | None) -> Measure:
    given = [flag for flag, value in (("--keep-fraction", keep_fraction), ("--keep-count", keep_count),
                                      ("--threshold", threshold)) if value is not None]
    problems = []
    if max_error_deg is not None and given != ["--threshold"]:
        given.append("--max-error-deg")
    if len(given) > 1:
        problems.append("Particles are chosen by one criterion, or by --threshold and --max-error-deg together; "
                        f"{' and '.join(given)} were given. Leave out all but one.")
    if name == "auto":
        name = "match-score" if "match-score" in measures and max_error_deg is None else "expected-error"
        if threshold is not None:
            problems.append("A threshold belongs to one measure, and none was named. Add --measure, one of "
                            f"{', '.join(measures)}.")
    elif name == "expected-error" and threshold is not None and max_error_deg is not None:
        problems.append("--max-error-deg and a --threshold on the expected error are the same limit, and both were "
                        "given. Leave out one.")
    wanted = {name, "expected-error"} if max_error_deg is not None else {name}
    problems += [f"The run must have the measure {missing}; it has {', '.join(measures)}. Choose one of these, or run "
                 "predict with --refinement local or adaptive." for missing in sorted(wanted - set(measures))]
    if problems:
        raise InputError(problems)
    return MEASURES[name]


def _by_count(measure: Measure, values: np.ndarray, keep_fraction: float | None, keep_count: int | None) -> Selection:
    n_finite = int(np.isfinite(values).sum())
    count = keep_count if keep_count is not None else int(round(keep_fraction * len(values)))
    if not 0 < count <= n_finite:
        flag = "--keep-count" if keep_count is not None else "--keep-fraction"
        raise InputError(f"The number of particles to keep must be 1 to {n_finite}, those that have a finite "
                         f"{measure.label}; {flag} asks for {count}. Choose another {flag}.")
    order = best_first(measure, values)
    is_kept = np.zeros(len(values), dtype=bool)
    is_kept[order[:count]] = True
    explanation = f"Kept the best {count:,} of {len(values):,} particles by {measure.label}."
    return _selection(measure, [(measure, values, float(values[order[count - 1]]))], is_kept, explanation)


def best_first(measure: Measure, values: np.ndarray) -> np.ndarray:
    """Rows (n,) from the best value to the worst; of equal values the earlier row first, what is not finite last."""
    return np.argsort(-np.where(np.isfinite(values), measure.quality(values), -np.inf), kind="stable")


def _by_populations(measure: Measure, values: np.ndarray) -> Selection:
    finite = np.isfinite(values)
    valley = find_valley(measure.quality(measure.scale(values[finite])))
    limit = measure.usual_limit
    if valley is None and limit is not None and (measure.quality(values[finite]) < measure.quality(limit)).any():
        # junk of several kinds is no second hill, but a usual particle does not look like it
        explanation = (f"The {measure.label} shows no two populations; kept is what is not worse than "
                       f"{measure.text(limit)}, which a usual particle hardly ever is.")
        return _by_limits([(measure, values, limit)], explanation)
    if valley is None:
        explanation = f"The {measure.label} shows one population, so no particle was rejected for it."
        return _by_limits([(measure, values, None)], explanation)
    threshold = float(measure.unscale(measure.quality(valley)))
    explanation = (f"The {measure.label} shows two populations; the border between them is "
                   f"{measure.text(threshold)}.")
    return _by_limits([(measure, values, threshold)], explanation)


def _by_limits(limits: list[tuple[Measure, np.ndarray, float | None]], explanation: str) -> Selection:
    is_kept = np.ones(len(limits[0][1]), dtype=bool)
    for measure, values, limit in limits:
        is_kept &= np.isfinite(values)
        if limit is not None:
            is_kept &= measure.quality(values) >= measure.quality(limit)
    if not is_kept.any():
        best = ", ".join(f"the best {m.label} is {m.text(_best(m, values))}" for m, values, _ in limits)
        raise InputError(f"A selection must keep at least one particle, and this one keeps none; {best}. "
                         "Relax the limit.")
    return _selection(limits[0][0], limits, is_kept, explanation)


def _best(measure: Measure, values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan")
    return float(finite.max() if measure.higher_is_better else finite.min())


def _selection(measure: Measure, limits: list[tuple[Measure, np.ndarray, float | None]], is_kept: np.ndarray,
               explanation: str) -> Selection:
    rejected = np.flatnonzero(~is_kept)
    pairs = [_why(limits, row) for row in rejected]
    rule, reason = (np.array(column, dtype=str) for column in (zip(*pairs) if pairs else ((), ())))
    return Selection(measure, np.flatnonzero(is_kept), rejected, reason, rule, limits[0][2], explanation)


def _why(limits: list[tuple[Measure, np.ndarray, float | None]], row: int) -> tuple[str, str]:
    """Rule and reason of the first limit that the row breaks; what breaks none only ties with the last one kept."""
    for measure, values, limit in limits:
        value = values[row]
        if not np.isfinite(value):
            return (f"{measure.name}-not-finite",) * 2
        if limit is not None and measure.quality(value) < measure.quality(limit):
            border = f"{'<' if measure.higher_is_better else '>'}{limit:.4g}"
            return f"{measure.name}{border}", f"{measure.name}={value:.4g}{border}"
    return f"{measure.name}-tied-beyond-count", f"{measure.name}={value:.4g}-tied-beyond-count"


def write_selection(selection: Selection, measures: Mapping[str, np.ndarray], particle_id: np.ndarray,
                    table: ParticleTable, run: RunDirectory) -> None:
    """Writes ``selected.star`` and ``rejected.star``: the table's rows with all their columns, and every measure.

    measures and particle_id: (n,) of the run of predict. Rows are found by particle id, and stay in the table's order;
    the rejected ones also say why. Raises InputError where the table and the measures are not of the same particles.
    """
    row_of = rows_by_id(table, particle_id)
    for path, members, more in ((run.selected, selection.kept, {}),
                                (run.rejected, selection.rejected, {REASON_COLUMN: selection.reason})):
        order = np.argsort(row_of[members], kind="stable")
        columns = {MEASURES[name].column: values[members][order] for name, values in measures.items()}
        columns |= {name: values[order] for name, values in more.items()}
        save_table(table.subset(row_of[members][order]).with_columns(columns), path)


def rows_by_id(table: ParticleTable, particle_id: np.ndarray) -> np.ndarray:
    """Row of the table for each id (n,)."""
    column = next((column for column in PARTICLE_ID_COLUMNS if column in table.names), None)
    ids = np.arange(1, len(table) + 1) if column is None else table.integers(column)
    row_of = {int(id_): row for row, id_ in enumerate(ids)}
    missing = [str(id_) for id_ in particle_id if int(id_) not in row_of]
    if missing or len(row_of) != len(particle_id):
        listed = f"; particles without a row: {', '.join(missing[:10])}" if missing else ""
        raise InputError(f"The table and the orientations of a run must be of the same particles; {table.path} has "
                         f"{len(row_of)} and the orientations {len(particle_id)}{listed}. Run predict again.")
    return np.array([row_of[int(id_)] for id_ in particle_id], dtype=np.int64)
