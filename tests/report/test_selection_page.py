"""The page of select."""

from cryoforum_core.report.run_files import RunFiles
from cryoforum_core.report.selection_page import selection_page

from .example_runs import N_JUNK, N, predict_run, select_run
from .page_texts import titles_of, words


def test_selection_page_counts_and_shows_viewing_directions_before_and_after(runs, pages):
    summary = runs["select"].read_summary()
    text, _ = pages["select"]
    assert f"{summary['n_selected']} of {N} particles were kept" in text
    assert summary["explanation"] in text and "Viewing directions before and after" in text
    assert abs(summary["n_rejected"] - N_JUNK) < 0.25 * N_JUNK


def test_selection_that_removes_much_needs_a_check_and_one_that_keeps_all_has_one_next_step(runs, tmp_path):
    half = select_run(tmp_path / "a", runs["predict"], measure="match-score", keep_fraction=0.5)
    much = selection_page(RunFiles(half))
    assert much.assessment.level == "caution" and "large fraction" in words(much) and len(much.next_steps) == 2
    everything = selection_page(RunFiles(select_run(tmp_path / "b", runs["predict"], measure="match-score",
                                                    keep_fraction=1.0)))
    assert everything.assessment.level == "good" and len(everything.next_steps) == 1


def test_removing_junk_that_accumulates_in_one_viewing_direction_is_good(tmp_path):
    predicted, _ = predict_run(tmp_path / "run", clustered_junk=True)
    page = selection_page(RunFiles(select_run(tmp_path / "select", predicted)))
    assert page.assessment.level == "good", words(page)


def test_depleted_viewing_directions_are_reported(tmp_path):
    predicted, _ = predict_run(tmp_path / "run", poor_direction=True)
    page = selection_page(RunFiles(select_run(tmp_path / "select", predicted, max_error_deg=20.0)))
    assert page.assessment.level == "caution" and "Some viewing directions lost" in words(page)


def test_examples_are_grouped_by_kept_and_rejected(runs, tmp_path, monkeypatch):
    """The run of predict does not know which examples the selection keeps."""
    from cryoforum_core.report import plots

    groups = []
    real = plots.image_pairs
    monkeypatch.setattr(plots, "image_pairs", lambda *arrays: (groups.extend(arrays[3]), real(*arrays))[1])
    run = select_run(tmp_path / "select", runs["predict"], measure="match-score", keep_fraction=0.75)
    assert "Kept and rejected, with matching projections" in titles_of(selection_page(RunFiles(run)))
    assert groups == ["kept"] * 10 + ["rejected"] * 8


def test_selection_shows_images_of_both_sets_where_the_stack_exists(runs, tmp_path):
    predicted, _ = predict_run(tmp_path / "run", with_images=True)
    assert {"Kept", "Rejected"} < set(titles_of(selection_page(RunFiles(select_run(tmp_path / "select", predicted)))))
    assert not {"Kept", "Rejected"} & set(titles_of(selection_page(RunFiles(runs["select"]))))


def test_reasons_are_counted_where_there_are_several(runs, tmp_path):
    both = select_run(tmp_path / "a", runs["predict"], measure="match-score", threshold=-3.0, max_error_deg=5.0)
    assert "Reasons" in titles_of(selection_page(RunFiles(both)))
    assert "Reasons" not in titles_of(selection_page(RunFiles(runs["select"])))


def test_a_page_survives_input_files_that_were_moved(tmp_path):
    predicted, _ = predict_run(tmp_path / "run")
    selected = select_run(tmp_path / "select", predicted)
    for path in predicted.path.iterdir():
        path.unlink()
    assert selection_page(RunFiles(selected)).assessment.level == "good"
