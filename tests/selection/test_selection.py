"""Selection: every criterion on small sets whose answer is plain, and the default on simulated scores."""

from dataclasses import replace

import numpy as np
import pytest

from cryoforum_core.errors import InputError
from cryoforum_core.junk.rejection import ImageLabels
from cryoforum_core.particles.star import read_star
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.run_directory import RunDirectory
from cryoforum_core.selection.measures import MEASURES, measures_of
from cryoforum_core.selection.selection import REASON_COLUMN, best_with_rare_views, select, write_selection

from .labelled_views import labelled_views

SCORE = np.array([0.30, 0.10, 0.25, 0.25, 0.40, 0.25])
ERROR = np.array([3.0, 40.0, 5.0, 6.0, 1.0, 20.0])
MEASURED = {"match-score": SCORE, "expected-error": ERROR}


def test_count_keeps_exactly_so_many_and_the_earlier_of_equals():
    selection = select(MEASURED, "match-score", keep_count=3)
    assert selection.kept.tolist() == [0, 2, 4]
    assert selection.rejected.tolist() == [1, 3, 5]
    assert selection.reason.tolist() == ["match-score=0.1<0.25", "match-score=0.25-tied-beyond-count",
                                         "match-score=0.25-tied-beyond-count"]
    assert selection.summary()["reasons"] == {"match-score<0.25": 1, "match-score-tied-beyond-count": 2}


def test_fraction_of_a_measure_that_is_better_when_lower():
    selection = select(MEASURED, "expected-error", keep_fraction=0.5)
    assert selection.kept.tolist() == [0, 2, 4]
    assert selection.reason.tolist() == ["expected-error=40>5", "expected-error=6>5", "expected-error=20>5"]
    assert selection.threshold == 5


def test_fraction_one_keeps_all_and_rejects_without_reasons():
    selection = select(MEASURED, "match-score", keep_fraction=1.0)
    assert len(selection.kept) == 6
    assert selection.summary()["n_rejected"] == 0 and selection.summary()["reasons"] == {}


def test_threshold_is_the_worst_value_kept():
    assert select(MEASURED, "match-score", threshold=0.25).kept.tolist() == [0, 2, 3, 4, 5]
    assert select(MEASURED, "expected-error", threshold=6.0).kept.tolist() == [0, 2, 3, 4]


def test_largest_error_alone_and_together_with_a_threshold():
    assert select(MEASURED, max_error_deg=5.0).kept.tolist() == [0, 2, 4]
    both = select(MEASURED, "match-score", threshold=0.26, max_error_deg=2.0)
    assert both.kept.tolist() == [4]
    assert both.summary()["reasons"] == {"match-score<0.26": 4, "expected-error>2": 1}
    assert both.reason[0] == "expected-error=3>2"


def test_a_largest_error_leaves_out_junk_beside_any_measure_but_a_limit_of_the_probability_is_its_own():
    reason = np.array(["none", "overlapping-neighbour", "none"])
    labels = ImageLabels(reason, np.zeros(3, dtype=int), np.full((3, 2), np.nan), np.full((3, 4), np.nan))
    measures = {"match-score": np.array([0.0, 0.0, 0.0]), "expected-error": np.array([1.0, 1.0, 9.0]),
                "particle-probability": np.array([1.0, 0.3, 1.0])}
    for options, kept in (({"measure": "match-score", "threshold": -4.0}, [0]), ({}, [0]),
                          ({"measure": "particle-probability"}, [0]),
                          ({"measure": "particle-probability", "threshold": 0.2}, [0, 1])):
        assert select(measures, **options, max_error_deg=5.0, labels=labels).kept.tolist() == kept


@pytest.mark.parametrize("criteria", [
    {"keep_fraction": 0.5, "keep_count": 3}, {"keep_count": 3, "threshold": 0.2},
    {"keep_fraction": 0.5, "max_error_deg": 5.0}, {"keep_fraction": 0.5, "threshold": 0.2, "max_error_deg": 5.0}])
def test_criteria_that_contradict_each_other_are_named(criteria):
    with pytest.raises(InputError) as caught:
        select(MEASURED, "match-score", **criteria)
    for name in criteria:
        assert f"--{name.replace('_', '-')}" in str(caught.value)


def test_one_limit_given_twice_and_threshold_without_a_measure():
    with pytest.raises(InputError, match="same limit"):
        select(MEASURED, "expected-error", threshold=3.0, max_error_deg=2.0)
    with pytest.raises(InputError, match="Add --measure"):
        select(MEASURED, threshold=0.2)


def test_missing_measure_names_those_there_are_and_all_problems_come_at_once():
    with pytest.raises(InputError) as caught:
        select({"expected-error": ERROR}, "match-score", keep_count=2, keep_fraction=0.5)
    assert len(caught.value.problems) == 2
    assert "it has expected-error" in str(caught.value)


@pytest.mark.parametrize("criteria", [{"keep_fraction": 0.0}, {"keep_count": 7}])
def test_impossible_count(criteria):
    with pytest.raises(InputError, match="must be 1 to 6"):
        select(MEASURED, "match-score", **criteria)


def test_a_limit_that_keeps_nothing_says_what_the_best_is():
    with pytest.raises(InputError, match="best expected error is 1 degrees"):
        select(MEASURED, max_error_deg=0.5)


def test_values_that_are_not_finite_are_rejected_first_under_every_criterion():
    score = np.array([np.nan, 0.2, -np.inf, 0.3, 0.1])
    for criteria in ({"keep_count": 3}, {"threshold": 0.0}, {}):
        selection = select({"match-score": score}, "match-score", **criteria)
        assert selection.kept.tolist() == [1, 3, 4]
        assert set(selection.rule) == {"match-score-not-finite"}
    with pytest.raises(InputError, match="1 to 3"):
        select({"match-score": score}, "match-score", keep_count=4)


# -- the default: the distribution decides

def clean_scores(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    return {"normal": lambda: rng.normal(0.3, 0.04, n), "skewed": lambda: 0.4 - rng.gamma(2, 0.04, n),
            "heavy tails": lambda: 0.3 + 0.04 * rng.standard_t(4, n), "bounded": lambda: rng.beta(5, 2, n),
            "by defocus": lambda: 0.3 * np.sqrt(rng.uniform(0.3, 1, n)) + rng.normal(0, 0.03, n)}[kind]()


@pytest.mark.parametrize("kind", ["normal", "skewed", "heavy tails", "bounded", "by defocus"])
def test_default_leaves_one_population_alone(kind):
    rng = np.random.default_rng(1)
    for n in (50, 300, 2000, 10000):
        for _ in range(10):
            selection = select({"match-score": clean_scores(kind, n, rng)})
            assert len(selection.rejected) <= 0.02 * n
            if not len(selection.rejected):
                assert "one population" in selection.explanation and selection.threshold is None


@pytest.mark.parametrize(("n", "junk_fraction"), [(400, 0.15), (2000, 0.05), (2000, 0.15), (2000, 0.4)])
def test_default_parts_two_populations(n, junk_fraction):
    rng = np.random.default_rng(2)
    n_junk = int(junk_fraction * n)
    for _ in range(10):
        score = np.r_[rng.normal(0.06, 0.04, n_junk), rng.normal(0.3, 0.04, n - n_junk)]
        selection = select({"match-score": score})
        assert (selection.rejected < n_junk).sum() >= 0.95 * n_junk
        assert (selection.rejected >= n_junk).sum() <= 0.01 * n
        assert "two populations" in selection.explanation
        assert selection.reason[0].endswith(f"<{selection.threshold:.4g}")


def test_default_finds_five_kinds_of_junk_with_scores_of_their_own():
    rng, n, n_kind = np.random.default_rng(3), 3000, 90
    kinds = [(0.0, 1e-4), (0.06, 0.012), (0.08, 0.02), (0.15, 0.03), (0.2, 0.04)]
    score = np.concatenate([rng.normal(mean, sd, n_kind) for mean, sd in kinds]
                           + [rng.normal(0.3, 0.04, n - 5 * n_kind)])
    rejected = select({"match-score": score}).rejected
    found = [((rejected >= i * n_kind) & (rejected < (i + 1) * n_kind)).sum() / n_kind for i in range(5)]
    assert min(found[:3]) > 0.99  # far from the particles
    assert found[3] > 0.5  # a shoulder of them
    assert (rejected >= 5 * n_kind).sum() < 0.02 * n


def test_default_never_rejects_more_than_half_and_is_not_moved_by_an_outlier():
    rng = np.random.default_rng(4)
    most_is_junk = np.r_[rng.normal(0.06, 0.03, 700), rng.normal(0.3, 0.03, 300)]
    assert len(select({"match-score": most_is_junk}).rejected) == 0
    with_outlier = np.r_[-1e6, rng.normal(0.06, 0.03, 200), rng.normal(0.3, 0.03, 800)]
    assert len(select({"match-score": with_outlier}).rejected) == pytest.approx(201, abs=4)


@pytest.mark.parametrize("scores", [[0.3], [0.3, 0.3, 0.3], [0.1, 0.9]])
def test_default_keeps_tiny_and_constant_sets(scores):
    assert len(select({"match-score": np.array(scores)}).kept) == len(scores)


@pytest.mark.parametrize("name", ["expected-error", "error-bound", "dispersion-max", "dispersion-trace",
                                  "dispersion-wigner"])
def test_default_works_for_every_measure_of_the_posterior(name):
    """Particles with errors of some 2 degrees, misassigned ones of some 60: factors apart, not degrees."""
    rng = np.random.default_rng(5)
    precision = np.r_[np.exp(rng.normal(np.log(2.0), 0.4, 300)), np.exp(rng.normal(np.log(2000.0), 0.5, 1700))]
    error = np.rad2deg(np.sqrt(3 / precision))
    ascending = precision[:, None] * np.array([0.0, 1.0, 1.4, 2.0])
    arrays = {"eigenvalues": ascending, "expected_error_deg": error, "error_bound_deg": 2 * error}
    measures = measures_of(PoseResults.from_arrays(arrays))
    selection = select(measures, name)
    assert (selection.rejected < 300).sum() >= 295 and len(selection.rejected) <= 310
    kept_worst = MEASURES[name].quality(measures[name][selection.kept]).min()
    assert kept_worst >= MEASURES[name].quality(selection.threshold)


# -- files

@pytest.fixture
def predicted():
    """A table with ids out of order, an optics block and a column of nobody's; posterior rows in another order."""
    ids = np.array([7, 3, 9, 4, 1, 8])
    table = ParticleTable.from_columns(
        {"rlnImageName": [f"{i:06d}@stack.mrcs" for i in range(1, 7)], "rlnParticleId": ids,
         "rlnOpticsGroup": [1] * 6, "labNote": ["keep me", "b", "c", "d", "e", "f"]},
        optics={"rlnOpticsGroup": [1], "rlnVoltage": [300]})
    order = np.array([5, 4, 3, 2, 1, 0])
    return table, ids[order], {name: values[order] for name, values in MEASURED.items()}


def test_both_files_keep_columns_order_and_blocks_and_say_why(tmp_path, predicted):
    table, particle_id, measures = predicted
    run = RunDirectory(tmp_path)
    write_selection(select(measures, "match-score", threshold=0.25), measures, particle_id, table, run)
    kept, rejected = ParticleTable.read(run.selected), ParticleTable.read(run.rejected)
    assert kept.integers("rlnParticleId").tolist() == [7, 9, 4, 1, 8]
    assert kept.names[:4] == table.names and kept.strings("labNote")[0] == "keep me"
    assert REASON_COLUMN not in kept.names
    assert kept.floats("rlnCryoforumMatchScore").tolist() == SCORE[[0, 2, 3, 4, 5]].tolist()
    assert kept.floats("rlnVoltage").tolist() == [300.0] * 5
    assert rejected.integers("rlnParticleId").tolist() == [3]
    assert rejected.strings(REASON_COLUMN).tolist() == ["match-score=0.1<0.25"]
    assert rejected.floats("rlnCryoforumExpectedError").tolist() == [40.0]
    assert [block.name for block in read_star(run.rejected)] == ["optics", "particles"]


def test_nothing_rejected_is_an_empty_table_that_can_be_read(tmp_path, predicted):
    table, particle_id, measures = predicted
    run = RunDirectory(tmp_path)
    write_selection(select(measures, "match-score", keep_fraction=1.0), measures, particle_id, table, run)
    assert len(ParticleTable.read(run.rejected)) == 0
    assert len(ParticleTable.read(run.selected)) == 6


def test_another_tables_particles_are_refused_and_nothing_is_written(tmp_path, predicted):
    table, particle_id, measures = predicted
    run = RunDirectory(tmp_path)
    with pytest.raises(InputError, match="without a row: 77"):
        others = np.where(particle_id == 7, 77, particle_id)
        write_selection(select(measures, keep_count=2), measures, others, table, run)
    with pytest.raises(InputError, match="has 5 and the orientations 6"):
        write_selection(select(measures, keep_count=2), measures, particle_id, table.subset(np.arange(5)), run)
    assert not list(tmp_path.iterdir())


def test_default_rejects_scattered_junk_that_is_no_second_population():
    """Few particles of several kinds of junk, as predict scored them: no hill, but nothing a usual particle reaches."""
    rng = np.random.default_rng(4)
    junk = np.concatenate([rng.normal(centre, 0.5, 12) for centre in (-12.0, -8.6, -8.4, -5.3)])
    score = np.concatenate([junk, rng.normal(-0.3, 0.8, 340)])
    selection = select({"match-score": score})
    assert set(range(44)) <= set(selection.rejected.tolist())
    assert (selection.kept >= 48).sum() >= 339


def test_rare_viewing_directions_get_back_what_a_choice_by_the_map_took():
    """Ten good particles of one view, and two poorer ones and one of junk of another."""
    cone, reason = np.array([0] * 10 + [1] * 3), np.array(["none"] * 12 + ["another-object"])
    labels = ImageLabels(reason, cone, np.full((13, 2), np.nan), np.full((13, 4), np.nan))
    measures = {"particle-probability": np.array([0.99] * 10 + [0.7, 0.6, 0.1])}
    alone, none = best_with_rare_views(measures, "particle-probability", 10, labels, protect_views=False)
    assert alone.kept.tolist() == list(range(10)) and none == 0 and alone.n_short > 0
    chosen, n_restored = best_with_rare_views(measures, "particle-probability", 10, labels)
    assert chosen.kept.tolist() == list(range(11)) and n_restored == 1 and chosen.n_short == 0
    assert chosen.reason.tolist() == ["particle-probability=0.6<0.99", "another-object"]


@pytest.mark.parametrize("criterion", [{}, {"keep_fraction": 0.5}, {"keep_count": 300}])
@pytest.mark.parametrize("measure", ["match-score", "expected-error"])
def test_no_viewing_direction_loses_more_than_its_junk(criterion, measure):
    measures, labels = labelled_views(np.random.default_rng(5))
    kept = select(measures, measure, labels=labels, **criterion).kept
    for cone in (3, 7):
        before, after = (labels.cone == cone).mean(), (labels.cone[kept] == cone).mean()
        junk = labels.is_rejected[labels.cone == cone].mean()
        assert after >= before * (1 - junk) - 1.5 / len(kept)


def test_viewing_directions_are_not_protected_against_a_limit_or_where_it_is_switched_off():
    measures, labels = labelled_views(np.random.default_rng(5))
    rare = labels.cone == 7
    for options in ({"keep_fraction": 0.5, "protect_views": False}, {"threshold": 0.0}):
        selection = select(measures, "match-score", labels=labels, **options)
        assert rare[selection.kept].mean() < 0.5 * rare.mean()
        assert selection.n_short > 0
    assert (measures["match-score"][selection.kept] >= 0).all()


def test_only_the_junk_labels_asked_for_are_rejected():
    measures, labels = labelled_views(np.random.default_rng(6))
    labels = replace(labels, reason=np.where(np.arange(2000) < 50, "off-centre", labels.reason))
    measures["particle-probability"][:50] = 0.1
    selection = select(measures, labels=labels.rejecting(["off-centre"]))
    assert selection.rejected.tolist() == list(range(50))
    assert selection.summary()["reasons"] == {"off-centre": 50}


def test_particles_of_ambiguous_orientation_are_rejected_only_where_they_are_named():
    measures, labels = labelled_views(np.random.default_rng(6))
    reason = labels.reason.astype(object)
    ambiguous = np.flatnonzero(reason == "none")[:40]
    reason[ambiguous] = "ambiguous-orientation"
    labels = replace(labels, reason=reason.astype(str))
    assert not np.isin(ambiguous, select(measures, labels=labels).rejected).any()
    selection = select(measures, labels=labels.rejecting(["ambiguous-orientation"]))
    assert selection.rejected.tolist() == ambiguous.tolist()
    assert selection.summary()["reasons"] == {"ambiguous-orientation": 40} and "Ambiguous" in selection.explanation


def test_errors_beyond_the_limit_are_another_reason_than_junk_and_ambiguous_orientations():
    reason = np.array(["none", "off-centre", "none", "ambiguous-orientation"])
    labels = ImageLabels(reason, np.zeros(4, dtype=int), np.full((4, 2), np.nan), np.full((4, 4), 0.5))
    selection = select({"expected-error": np.array([1.0, 60.0, 20.0, 50.0])}, max_error_deg=10.0, labels=labels)
    assert selection.reason.tolist() == ["off-centre", "error-beyond-limit", "ambiguous-orientation"]


def test_a_limit_of_errors_rejects_junk_of_the_chosen_labels_too():
    """An overlapping particle is oriented well, and its bound says so."""
    reason = np.array(["none", "overlapping-neighbour", "off-centre", "none"])
    labels = ImageLabels(reason, np.zeros(4, dtype=int), np.full((4, 2), np.nan), np.full((4, 4), np.nan))
    measures = {"expected-error": np.array([1.0, 1.0, 2.0, 20.0]), "error-bound": np.array([2.0, 2.0, 4.0, 40.0])}
    for limit in ({"max_error_deg": 10.0}, {"measure": "error-bound", "threshold": 10.0}):
        selection = select(measures, labels=labels, **limit)
        assert selection.kept.tolist() == [0] and "junk" in selection.explanation
        assert selection.reason.tolist() == ["overlapping-neighbour", "off-centre", "error-beyond-limit"]
        assert select(measures, labels=labels.rejecting(["off-centre"]), **limit).kept.tolist() == [0, 1]
        everything = select(measures, labels=labels.rejecting([]), **limit)
        assert everything.kept.tolist() == [0, 1, 2] and "junk" not in everything.explanation
