"""Reports of every kind of run: self-contained, with the correct figures, and clear about poor results."""

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
from example_runs import N_JUNK, N, ab_initio_run, make_run, predict_run, reconstruct_run, select_run, train_run
from scipy.stats import binom

from cryoforum_core.errors import InputError
from cryoforum_core.geometry.even_directions import even_directions
from cryoforum_core.report.map_page import reconstruction_page
from cryoforum_core.report.prediction_page import prediction_page
from cryoforum_core.report.report import LEVEL_NAMES, write_report
from cryoforum_core.report.result_labels import label
from cryoforum_core.report.run_files import RunFiles
from cryoforum_core.report.selection_page import selection_page
from cryoforum_core.report.training_page import training_page
from cryoforum_core.run_directory import RunDirectory

JOBS = ["simulate", "train", "predict", "select", "reconstruct", "evaluate", "ab-initio", "end-to-end", "other"]


def page_of(run, path, **options) -> tuple[str, dict]:
    summary = write_report(run, path, **options)
    return html.unescape(path.read_text(encoding="utf-8")), summary


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory) -> dict[str, tuple[str, dict]]:
    """Text and summary of each run's report."""
    folder = tmp_path_factory.mktemp("reports")
    return {job: page_of(run, folder / f"{job}.html") for job, run in runs.items()}


def words(page) -> str:
    return " ".join(page.assessment.sentences)


def titles_of(page) -> list[str]:
    return [picture.title for picture in page.pictures]


def commands_in(text: str) -> list[str]:
    return [" ".join(shlex.split(command.replace("\\\n", "")))
            for command in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]


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
def test_page_shows_assessment_summary_and_options_of_the_run(runs, pages, job):
    text, summary = pages[job]
    assert summary["assessment"] in text
    level = re.search(r'class="card assessment (\w+)"', text).group(1)
    assert f'<div class="level">{LEVEL_NAMES[level]}</div>' in text
    assert str(runs[job].path) in text
    for name in [*json.loads(runs[job].config.read_text()), *map(label, runs[job].read_summary())]:
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


def test_page_of_a_run_in_a_scipion_project_names_protocols(runs, pages, tmp_path):
    """In addition to the commands; outside Scipion there are no protocols."""
    (tmp_path / "project.sqlite").touch()
    made = {"train": train_run(tmp_path / "Runs/1/extra/train", 75.0),
            "predict": predict_run(tmp_path / "Runs/2/extra/predict")[0],
            "ab-initio": ab_initio_run(tmp_path / "Runs/3/extra/ab_initio"),
            "failed": ab_initio_run(tmp_path / "Runs/4/extra/ab_initio", converged=False, symmetry="d2"),
            "end_to_end": ab_initio_run(tmp_path / "Runs/5/extra/ab_initio", "end-to-end", converged=False)}
    made["select"] = select_run(tmp_path / "Runs/6/extra/select", made["predict"])
    said = {}
    for name, run in made.items():
        text, _ = page_of(run, run.report)
        said[name] = re.findall(r'<p class="scipion">In Scipion: (.*?)</p>', text)
        # all but the step that mirrors the map, which belongs to the next one
        assert len(said[name]) == len(commands_in(text)) - (name == "ab-initio")
    assert "uncertainty subset, with this run's outputParticles" in said["predict"][0]
    assert "outputNetwork as Start from network" in said["train"][1] and "Rejected" in said["select"][1]
    assert "Hand reference" in said["ab-initio"][1] and "3D auto-refine" in said["ab-initio"][-1]
    assert "Random starts 6" in said["failed"][0] and "Symmetry c1" in said["failed"][1]
    assert "Epochs 30" in said["end_to_end"][1]
    assert not any("In Scipion" in text for text, _ in pages.values())


def test_commands_quote_paths_for_the_shell(tmp_path):
    text, _ = page_of(train_run(tmp_path / "my run"), tmp_path / "report.html")
    assert f"--model '{tmp_path}/my run'" in text


def test_training_level_follows_the_error(tmp_path):
    good = training_page(RunFiles(train_run(tmp_path / "good", 5.0)))
    fair = training_page(RunFiles(train_run(tmp_path / "fair", 36.0)))
    assert fair.assessment.level == "caution" and len(fair.next_steps) == 2 and len(good.next_steps) == 1
    assert good.assessment.level == "good" and "5.00° (median) and 11.0° (mean)" in good.assessment.sentences[0]
    poor = training_page(RunFiles(train_run(tmp_path / "poor", 75.0)))
    assert poor.assessment.level == "poor" and "--from-checkpoint" in poor.next_steps[-1].command


@pytest.mark.parametrize("source, said", [
    ("simulated projections", "On simulated projections that were not used for training, the error of the network is 5.00°"),
    ("held-out particles", "On held-out particles that were not used for training, the error of the network is 5.00°"),
    (None, "On images that were not used for training, the error of the network is 5.00°")])
def test_training_says_which_images_its_errors_are_of(tmp_path, source, said):
    run = train_run(tmp_path / "run", 5.0)
    if source:
        run.write_summary(run.read_summary() | {"validation_source": source})
    assert words(training_page(RunFiles(run))).startswith(said)


def test_continued_training_keeps_the_symmetry_of_the_run(tmp_path):
    run = train_run(tmp_path / "run", 75.0)
    run.config.write_text(json.dumps(json.loads(run.config.read_text()) | {"symmetry": "d2"}))
    assert "--symmetry d2" in training_page(RunFiles(run)).next_steps[-1].command


def test_overfitting_is_reported(tmp_path):
    assert "overfits." in words(training_page(RunFiles(train_run(tmp_path / "a", overfits=True))))
    assert "overfits." not in words(training_page(RunFiles(train_run(tmp_path / "b"))))


def test_junk_of_a_prediction_is_counted(tmp_path):
    run = predict_run(tmp_path / "run")[0]
    with np.load(run.orientation_posterior) as arrays:
        posterior = dict(arrays)
    n = len(posterior["particle_id"])

    def table(reason):
        np.savez(run.orientation_posterior, **posterior, reason=np.array(reason))
        return next(table for table in prediction_page(RunFiles(run)).tables if table.title == "Junk and ambiguous images")

    rows = table(["none"] * (n - 12) + ["off-centre"] * 4 + ["ambiguous-orientation"] * 8).rows
    assert [row[:2] for row in rows] == [("ambiguous orientation", "8"), ("off centre", "4")]
    assert "All images are classified as particles" in table(["none"] * n).caption


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


def test_truth_with_another_job_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="--truth needs a run of predict"):
        write_report(runs["select"], tmp_path / "report.html", truth=runs["predict"].path / "known.star")
    assert not (tmp_path / "report.html").exists()


def test_selection_page_counts_and_shows_viewing_directions_before_and_after(runs, pages):
    summary = runs["select"].read_summary()
    text, _ = pages["select"]
    assert f"{summary['n_selected']} of {N} particles were kept" in text
    assert summary["explanation"] in text and "Viewing directions before and after" in text
    assert abs(summary["n_rejected"] - N_JUNK) < 0.25 * N_JUNK


def test_selection_that_removes_much_needs_a_check_and_one_that_keeps_all_has_one_next_step(runs, tmp_path):
    half = select_run(tmp_path / "a", runs["predict"], measure="match-score", keep_fraction=0.5)
    much = selection_page(RunFiles(half))
    assert much.assessment.level == "caution" and "large part" in words(much) and len(much.next_steps) == 2
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


def test_reconstruction_level_follows_the_resolution(tmp_path):
    pages = {resolution: reconstruction_page(RunFiles(reconstruct_run(tmp_path / f"{resolution}", resolution)))
             for resolution in (12.3, 14.2, 60.0)}
    assert [page.assessment.level for page in pages.values()] == ["good", "good", "poor"]
    assert "Nyquist limit" in words(pages[12.3]) and "Nyquist limit" not in words(pages[14.2])
    assert "14.2 Å" in words(pages[14.2]) and "blob" in words(pages[60.0])


def test_evaluation_mentions_the_tail_and_excludes_junk(pages):
    text, summary = pages["evaluate"]
    assert "far above the median" in summary["assessment"] and "Junk is excluded" in summary["assessment"]
    assert "Expected and true error" in text  # the run of predict has expected errors


def test_a_page_survives_input_files_that_were_moved(tmp_path):
    predicted, _ = predict_run(tmp_path / "run")
    selected = select_run(tmp_path / "select", predicted)
    for path in predicted.path.iterdir():
        path.unlink()
    assert selection_page(RunFiles(selected)).assessment.level == "good"


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
    with pytest.raises(InputError, match="must have a config.json"):
        write_report(run, run.report)


def test_values_of_a_run_cannot_become_html(tmp_path):
    run = make_run(tmp_path / "run", "other", {"particles": "<script>alert(1)</script>"}, {"n_particles": 3})
    write_report(run, run.report)
    assert "<script>" not in run.report.read_text(encoding="utf-8")


def test_report_of_an_asymmetric_molecule_needs_no_torch(runs, tmp_path):
    code = ("import sys; from pathlib import Path; from cryoforum_core.report.report import write_report; "
            "from cryoforum_core.run_directory import RunDirectory; "
            f"write_report(RunDirectory({str(runs['select'].path)!r}), Path({str(tmp_path / 'r.html')!r})); "
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert RunDirectory(tmp_path).report.name == "report.html"


def coverage_table(run):
    return next(table for table in prediction_page(RunFiles(run)).tables if table.title == "Coverage of the error bounds")


@pytest.mark.parametrize("n_outside, said", [(0, "90 % (within chance"), (5, "82 % (within chance"),
                                             (8, "77 % (below chance")])
def test_lowest_coverage_of_groups_is_compared_with_chance(tmp_path, n_outside, said):
    """12 groups of 60 particles. The lowest is the 5th percentile of one group at 1 - 0.95^(1/12)."""
    run, per_group = predict_run(tmp_path / "run")[0], 60
    error = np.tile(np.where(np.arange(per_group) % 10 == 0, 9.0, 1.0), (12, 1))  # 90 % in every group
    error[5, 1:1 + n_outside] = 9.0
    np.savez(run.calibration, expected_error_deg=np.full(720, 2.0), error_bound_deg=np.full(720, 4.0),
             error_deg=error.ravel(), view_direction=np.repeat(even_directions(12), per_group, axis=0),
             defocus_angstrom=np.linspace(8000, 20000, 720), coverage=0.9, source="720 simulated images of the map")
    run.calibration_table.write_text("nominal_coverage,empirical_coverage,n_particles\n0.9,0.9,720\n")
    least = binom.ppf(1 - 0.95 ** (1 / 12), per_group, 0.9) / per_group
    assert coverage_table(run).rows[-1] == ("90 % bound", "lowest of 12 groups of viewing directions",
                                              f"{said}: {100 * least:.0f} % or more)")


@pytest.mark.parametrize("header", ["nominal_coverage,empirical_coverage,n_particles",
                                    "promised_fraction,held_fraction,n_particles"])
def test_coverage_table_reads_the_headers_of_this_and_of_earlier_versions(tmp_path, header):
    run, rng = predict_run(tmp_path / "run")[0], np.random.default_rng(0)
    np.savez(run.calibration, expected_error_deg=np.full(200, 2.0), error_bound_deg=np.full(200, 4.0),
             error_deg=rng.uniform(0, 5, 200), view_direction=np.tile([0.0, 0, 1], (200, 1)),
             defocus_angstrom=rng.uniform(8000, 20000, 200), coverage=0.8, source="200 simulated images of the map")
    run.calibration_table.write_text(f"{header}\n0.5,0.47,200\n0.8,0.81,200\n")
    table = coverage_table(run)
    assert table.rows[:2] == (("50 % bound", "all", "47 %"), ("80 % bound", "all", "81 %"))
    assert [row[1] for row in table.rows[2:]] == [f"{name} defocus quartile" for name in (
        "lowest", "second", "third", "highest")]
