"""The page of predict."""

import numpy as np

from cryoforum_core.report.prediction_page import prediction_page
from cryoforum_core.report.run_files import RunFiles

from .example_runs import predict_run
from .page_texts import page_of, titles_of, words


def test_prediction_that_does_not_apply_failed_with_its_reason(tmp_path):
    page = prediction_page(RunFiles(predict_run(tmp_path / "run", applies=False)[0]))
    assert page.assessment.level == "poor" and "explains only 3 %" in page.alarm.text
    assert "not particles of this molecule" in page.alarm.title
    assert not page.next_steps


def test_missing_viewing_directions_are_reported(tmp_path):
    page = prediction_page(RunFiles(predict_run(tmp_path / "run", preferred=1.0)[0]))
    assert page.assessment.level == "caution" and "almost no particles" in words(page)


def test_prediction_without_matching_has_no_match_figures(tmp_path):
    titles = titles_of(prediction_page(RunFiles(predict_run(tmp_path / "run", matched=False)[0])))
    assert "Expected error" in titles
    assert not {"Match score", "Match score and defocus", "Particles and matching projections"} & set(titles)


def test_truth_adds_errors_without_junk(runs, pages, tmp_path):
    plain, before = pages["predict"]
    _, after = page_of(runs["predict"], tmp_path / "b.html", truth=runs["predict"].path / "known.star")
    assert after["n_figures"] == before["n_figures"] + 3
    _, truth = predict_run(tmp_path / "again")
    good = truth["error_deg"][truth["kinds"] == "none"]
    assert f"{np.median(good):.2f}° (median) and {good.mean():.2f}° (mean)" in after["assessment"]
    assert "Against the known poses" not in plain
