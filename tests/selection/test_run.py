"""The job select: what it reads and checks first, and what it writes."""

import csv

import pytest

from cryoforum_core.catalogue import JUNK_KIND_COLUMN
from cryoforum_core.cli import main
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.run_directory import RunDirectory
from cryoforum_core.selection.selection import REASON_COLUMN

from .conftest import N
from .scored_runs import run_of_predict, scores


def command(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_select_auto_writes_the_levels_the_reasons_and_the_page(make_set, tmp_path):
    particles, is_junk = make_set(0.2)
    predicted = run_of_predict(tmp_path / "predict", particles, scores(is_junk))
    assert command("select", "--auto", "--out", tmp_path / "kept", "--run", predicted.path) == 0
    run = RunDirectory(tmp_path / "kept")
    summary = run.read_summary()
    kept, rejected = ParticleTable.read(run.selected), ParticleTable.read(run.rejected)
    assert summary["n_selected"] == len(kept)
    assert summary["n_rejected"] == len(rejected) == sum(summary["reasons"].values())
    assert (rejected.strings(JUNK_KIND_COLUMN) != "none").sum() >= 0.9 * is_junk.sum()
    assert rejected.strings(REASON_COLUMN)[0].startswith("match-score=")
    with open(run.auto_selection, newline="") as file:
        levels = list(csv.DictReader(file))
    chosen, = (level for level in levels if level["chosen"] == "1")
    assert int(chosen["n_kept"]) == len(kept)
    auto = summary["auto"]
    assert auto["kept_fraction"] == pytest.approx(len(kept) / N)
    assert auto["gain_over_random_angstrom"] == pytest.approx(
        auto["resolution_random_angstrom"] - auto["resolution_kept_angstrom"])
    assert auto["gain_over_random_deviation_angstrom"] > 0
    page = run.report.read_text()
    assert "Information in the map" in page and "better than removing as many at random" in page


def test_select_without_auto_needs_no_images(make_set, tmp_path):
    particles, is_junk = make_set(0.2)
    predicted = run_of_predict(tmp_path / "predict", particles, scores(is_junk))
    table = ParticleTable.read(predicted.particles)
    table.with_columns({"rlnImageName": [f"{i + 1:06d}@gone.mrcs" for i in range(N)]}).write(predicted.particles)
    assert command("select", "--out", tmp_path / "kept", "--run", predicted.path) == 0
    assert not RunDirectory(tmp_path / "kept").auto_selection.exists()
    assert "auto" not in RunDirectory(tmp_path / "kept").read_summary()


@pytest.mark.parametrize("missing", ["images", "poses"])
def test_select_auto_refuses_runs_without_images_or_poses(make_set, tmp_path, capsys, missing):
    particles, is_junk = make_set(0.2)
    predicted = run_of_predict(tmp_path / "predict", particles, scores(is_junk))
    table = ParticleTable.read(predicted.particles)
    if missing == "images":
        table.with_columns({"rlnImageName": [f"{i + 1:06d}@gone.mrcs" for i in range(N)]}).write(predicted.particles)
    else:
        columns = {name: table.strings(name) for name in table.names if "Angle" not in name or "Defocus" in name}
        ParticleTable.from_columns(columns, {name: table.strings(name)[:1] for name in (
            "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize")}
            | {"rlnOpticsGroup": ["1"]}).write(predicted.particles)
    assert command("select", "--auto", "--out", tmp_path / "kept", "--run", predicted.path) == 2
    error = capsys.readouterr().err
    assert ("gone.mrcs" if missing == "images" else "rlnAngleRot") in error and "Traceback" not in error
    assert not (tmp_path / "kept").exists()


def test_all_problems_of_a_selection_are_reported_at_once(make_set, tmp_path, capsys):
    """A measure that the run lacks, and a table that is gone."""
    particles, is_junk = make_set(0.2)
    predicted = run_of_predict(tmp_path / "predict", particles, scores(is_junk))
    predicted.particles.unlink()
    assert command("select", "--out", tmp_path / "kept", "--run", predicted.path, "--measure", "particle-probability") == 2
    error = capsys.readouterr().err
    assert "particle-probability" in error and "particles.star" in error
    assert not (tmp_path / "kept").exists()
