import json
import os
import stat

import pytest

from cryoforum_core.config import ReconstructConfig, SimulateConfig
from cryoforum_core.errors import InputError
from cryoforum_core.run_directory import RunDirectory, atomic_path


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


def config_of(run, **options):
    return SimulateConfig(out=run.path, **options)


def test_new_run_has_its_configuration_and_is_unfinished(run):
    run.prepare(config_of(run, snr=0.3))
    assert SimulateConfig.model_validate_json(run.config.read_text()) == config_of(run, snr=0.3)
    assert not run.finished
    with pytest.raises(InputError, match="must be finished.*--resume"):
        run.read_summary()


def test_summary_marks_the_end(run):
    run.prepare(config_of(run))
    run.write_summary({"n_particles": 3})
    assert run.finished and run.read_summary() == {"n_particles": 3}
    assert json.loads((run.path / "summary.json").read_text()) == {"n_particles": 3}


def test_directory_with_files_needs_resume_and_the_same_job(run):
    run.prepare(config_of(run))
    with pytest.raises(InputError, match="Add --resume"):
        run.prepare(config_of(run))
    run.prepare(config_of(run, device="cpu"), resume=True)
    with pytest.raises(InputError, match=r"these differ: snr \(was 0.1, is 0.5\), seed \(was 0, is 2\)|these differ: seed"):
        run.prepare(config_of(run, seed=2, snr=0.5), resume=True)
    assert json.loads(run.config.read_text())["seed"] == 0
    with pytest.raises(InputError, match="is a 'simulate' run"):
        run.prepare(ReconstructConfig(out=run.path, particles="a.star"), resume=True)
    run.config.unlink()
    (run.path / "something").write_text("else")
    with pytest.raises(InputError, match="no config.json"):
        run.prepare(config_of(run), resume=True)


def test_check_writes_nothing(run):
    run.check(config_of(run), resume=False)
    assert not run.path.exists()


def test_file_in_the_way(run):
    run.path.write_text("a file")
    with pytest.raises(InputError, match="--out must be a directory"):
        run.prepare(config_of(run))
    assert run.path.read_text() == "a file"


def test_file_names_are_those_that_other_programs_rely_on(run):
    assert {path.relative_to(run.path).as_posix() for name, path in vars(run).items() if name != "path"} == {
        "config.json", "summary.json", "report.html", "particles.star", "particles.mrcs", "truth.star",
        "orientation_posterior.npz", "gallery.npz", "calibration.npz", "calibration.csv", "micrographs.csv",
        "map.mrc", "map_half1.mrc", "map_half2.mrc", "fsc.csv", "map_state1.mrc", "map_state2.mrc",
        "map_other_molecule.mrc", "selected.star", "rejected.star", "recentre.star", "auto_selection.csv", "checkpoint",
        "metrics.csv", "errors.csv", "live.html", "progress.json", "checkpoint/training_state.pt", "stages", "parts"}


def test_only_what_resume_needs_is_removed_at_the_end(run):
    run.prepare(config_of(run))
    for folder in (run.checkpoint, run.stages, run.parts):
        folder.mkdir()
    for path in (run.training_state, run.stages / "map.mrc", run.checkpoint / "checkpoint.json"):
        path.write_text("")
    run.remove_temporary()
    assert not any(path.exists() for path in (run.training_state, run.stages, run.parts))
    assert (run.checkpoint / "checkpoint.json").is_file() and run.config.is_file()


def test_atomic_path_replaces_only_when_all_went_well(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stopped")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with atomic_path(path) as temporary:
        temporary.write_text("after")
        assert temporary.suffix == ".txt" and path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_atomic_path_gives_the_permissions_of_a_plain_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_path(tmp_path / "ours") as temporary:
        temporary.write_text("")
    mode = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "ours")]
    assert mode[0] == mode[1]


def test_a_run_of_an_earlier_version_continues_with_options_that_it_did_not_know(run):
    run.prepare(config_of(run, n_particles=5))
    known = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({name: value for name, value in known.items() if name not in ("like", "session")}))
    assert run.changed_options(config_of(run, n_particles=5)) == {}
    assert run.changed_options(config_of(run, n_particles=5, like="session"))["like"] == (None, "session")
