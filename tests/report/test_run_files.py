"""The files of a run as arrays, also where some were moved or are of another program."""

import json

import numpy as np
import pytest

from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.report.run_files import RunFiles, angles_deg, column, defocus_um

from .example_runs import N, make_run


def test_columns_of_a_csv_file_are_numbers_and_nan_where_a_cell_is_none(tmp_path):
    run = make_run(tmp_path / "run", "train", {}, {})
    (run.path / "metrics.csv").write_text("step,loss\n1,0.5\n2,\n3,much\n")
    columns = RunFiles(run).csv_columns("metrics.csv")
    assert columns["step"].tolist() == [1, 2, 3] and columns["loss"][0] == 0.5 and np.isnan(columns["loss"][1:]).all()
    assert RunFiles(run).csv_columns("none.csv") is None


def test_the_symmetry_is_the_runs_own_or_that_of_the_run_it_started_from(tmp_path):
    earlier = make_run(tmp_path / "predict", "predict", {}, {"symmetry": "d3"})
    assert RunFiles(make_run(tmp_path / "a", "select", {"run": str(earlier.path)}, {})).symmetry == "d3"
    assert RunFiles(make_run(tmp_path / "b", "train", {"symmetry": "c4"}, {})).symmetry == "c4"
    assert RunFiles(make_run(tmp_path / "c", "select", {"run": "gone"}, {})).symmetry == "c1"


def test_a_summary_that_is_given_stands_in_for_the_file(tmp_path):
    run = make_run(tmp_path / "run", "train", {}, {"steps": 1})
    run.summary.unlink()
    assert RunFiles(run, {"steps": 7}).summary == {"steps": 7}


def test_tables_that_are_no_star_files_or_were_moved_are_none(runs, tmp_path):
    files = RunFiles(runs["predict"])
    assert files.table(None) is None and files.table(tmp_path / "gone.star") is None
    (tmp_path / "particles.cs").write_bytes(b"x")
    assert files.table(tmp_path / "particles.cs") is None
    table = files.table(files.run.particles)
    assert len(table) == N and len(files.results().particle_id) == N
    rot, tilt = angles_deg(table)
    assert np.abs(rot).max() <= 180 and 0 <= tilt.min() <= tilt.max() <= 180
    assert defocus_um(table).min() > 0.7 and defocus_um(table).max() < 2.1  # 8,000 to 20,000 A


def test_columns_that_a_table_lacks_are_none():
    table = ParticleTable.from_columns({"rlnImageName": ["1@a.mrcs"], "rlnAngleRot": [1.0]})
    assert angles_deg(table) is None and defocus_um(table) is None and column(table, "rlnAngleTilt") is None
    assert column(table, "rlnAngleRot").tolist() == [1.0] and column(None, "rlnAngleRot") is None


@pytest.mark.parametrize("is_in_scipion", [False, True])
def test_a_run_in_a_scipion_project_is_recognised_by_the_projects_database(tmp_path, is_in_scipion):
    run = make_run(tmp_path / "project/Runs/000001/extra/run", "train", {"particles": "p.star"}, {})
    if is_in_scipion:
        (tmp_path / "project/project.sqlite").touch()
    files = RunFiles(run)
    assert files.is_in_scipion == is_in_scipion and str(files.input_path("particles")) == "p.star"
    assert files.input_path("reference") is None and files.job == json.loads(run.config.read_text())["job"]
