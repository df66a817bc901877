"""Reports of every kind of run: self-contained, with the correct figures, and clear about poor results."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cryoforum_core.errors import InputError
from cryoforum_core.report.report import LEVEL_NAMES, write_report
from cryoforum_core.report.result_labels import label
from cryoforum_core.run_directory import RunDirectory

from .example_runs import ab_initio_run, make_run, predict_run, select_run, train_run
from .page_texts import commands_in, page_of

JOBS = ["simulate", "train", "predict", "select", "reconstruct", "evaluate", "ab-initio", "end-to-end", "other"]


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


def test_truth_with_another_job_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="--truth needs a run of predict"):
        write_report(runs["select"], tmp_path / "report.html", truth=runs["predict"].path / "known.star")
    assert not (tmp_path / "report.html").exists()


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
