"""Keys of summary.json in words: every key of the example runs has some, and pages show no key of this project's own."""

import html
import re

import pytest

from cryoforum_core.report.report import write_report
from cryoforum_core.report.result_labels import LABELS, label, labelled, text_of

from .example_runs import ab_initio_run, predict_run

# words of earlier versions, which only the keys still have
IN_HOUSE = {"error_bound_held": 0.91, "shift_error_bound_held": 0.89, "promise_kept": 0.97, "promise_significance": 31.0,
            "model_applies_doubts": ["the map is of a pixel size of 5 A"], "turn_error_deg": 3.0,
            "found_again_fraction": [0.02, 0.01], "near_half_turn": {"agreement": 0.9, "is_told_apart": True},
            "view_cone_percent": {"before": [1.0], "after": [1.0], "junk": [0.0]}, "n_short_of_view_shares": 0}


def results_of(run, path) -> str:
    """The part of the report with all results, as text."""
    write_report(run, path)
    text = html.unescape(path.read_text(encoding="utf-8"))
    return text.split("Results (from summary.json)")[1].split("</details>")[0]


def keys_of(value) -> set[str]:
    """Keys of a summary, entries within entries included; without reasons and stages, which are names of data."""
    if isinstance(value, dict):
        own = set(value)
        return own | set().union(*(keys_of(each) for key, each in value.items() if key not in ("reasons", "stages", "junk")))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("job", ["simulate", "train", "predict", "select", "reconstruct", "evaluate", "ab-initio",
                                 "end-to-end"])
def test_every_key_of_the_example_runs_has_a_label(runs, tmp_path, job):
    shown = results_of(runs[job], tmp_path / "report.html")
    keys = keys_of(runs[job].read_summary())
    assert not keys - set(LABELS)
    assert not {key for key in keys if "_" in key and re.search(rf"\b{key}\b", shown)}


def test_no_key_of_an_earlier_vocabulary_is_shown(tmp_path):
    runs = predict_run(tmp_path / "predict")[0], ab_initio_run(tmp_path / "ab_initio")
    for run in runs:
        run.write_summary(run.read_summary() | IN_HOUSE)
        shown = results_of(run, tmp_path / "report.html")
        assert not {key for key in keys_of(IN_HOUSE) if "_" in key and key in shown}
        assert "empirical coverage of the error bounds" in shown and "0.91" in shown and "resolved: yes" in shown


def test_labels_have_no_word_of_an_earlier_vocabulary():
    for words in LABELS.values():
        assert not re.search(r"\b(held(?!-out)|promise\w*|doubt\w*|half turn|found again|told apart|view)\b|_", words), words


def test_units_of_keys_are_in_their_labels():
    units = {"_deg": "degrees", "_angstrom": "Å", "_px": ("px", "cycles per box"), "_seconds": "(s)",
             "_z": "standard errors"}
    for key, words in LABELS.items():
        for ending, unit in units.items():
            if key.endswith(ending):
                assert any(each in words for each in ([unit] if isinstance(unit, str) else unit)), key


def test_keys_without_a_label_stay_as_they_are():
    assert label("something_new") == "something_new"
    assert labelled({"something_new": 1, "converged": True}) == {"something_new": "1", "converged": "yes"}


def test_values_as_text():
    assert [text_of(value) for value in (None, False, 3, 0.123456789, "c1", [], {}, [1, 2.5])] == [
        "-", "no", "3", "0.123457", "c1", "none", "none", "1, 2.5"]
    assert text_of([{"seed": 0, "chosen": True}, {"seed": 1, "chosen": False}]) == (
        "start: 0; chosen: yes\nstart: 1; chosen: no")
    assert text_of("to 24 A, beyond 5 A/px; 25 A^2 stays") == "to 24 Å, beyond 5 Å/px; 25 A^2 stays"
