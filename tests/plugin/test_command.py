"""The command line that the plugin runs, and when a run is continued."""

import json
import shlex

import pytest
from particle_sets import make_particles


@pytest.fixture(autouse=True)
def scipion(project):
    """Importing the plugin needs a configured Scipion."""


def test_options_become_flags():
    from cryoforum.command import buildArguments

    arguments = buildArguments("train", {"max_minutes": 2.5, "augment": False, "resume": True, "reference": None,
                                         "particles": "Runs/1 extra/it's.star"})
    assert shlex.split(arguments) == ["train", "--max-minutes", "2.5", "--no-augment", "--resume", "--particles",
                                      "Runs/1 extra/it's.star"]


def test_an_option_with_several_values_is_one_flag():
    from cryoforum.command import buildArguments

    assert buildArguments("select", {"reasons": ["off-centre", "not-a-particle"]}) == (
        "select --reasons off-centre not-a-particle")


def test_without_a_gpu_none_is_visible():
    """Scipion's placeholder would stay "0" when the user chose No."""
    from cryoforum.command import buildProgram

    assert buildProgram("/e/bin/python", False, 4).startswith("CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=4 /e/bin/python")
    assert "CUDA_VISIBLE_DEVICES=%(GPU)s" in buildProgram("/e/bin/python", True, 4)


def test_a_percent_sign_survives_scipions_formatting():
    from cryoforum.command import buildProgram, escapePercent
    from pyworkflow.utils.process import buildRunCommand

    program, arguments = buildProgram("/python", True, 1), escapePercent("train --particles 100%/p.star", True)
    command = buildRunCommand(program, arguments, 1, gpuList=[1])
    assert command.strip() == ("CUDA_VISIBLE_DEVICES=1 OMP_NUM_THREADS=1 /python -m cryoforum_core "
                               "train --particles 100%/p.star")


@pytest.fixture
def run(tmp_path):
    """A run directory with a checkpoint, its input file, and prepareRun for them."""
    from cryoforum.command import prepareRun

    star = tmp_path / "particles.star"
    star.write_text("first")
    directory = tmp_path / "train"

    def prepare(**options):
        return prepareRun(str(directory), options, [str(star)])

    assert prepare(width=32, max_minutes=1) is False
    directory.mkdir()
    (directory / "checkpoint").write_text("weights")
    return prepare, directory, star


def test_the_same_run_goes_on(run):
    prepare, directory, _ = run
    assert prepare(width=32, max_minutes=1) is True
    assert (directory / "checkpoint").exists()


def test_a_larger_budget_goes_on(run):
    prepare, _, _ = run
    assert prepare(width=32, max_minutes=100) is True
    assert prepare(width=32, max_minutes=100, train_minutes=5) is True


def test_other_options_start_anew(run):
    prepare, directory, _ = run
    assert prepare(width=64, max_minutes=1) is False
    assert not directory.exists()


def test_an_option_that_the_form_got_later_and_that_is_left_to_the_engine_goes_on(run):
    prepare, directory, _ = run
    assert prepare(width=32, max_minutes=1, dropout=None) is True
    record = directory.with_name("train_options.json")
    # as it was written with options that are left to the engine
    record.write_text(json.dumps({**json.loads(record.read_text()), "activation": "None"}))
    assert prepare(width=32, max_minutes=1, dropout=None) is True
    assert prepare(width=None, max_minutes=1) is False
    assert not directory.exists()


def test_other_input_starts_anew(run):
    prepare, directory, star = run
    star.write_text("second")
    assert prepare(width=32, max_minutes=1) is False
    assert not directory.exists()


def test_a_run_goes_on_in_a_project_that_was_moved(tmp_path, monkeypatch):
    """The STAR file holds absolute paths, which are written anew; those outside of the project stay what they are."""
    from cryoforum.command import prepareRun

    def prepare(project, outside="/data/b.mrcs"):
        (project / "input.star").write_text(f"000001@{project}/Runs/a.mrcs 1\n000001@{outside} 2\n")
        monkeypatch.chdir(project)
        return prepareRun("train", {"width": 32}, ["input.star"])

    before, after = tmp_path / "before", tmp_path / "after"
    (before / "train").mkdir(parents=True)
    assert prepare(before) is False
    (before / "train").mkdir()
    (before / "train/checkpoint").write_text("weights")
    before.rename(after)
    assert prepare(after) is True
    assert prepare(after, "/data/c.mrcs") is False


def test_continue_repeats_every_step_after_one_that_has_changed(project, tmp_path, monkeypatch):
    """A moved project and another input change the first step, another option the second."""
    from cryoforum.protocols import CryoForumProtAbInitio, CryoForumProtPredict, CryoForumProtSubset, CryoForumProtTrain

    sets = [make_particles(project.getTmpPath("steps"), n=4, name=name) for name in ("first", "second")]

    def arguments(Protocol, particles=sets[0], **options):
        protocol = project.newProtocol(Protocol)
        protocol.inputParticles.set(particles)
        inserted = []
        with monkeypatch.context() as patch:
            patch.setattr(protocol, "_insertFunctionStep", lambda step, *args, **_: inserted.append(args))
            patch.setattr(protocol, "_engineOptions", lambda: options)
            protocol._insertAllSteps()
        return inserted

    def changed(before, after):
        return [one != other for one, other in zip(before, after, strict=True)]

    for Protocol in (CryoForumProtAbInitio, CryoForumProtPredict, CryoForumProtSubset, CryoForumProtTrain):
        here = arguments(Protocol)
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            assert changed(here, arguments(Protocol)) == [True, True, True]
        assert changed(here, arguments(Protocol)) == [False, False, False]
        assert changed(here, arguments(Protocol, sets[1])) == [True, True, True]
        assert changed(here, arguments(Protocol, option=1)) == [False, True, True]


def test_a_run_that_did_not_finish_has_no_summary(tmp_path):
    from cryoforum.command import readSummary

    with pytest.raises(RuntimeError, match="did not finish"):
        readSummary(str(tmp_path))
    (tmp_path / "summary.json").write_text(json.dumps({"seconds": 3}))
    assert readSummary(str(tmp_path)) == {"seconds": 3}
