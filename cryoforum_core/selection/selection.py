"""Which particles to keep, and for each of the others the reason why not."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..catalogue import (
    AMBIGUOUS,
    BEYOND_LIMIT,
    ERROR_BOUND,
    EXPECTED_ERROR,
    MATCH_SCORE,
    MEASURES,
    PARTICLE_PROBABILITY,
    Measure,
)
from ..errors import InputError
from ..junk.rejection import ImageLabels, alternative_columns, recentred
from ..junk.view_cones import N_CONES, protected_best, quotas, shares
from ..particles.dataset import PARTICLE_ID_COLUMNS
from ..particles.image_stack import save_table
from ..particles.table import ParticleTable
from ..problems import Problems
from ..results.star_columns import REASON_COLUMN
from ..run_directory import RunDirectory
from .bimodality import find_valley
from .measures import scaled, unscaled

# measures of which a limit was broken where a rule starts with their name
_ERRORS = (EXPECTED_ERROR, ERROR_BOUND)


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows kept and rejected, both ascending; ``reason`` and ``rule`` have one entry per rejected row.

    A rule is what many rows share (``match-score<-4.1``), a reason adds the row's value (``match-score=-9<-4.1``).
    Where the images have labels, both are what the image is (``overlapping-neighbour``), or ``error-beyond-limit``,
    or ``ambiguous-orientation`` where another orientation is why. None holds a blank, so that every STAR reader takes
    it as one value.
    """

    measure: Measure
    kept: Int[np.ndarray, " k"]
    rejected: Int[np.ndarray, " r"]
    reason: Shaped[np.ndarray, " r"]
    rule: Shaped[np.ndarray, " r"]
    threshold: float | None
    """Value of the measure on the border; None where everything is kept."""
    explanation: str
    """One sentence: how the border came about."""
    cones: dict[str, list[float]] | None = None
    """``view_cones.shares`` of this selection, where the images have labels."""
    n_short: int | None = None
    """How many particles the cones lack to lose no more than the share of junk found in each."""

    def summary(self) -> dict:
        """What ``summary.json`` says."""
        return {"n_selected": len(self.kept), "n_rejected": len(self.rejected),
                "reasons": dict(Counter(self.rule.tolist())), "measure": self.measure.name,
                "column": self.measure.column, "threshold": self.threshold, "explanation": self.explanation,
                **({} if self.cones is None else {"n_short_of_view_shares": self.n_short,
                                                  "view_cone_percent": self.cones})}


def select(measures: Mapping[str, Float[np.ndarray, " n"]], measure: str = "auto", *, keep_fraction: float | None = None,
           keep_count: int | None = None, threshold: float | None = None, max_error_deg: float | None = None,
           labels: ImageLabels | None = None, protect_views: bool = True) -> Selection:
    """Chooses rows by one criterion, or by two limits together (``threshold`` and ``max_error_deg``).

    measures: by the names of ``MEASURES``. ``auto`` is the particle probability, else the match
    score, else the expected error: the first that the run has. keep_fraction and keep_count keep exactly so many, of
    equal values the earlier rows. threshold is the worst value kept. Without a criterion particles
    with a probability below 0.5 are rejected; other measures are divided where they are bimodal (``find_valley``), else
    everything is kept. Rows whose measure is not finite are always rejected.

    labels: of the rows, and which of them are rejected (``ImageLabels.rejecting``): those are, without a criterion and
    beside a limit of errors; other kinds of junk are kept. ``protect_views``: no view cone's share falls by more than the
    share of junk found in it. The probability needs no protection: each image is classified by itself. By count, a
    cone's best particles come before better ones of other cones; from beyond a valley they come back. A limit that was
    given is meant: nothing beyond it is kept for its viewing direction.

    Raises InputError where the measure is missing, criteria contradict each other, or nothing would be kept.
    """
    chosen = _chosen_measure(measures, measure, keep_fraction, keep_count, threshold, max_error_deg)
    values = np.asarray(ranking_measures(measures, labels)[chosen.name], dtype=np.float64)
    protected = labels if protect_views else None
    if keep_fraction is not None or keep_count is not None:
        selection = _by_count(chosen, values, keep_fraction, keep_count, protected)
    elif threshold is None and max_error_deg is None:
        selection = _by_populations(chosen, values, protected)
    else:
        selection = _by_given_limits(chosen, values, measures, threshold, max_error_deg, labels)
    if labels is None:
        return selection
    if AMBIGUOUS in labels.rejected_reasons and chosen.name == PARTICLE_PROBABILITY:
        selection = replace(selection, explanation=selection.explanation + " Ambiguous orientations count as junk.")
    return _with_labels(selection, labels)


def best_with_rare_views(measures: Mapping[str, Float[np.ndarray, " n"]], name: str, n_kept: int,
                         labels: ImageLabels | None, protect_views: bool = True) -> tuple[Selection, int]:
    """The ``n_kept`` best by one of ``measures`` as ``ranking_measures`` gives them (of equal values the earlier rows) and,
    with ``protect_views``, those beyond whose view's share would fall by more than the share of junk found in it; and how
    many these are."""
    selection = select(measures, name, keep_count=n_kept)
    if labels is None:
        return selection, 0
    is_kept = np.isin(np.arange(len(labels.reason)), selection.kept)
    if protect_views:
        is_kept = _restored(is_kept, MEASURES[name].quality(measures[name]), labels)
    stays = ~is_kept[selection.rejected]
    n_restored = int((~stays).sum())
    selection = replace(selection, kept=np.flatnonzero(is_kept), rejected=selection.rejected[stays],
                        reason=selection.reason[stays], rule=selection.rule[stays])
    return _with_labels(selection, labels), n_restored


def ranking_measures(measures: Mapping[str, Float[np.ndarray, " n"]], labels: ImageLabels | None
                     ) -> dict[str, Float[np.ndarray, " n"]]:
    """Measures by which to rank: junk of a kind that does not matter is as good as a particle, and a particle whose
    ambiguous orientation does is as bad as junk."""
    if labels is None or PARTICLE_PROBABILITY not in measures:
        return dict(measures)
    unwanted = labels.is_rejected & (labels.reason == AMBIGUOUS)
    return dict(measures) | {PARTICLE_PROBABILITY: np.select([labels.is_accepted_junk, unwanted], [1.0, 0.0],
                                                             measures[PARTICLE_PROBABILITY])}


def _by_given_limits(chosen: Measure, values: np.ndarray, measures: Mapping[str, np.ndarray], threshold: float | None,
                     max_error_deg: float | None, labels: ImageLabels | None) -> Selection:
    limits = [(chosen, values, threshold)] if threshold is not None else []
    if max_error_deg is not None:
        limits.append((MEASURES[EXPECTED_ERROR], measures[EXPECTED_ERROR], max_error_deg))
    explanation = "Kept by " + " and ".join(
        f"{m.label} of at {'least' if m.higher_is_better else 'most'} {m.text(limit)}" for m, _, limit in limits)
    # a limit of the probability itself says what is junk enough
    errors_matter = max_error_deg is not None or chosen.name in _ERRORS
    is_own_limit = chosen.name == PARTICLE_PROBABILITY and threshold is not None
    if errors_matter and not is_own_limit and labels is not None and labels.rejected_reasons:
        # overlapping particles are junk with the right orientation
        limits.append((MEASURES[PARTICLE_PROBABILITY], np.where(labels.is_rejected, 0.0, 1.0), 0.5))
        explanation += ", without images identified as junk"
    explanation += "."
    return _by_limits(limits, explanation)


def _chosen_measure(measures: Mapping[str, np.ndarray], name: str, keep_fraction: float | None, keep_count: int | None,
                    threshold: float | None, max_error_deg: float | None) -> Measure:
    given = [flag for flag, value in (("--keep-fraction", keep_fraction), ("--keep-count", keep_count),
                                      ("--threshold", threshold)) if value is not None]
    with Problems() as problems:
        if max_error_deg is not None and given != ["--threshold"]:
            given.append("--max-error-deg")
        if len(given) > 1:
            problems.append("Particles are chosen by one criterion, or by --threshold and --max-error-deg together; "
                            f"{' and '.join(given)} were given. Leave out all but one.")
        if name == "auto":
            name = EXPECTED_ERROR if max_error_deg is not None else next(
                (each for each in (PARTICLE_PROBABILITY, MATCH_SCORE) if each in measures), EXPECTED_ERROR)
            if threshold is not None:
                problems.append("A threshold belongs to one measure, and none was named. Add --measure, one of "
                                f"{', '.join(measures)}.")
        elif name == EXPECTED_ERROR and threshold is not None and max_error_deg is not None:
            problems.append("--max-error-deg and a --threshold on the expected error are the same limit, and both were "
                            "given. Leave out one.")
        wanted = {name, EXPECTED_ERROR} if max_error_deg is not None else {name}
        problems.extend(f"The run must have the measure {missing}; it has {', '.join(measures)}. Choose one of these, or "
                        "run predict with --refinement local or adaptive." for missing in sorted(wanted - set(measures)))
    return MEASURES[name]


def _by_count(measure: Measure, values: np.ndarray, keep_fraction: float | None, keep_count: int | None,
              protected: ImageLabels | None) -> Selection:
    n_finite = int(np.isfinite(values).sum())
    count = keep_count if keep_count is not None else int(round(keep_fraction * len(values)))
    if not 0 < count <= n_finite:
        flag = "--keep-count" if keep_count is not None else "--keep-fraction"
        raise InputError(f"The number of particles to keep must be 1 to {n_finite}, those that have a finite "
                         f"{measure.label}; {flag} asks for {count}. Choose another {flag}.")
    quality = np.where(np.isfinite(values), measure.quality(values), -np.inf)
    order = best_first(measure, values)
    is_kept = np.zeros(len(values), dtype=bool)
    is_kept[order[:count]] = True
    explanation = f"Kept the best {count:,} of {len(values):,} particles by {measure.label}"
    if protected is not None:
        is_best, is_kept = is_kept, protected_best(quality, protected.cone, protected.is_rejected, count)
        explanation += f", {(is_kept & ~is_best).sum():,} of them to protect their viewing directions"
    explanation += "."
    return _selection(measure, [(measure, values, float(values[order[count - 1]]))], is_kept, explanation)


def best_first(measure: Measure, values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Rows from the best value to the worst; of equal values the earlier row first, what is not finite last."""
    return np.argsort(-np.where(np.isfinite(values), measure.quality(values), -np.inf), kind="stable")


def _by_populations(measure: Measure, values: np.ndarray, protected: ImageLabels | None) -> Selection:
    if measure.own_limit is not None:
        explanation = f"Rejected: images with a {measure.label} below 0.5."
        return _by_limits([(measure, values, measure.own_limit)], explanation)
    finite = np.isfinite(values)
    valley = find_valley(measure.quality(scaled(measure, values[finite])))
    limit = measure.usual_limit
    if valley is None and limit is not None and (measure.quality(values[finite]) < measure.quality(limit)).any():
        # junk of several kinds is no second hill, but a usual particle does not look like it
        explanation = (f"The {measure.label} is not bimodal; particles below {measure.text(limit)}, where good "
                       "particles are very rare, were rejected.")
        return _by_limits([(measure, values, limit)], explanation, protected)
    if valley is None:
        explanation = f"The {measure.label} shows one population, so no particle was rejected by it."
        return _by_limits([(measure, values, None)], explanation)
    threshold = float(unscaled(measure, measure.quality(valley)))
    explanation = (f"The {measure.label} is bimodal; the valley between the two populations is at "
                   f"{measure.text(threshold)}.")
    return _by_limits([(measure, values, threshold)], explanation, protected)


def _by_limits(limits: list[tuple[Measure, np.ndarray, float | None]], explanation: str,
               protected: ImageLabels | None = None) -> Selection:
    is_kept = np.ones(len(limits[0][1]), dtype=bool)
    for measure, values, limit in limits:
        is_kept &= np.isfinite(values)
        if limit is not None:
            is_kept &= measure.quality(values) >= measure.quality(limit)
    if not is_kept.any():
        best = ", ".join(f"the best {m.label} is {m.text(_best(m, values))}" for m, values, _ in limits)
        raise InputError(f"A selection must keep at least one particle, and this one keeps none; {best}. "
                         "Relax the limit.")
    if protected is not None:
        measure, values, _ = limits[0]
        within, is_kept = is_kept, _restored(is_kept, measure.quality(values), protected)
        if n_restored := int((is_kept & ~within).sum()):
            explanation += f" {n_restored:,} particles beyond it were kept to protect their viewing directions."
    return _selection(limits[0][0], limits, is_kept, explanation)


def _restored(is_kept: np.ndarray, quality: np.ndarray, labels: ImageLabels) -> np.ndarray:
    """bool (n,): also the best of cones whose share would fall by more than the share of their junk."""
    is_kept, may_return = is_kept.copy(), ~labels.is_rejected & np.isfinite(quality)
    order = np.argsort(-np.where(np.isfinite(quality), quality, -np.inf), kind="stable")
    before = -1
    # what comes back raises the number kept, and so the quotas; they never ask for more than there is
    while before != (before := int(is_kept.sum())):
        for cone, quota in enumerate(quotas(labels.cone, labels.is_rejected, before)):
            missing = quota - int((is_kept & (labels.cone == cone)).sum())
            candidates = order[(labels.cone[order] == cone) & may_return[order] & ~is_kept[order]]
            is_kept[candidates[:max(missing, 0)]] = True
    return is_kept


def _with_labels(selection: Selection, labels: ImageLabels) -> Selection:
    """With the labels of images as reasons, and the shares of the cones of viewing directions."""
    reason, rule = selection.reason.astype(object), selection.rule.astype(object)
    for place, row in enumerate(selection.rejected):
        if labels.is_rejected[row]:
            reason[place] = rule[place] = str(labels.reason[row])
        elif rule[place].startswith(_ERRORS) and not rule[place].endswith("not-finite"):
            reason[place] = rule[place] = AMBIGUOUS if labels.reason[row] == AMBIGUOUS else BEYOND_LIMIT
    is_kept = np.isin(np.arange(len(labels.reason)), selection.kept)
    missing = quotas(labels.cone, labels.is_rejected, len(selection.kept)) - np.bincount(labels.cone[is_kept],
                                                                                   minlength=N_CONES)
    explanation, n_junk = selection.explanation, int(labels.is_rejected[selection.kept].sum())
    if n_junk and selection.measure.name != PARTICLE_PROBABILITY:
        label = MEASURES[PARTICLE_PROBABILITY].label
        explanation += (f" {n_junk:,} of the kept images were identified as junk; a selection by the {label}, or by a limit "
                        "on the errors alone, rejects them.")
    return replace(selection, reason=reason.astype(str), rule=rule.astype(str), explanation=explanation,
                   cones=shares(labels.cone, is_kept, labels.is_rejected), n_short=int(missing.clip(0).sum()))


def _best(measure: Measure, values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan")
    return float(finite.max() if measure.higher_is_better else finite.min())


def _selection(measure: Measure, limits: list[tuple[Measure, np.ndarray, float | None]], is_kept: np.ndarray,
               explanation: str) -> Selection:
    rejected = np.flatnonzero(~is_kept)
    pairs = [_why(limits, row) for row in rejected.tolist()]
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


def write_selection(selection: Selection, measures: Mapping[str, Float[np.ndarray, " n"]],
                    particle_id: Int[np.ndarray, " n"], table: ParticleTable, run: RunDirectory,
                    labels: ImageLabels | None = None) -> None:
    """Writes ``selected.star`` and ``rejected.star``: the table's rows with all their columns, and every measure.

    measures and particle_id: of the run of predict. Rows are found by particle id, and stay in the table's order;
    the rejected ones also say why, and those of ambiguous orientation the other one. ``recentre.star``, where some
    were rejected as off-centre: these, with the origins that recentre them, to be extracted again. Raises InputError
    where the table and the measures are not of the same particles.
    """
    row_of = rows_by_id(table, particle_id)
    reason = dict(zip(selection.rejected.tolist(), selection.reason.tolist(), strict=True))
    more = {} if labels is None else alternative_columns(labels, selection.rejected[selection.reason == AMBIGUOUS])
    for path, rows, is_rejected in ((run.selected, selection.kept, False), (run.rejected, selection.rejected, True)):
        rows = rows[np.argsort(row_of[rows], kind="stable")]
        columns = {MEASURES[name].column: values[rows] for name, values in measures.items()}
        if is_rejected:
            columns |= {REASON_COLUMN: np.array([reason[row] for row in rows.tolist()], dtype=str)}
            columns |= {name: values[rows] for name, values in more.items()}
        save_table(table.subset(row_of[rows]).with_columns(columns), path)
    if labels is not None and (far := labels.recentrable(selection.rejected)).size:
        far = far[np.argsort(row_of[far], kind="stable")]
        save_table(recentred(table.subset(row_of[far]), labels.recentre_shift_angstrom[far]), run.recentre)


def rows_by_id(table: ParticleTable, particle_id: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Row of the table for each id."""
    column = next((column for column in PARTICLE_ID_COLUMNS if column in table.names), None)
    ids = np.arange(1, len(table) + 1) if column is None else table.integers(column)
    row_of = {int(id_): row for row, id_ in enumerate(ids)}
    missing = [str(id_) for id_ in particle_id if int(id_) not in row_of]
    if missing or len(row_of) != len(particle_id):
        listed = f"; particles without a row: {', '.join(missing[:10])}" if missing else ""
        raise InputError(f"The table and the orientations of a run must be of the same particles; {table.path} has "
                         f"{len(row_of)} and the orientations {len(particle_id)}{listed}. Run predict again.")
    return np.array([row_of[int(id_)] for id_ in particle_id], dtype=np.int64)
