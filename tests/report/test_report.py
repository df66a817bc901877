"""Reports of runs of every kind: self-contained, true to their numbers, and honest about bad ones."""

import base64
import html
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from example_runs import N, N_JUNK, make_run, predict_run, reconstruct_run, select_run, train_run

from cryoforum_core.errors import InputError
from cryoforum_core.report.report import write_report
from cryoforum_core.run_directory import RunDirectory

JOBS = ["simulate", "train", "predict", "select", "reconstruct", "evaluate", "ab-initio"]


def page_of(run, path, **options) -> tuple[str, dict]:
    summary = write_report(run, path, **options)
    return html.unescape(path.read_text(encoding="utf-8")), summary


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory) -> dict[str, tuple[str, dict]]:
    """Text and summary of each run's report."""
    folder = tmp_path_factory.mktemp("reports")
    return {job: page_of(run, folder / f"{job}.html") for job, run in runs.items()}


def verdict_of(text: str) -> str:
    return re.search(r"<section.*?</section>", text, re.DOTALL).group(0)


def level_of(text: str) -> str:
    return re.search(r'class="card verdict (\w+)"', text).group(1)


def commands_in(text: str) -> list[str]:
    return [" ".join(shlex.split(command.replace("\\\n", ""))) for command in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]


@pytest.mark.parametrize("job", JOBS)
def test_page_is_one_file_with_all_figures_inside(pages, job):
    text, summary = pages[job]
    sources = re.findall(r'<img src="(.*?)"', text)
    assert len(sources) == summary["n_figures"] >= 1
    for source in sources:
        prefix, data = source.split(",", 1)
        assert prefix == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(data)[:1000]
    without_images = re.sub(r'src="data:.*?"', "", text)
    assert not re.search(r"https?://|<script|<link|@import|url\(", without_images)
    assert text.count("<figcaption>") == len(sources)
    assert all(caption.strip() for caption in re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL))


@pytest.mark.parametrize("job", JOBS)
def test_page_shows_verdict_summary_and_options_of_the_run(runs, pages, job):
    text, summary = pages[job]
    assert summary["verdict"] in text
    assert str(runs[job].path) in text
    for name in json.loads(runs[job].config.read_text()) | runs[job].read_summary():
        assert f"<td>{name}</td>" in text


def test_commands_name_the_runs_own_files(runs, pages):
    simulated, trained, predicted = runs["simulate"].path, runs["train"].path, runs["predict"].path
    commands = {job: commands_in(text) for job, (text, _) in pages.items()}
    assert f"cryoforum train --particles {simulated}/particles.star --reference {simulated}/map.mrc" in commands[
        "simulate"][0]
    assert commands["train"] == [f"cryoforum predict --particles {Path.cwd()}/data/particles.star --model {trained} "
                                 f"--out {trained}_predict"]
    assert commands["predict"][0] == f"cryoforum select --run {predicted} --out {predicted}_select"
    assert [f"--particles {runs['select'].path}/{name}.star" in line
            for name, line in zip(("selected", "rejected"), commands["select"])] == [True, True]


def test_commands_quote_paths_for_the_shell(tmp_path):
    text, _ = page_of(train_run(tmp_path / "my run"), tmp_path / "report.html")
    assert f"--model '{tmp_path}/my run'" in text


def test_training_verdict_follows_the_error(tmp_path):
    text, _ = page_of(train_run(tmp_path / "good", 5.0), tmp_path / "1.html")
    assert level_of(text) == "good" and "5.00° (median) and 11.0° (mean)" in text
    text, _ = page_of(train_run(tmp_path / "poor", 45.0), tmp_path / "2.html")
    assert level_of(text) == "poor"
    assert any("--from-checkpoint" in line for line in commands_in(text))


def test_training_that_learns_by_heart_is_told(tmp_path):
    text, _ = page_of(train_run(tmp_path / "a", overfits=True), tmp_path / "1.html")
    assert "by heart." in verdict_of(text)
    text, _ = page_of(train_run(tmp_path / "b"), tmp_path / "2.html")
    assert "by heart." not in verdict_of(text)


def test_prediction_that_does_not_apply_is_red_with_its_reason(tmp_path):
    run, _ = predict_run(tmp_path / "run", applies=False)
    text, _ = page_of(run, tmp_path / "report.html")
    assert level_of(text) == "poor" and "explains 31 %" in text and "may not apply" in text


def test_uneven_views_are_told(tmp_path):
    run, _ = predict_run(tmp_path / "run", preferred=1.0)
    text, summary = page_of(run, tmp_path / "report.html")
    assert "almost unseen" in summary["verdict"] and level_of(text) == "caution"


def test_prediction_without_matching_has_no_match_figures(tmp_path):
    run, _ = predict_run(tmp_path / "run", matched=False)
    text, _ = page_of(run, tmp_path / "report.html")
    assert "Match with the map" not in text and "beside their projections" not in text
    assert "Expected error" in text


def test_truth_adds_errors_without_junk(runs, pages, tmp_path):
    plain, before = pages["predict"]
    _, after = page_of(runs["predict"], tmp_path / "b.html", truth=runs["predict"].path / "known.star")
    assert after["n_figures"] == before["n_figures"] + 3
    _, truth = predict_run(tmp_path / "again")
    good = truth["error_deg"][truth["kinds"] == "none"]
    assert f"{np.median(good):.2f}° (median) and {good.mean():.2f}° (mean)" in after["verdict"]
    assert "Against the known poses" not in plain


def test_truth_with_another_job_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="--truth goes with a run of predict"):
        write_report(runs["select"], tmp_path / "report.html", truth=runs["predict"].path / "known.star")
    assert not (tmp_path / "report.html").exists()


def test_selection_page_counts_and_shows_views_before_and_after(runs, pages):
    summary = runs["select"].read_summary()
    text, _ = pages["select"]
    assert f"{summary['n_selected']} of {N} particles were kept" in text
    assert summary["explanation"] in text and "Viewing directions before and after" in text
    assert abs(summary["n_rejected"] - N_JUNK) < 0.25 * N_JUNK


def test_selection_that_loses_a_view_or_much_is_cautioned(runs, tmp_path):
    much = select_run(tmp_path / "much", runs["predict"], measure="match-score", keep_fraction=0.5)
    text, _ = page_of(much, tmp_path / "1.html")
    assert level_of(text) == "caution" and "large part" in text
    few = select_run(tmp_path / "all", runs["predict"], measure="match-score", keep_fraction=1.0)
    text, _ = page_of(few, tmp_path / "2.html")
    assert level_of(text) == "good" and len(commands_in(text)) == 1


def test_junk_that_piles_up_in_few_views_may_go(tmp_path):
    predicted, truth = predict_run(tmp_path / "run", piled_junk=True)
    text, summary = page_of(select_run(tmp_path / "select", predicted), tmp_path / "report.html")
    assert level_of(text) == "good", summary["verdict"]


def test_views_that_are_lost_are_told(tmp_path):
    predicted, _ = predict_run(tmp_path / "run", poor_view=True)
    text, _ = page_of(select_run(tmp_path / "select", predicted, max_error_deg=20.0), tmp_path / "report.html")
    assert level_of(text) == "caution" and "Some viewing directions lost" in verdict_of(text)


def test_selection_shows_images_of_both_sets(runs, tmp_path):
    predicted, _ = predict_run(tmp_path / "run", with_images=True)
    text, _ = page_of(select_run(tmp_path / "select", predicted), tmp_path / "report.html")
    assert "<h3>Kept</h3>" in text and "<h3>Rejected</h3>" in text


def test_reconstruction_verdict_follows_the_resolution(tmp_path):
    text, _ = page_of(reconstruct_run(tmp_path / "a", 14.2), tmp_path / "1.html")
    assert level_of(text) == "good" and "14.2 Å" in text
    text, _ = page_of(reconstruct_run(tmp_path / "b", 60.0), tmp_path / "2.html")
    assert level_of(text) == "poor" and "blob" in text
    text, _ = page_of(reconstruct_run(tmp_path / "c", 12.3), tmp_path / "3.html")
    assert "limit of the pixel size" in text


def test_evaluation_names_the_tail_and_sets_junk_apart(pages):
    text, summary = pages["evaluate"]
    assert "far above the median" in summary["verdict"] and "Junk is not counted" in summary["verdict"]
    assert "Expected and true error" in text  # particles.star of the run of predict has the expectations


def test_a_page_survives_input_files_that_were_moved(runs, tmp_path):
    predicted, truth = predict_run(tmp_path / "run")
    selected = select_run(tmp_path / "select", predicted)
    for path in predicted.path.iterdir():
        path.unlink()
    text, _ = page_of(selected, tmp_path / "report.html")
    assert level_of(text) == "good"


def test_a_run_can_write_its_report_before_its_summary(runs, tmp_path):
    run = train_run(tmp_path / "run")
    summary = run.read_summary()
    run.summary.unlink()
    with pytest.raises(InputError, match="must be finished"):
        write_report(run, run.report)
    write_report(run, run.report, summary=summary)
    assert "6.50°" in run.report.read_text(encoding="utf-8")


def test_a_directory_without_a_configuration_is_refused(tmp_path):
    run = make_run(tmp_path / "run", "train", {}, {})
    run.config.unlink()
    with pytest.raises(InputError, match="must have its config.json"):
        write_report(run, run.report)


def test_values_of_a_run_cannot_become_html(tmp_path):
    run = make_run(tmp_path / "run", "ab-initio", {"particles": "<script>alert(1)</script>"}, {"n_particles": 3})
    write_report(run, run.report)
    assert "<script>" not in run.report.read_text(encoding="utf-8")


def test_report_of_an_asymmetric_molecule_needs_no_torch(runs, tmp_path):
    code = ("import sys; from pathlib import Path; from cryoforum_core.report.report import write_report; "
            "from cryoforum_core.run_directory import RunDirectory; "
            f"write_report(RunDirectory({str(runs['select'].path)!r}), Path({str(tmp_path / 'r.html')!r})); "
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert RunDirectory(tmp_path).report.name == "report.html"
