"""The command line as users see it, in a process of its own only where the test depends on that."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from cryoforum_core import __version__
from cryoforum_core.cli import JOBS, main, parse
from cryoforum_core.config import PredictConfig, SimulateConfig, TrainConfig
from cryoforum_core.errors import InputError
from cryoforum_core.mrc import write_map


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cryoforum(capsys):
    """Runs the command in this process, because loading torch takes seconds."""
    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return Result(stop.value.code, *capsys.readouterr())

    return run


def program(*arguments, **keywords):
    """The program in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "cryoforum_core", *map(str, arguments)], capture_output=True, text=True,
                          env=environment, **keywords)


@pytest.fixture(scope="session")
def molecule(tmp_path_factory):
    """A map of 32 px of 5 A: some blobs, no symmetry."""
    axis = np.arange(32) - 16
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    centres = np.random.default_rng(0).uniform(-6, 6, (10, 3))
    volume = sum(np.exp(-((x - a)**2 + (y - b)**2 + (z - c)**2) / 4) for a, b, c in centres)
    path = tmp_path_factory.mktemp("molecule") / "map.mrc"
    write_map(path, volume, 5.0)
    return path


def imported_modules(*arguments):
    code = f"import sys; from cryoforum_core.cli import main\ntry: main({list(arguments)!r})\nexcept SystemExit: pass\n"
    output = subprocess.run([sys.executable, "-c", code + "print('MODULES', *sys.modules)"], capture_output=True,
                            text=True, check=True).stdout
    return set(output.split("MODULES", 1)[1].split())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_overview_names_every_job(cryoforum, arguments):
    result = cryoforum(*arguments)
    assert result.returncode == 0 and not result.stderr
    for job in ("simulate", "train", "predict", "select", "reconstruct", "evaluate", "report", "benchmark", "doctor"):
        assert f"  {job} " in result.stdout


def test_version():
    assert program("--version").stdout.strip() == __version__


@pytest.mark.parametrize("job", JOBS)
def test_help_describes_every_flag(cryoforum, job):
    result = cryoforum(job, "--help")
    assert result.returncode == 0
    model = JOBS[job]
    for name, field in model.model_fields.items():
        if name != "job":
            is_positional = (field.json_schema_extra or {}).get("positional")
            shown = "positional arguments" if is_positional else f"--{name.replace('_', '-')}"
            assert shown in result.stdout
            assert field.description, f"{name} has no description"
    assert "--job" not in result.stdout
    assert "None" not in result.stdout and "(default: )" not in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["predict", "--help"]])
def test_help_loads_no_large_library(arguments):
    """Loading them takes seconds; without them help is there at once."""
    assert not {"torch", "scipy", "matplotlib", "pandas", "gemmi"} & imported_modules(*arguments)


def test_importing_the_package_loads_no_torch():
    code = "import sys, cryoforum_core; assert 'torch' not in sys.modules; cryoforum_core.load_particles"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_flags_become_the_configuration():
    config = parse(["simulate", "--out", "run", "--n-particles", "7", "--snr", "0.5", "--junk-kinds", "noise", "blank",
                    "--model", "map.mrc", "--resume"])
    assert config == SimulateConfig(out="run", n_particles=7, snr=0.5, junk_kinds=("noise", "blank"), model="map.mrc",
                                    resume=True)
    # the plugin gives switches in both forms
    assert parse(["train", "--out", "run", "--particles", "a.star", "--no-augment", "--no-resume"]) == TrainConfig(
        out="run", particles="a.star", augment=False)
    assert parse(["predict", "--out", "run", "--particles", "a.star", "--model", "m", "--symmetry", "d2",
                  "--max-shift-angstrom", "12.5"]) == PredictConfig(
        out="run", particles="a.star", model="m", symmetry="d2", max_shift_angstrom=12.5)


def test_all_values_out_of_range_are_reported_together():
    with pytest.raises(InputError) as caught:
        parse(["simulate", "--out", "x", "--snr", "-1", "--n-particles", "0", "--junk-fraction", "2"])
    assert caught.value.problems == ["--n-particles must be greater than 0; it is 0.",
                                     "--snr must be greater than 0; it is -1.0.",
                                     "--junk-fraction must be less than 1; it is 2.0."]


@pytest.mark.parametrize("arguments, message", [
    (["simulat", "--out", "x"], "error: The first argument must be a job; 'simulat' is not one. Jobs: simulate, ab-initio"),
    (["simulate"], "--out"),
    (["simulate", "--out", "x", "--wrong", "3"], "--wrong"),
    (["simulate", "--out", "x", "--snr", "much"], "--snr"),
    (["simulate", "--out", "x", "--noise", "green"], "green"),
    (["select", "--out", "x", "--run", "y", "--auto", "--keep-count", "3"], "error: --auto and a criterion exclude"),
    (["simulate", "--out", "x", "--defocus-min-angstrom", "9e4"], "error: The smallest defocus must not be above"),
])
def test_wrong_arguments_exit_with_2_and_without_traceback(tmp_path, arguments, message):
    result = program(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_set(cryoforum, molecule, tmp_path):
    out = tmp_path / "set"
    result = cryoforum("simulate", "--out", out, "--model", molecule, "--n-particles", 60, "--snr", 2)
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_simulate_writes_its_files_and_summary(small_set):
    out, text = small_set
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["n_particles"], summary["box_size_px"], summary["pixel_size_angstrom"]) == (60, 32, 5.0)
    assert summary["snr"] == pytest.approx(2, rel=0.05) and summary["job"] == "simulate"
    for name in ("particles.star", "particles.mrcs", "truth.star", "map.mrc", "config.json", "report.html"):
        assert (out / name).stat().st_size > 0
    assert f"cryoforum {__version__} simulate" in text and "CPU" in text and "100%" in text
    assert "  pixel size (A): 5\n" in text and "pixel_size_angstrom" not in text


def test_reconstruct_and_evaluate_from_the_truth(cryoforum, small_set, tmp_path):
    out, _ = small_set
    made = cryoforum("reconstruct", "--out", tmp_path / "map", "--particles", out / "truth.star")
    assert made.returncode == 0, made.stderr
    assert json.loads((tmp_path / "map/summary.json").read_text())["resolution_angstrom"] > 0
    evaluated = cryoforum("evaluate", "--out", tmp_path / "errors", "--particles", out / "truth.star", "--truth",
                       out / "truth.star", "--map", tmp_path / "map/map.mrc", "--truth-map", out / "map.mrc")
    assert evaluated.returncode == 0, evaluated.stderr
    summary = json.loads((tmp_path / "errors/summary.json").read_text())
    assert summary["median_error_deg"] < 1e-3 and summary["median_shift_error_angstrom"] == 0
    assert summary["fraction_below_5deg"] == summary["fraction_below_10deg"] == 1
    assert 10.0 <= summary["resolution_angstrom"] < 25.0


def test_resume_skips_a_finished_run_and_refuses_other_options(cryoforum, small_set, molecule):
    out, _ = small_set
    before = (out / "particles.mrcs").stat().st_mtime_ns
    same = ("simulate", "--out", out, "--model", molecule, "--n-particles", 60, "--snr", 2, "--resume")
    result = cryoforum(*same)
    assert result.returncode == 0 and "already finished" in result.stdout
    assert (out / "particles.mrcs").stat().st_mtime_ns == before
    result = cryoforum(*same, "--seed", 5)
    assert result.returncode == 2 and "these differ: seed (was 0, is 5)" in result.stderr
    assert (out / "particles.mrcs").stat().st_mtime_ns == before


def interrupted_simulation(directory, model, *signals):
    """A simulation too long to end by itself, which is sent each of ``signals`` when a step is done. Returns its exit code,
    what it wrote to standard error, and the arguments."""
    arguments = ["simulate", "--out", "run", "--model", str(model), "--n-particles", "300000"]
    command = [sys.executable, "-u", "-c", _SHOW_EVERY_STEP, *arguments]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        for stop in signals:
            assert any(line.startswith("simulate ") for line in process.stdout), process.stderr.read()
            process.send_signal(stop)
        _, errors = process.communicate()
    return process.returncode, errors, arguments


# a line for each step, whatever the machine's speed: the log has one in five seconds
_SHOW_EVERY_STEP = """
import functools, sys
from cryoforum_core import cli
from cryoforum_core.progress import Progress
Progress.__init__ = functools.partialmethod(Progress.__init__, log_interval_seconds=0.0)
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_job_exits_with_130_and_says_how_to_continue(tmp_path, molecule, stop):
    code, errors, arguments = interrupted_simulation(tmp_path, molecule, stop)
    assert code == 130
    assert "Traceback" not in errors
    assert f"cryoforum {' '.join(arguments)} --resume" in errors
    # no partial stack under its final name, and no summary of a finished run
    assert not (tmp_path / "run/particles.mrcs").exists() and not (tmp_path / "run/summary.json").exists()


# a job whose third step drops an object; Ctrl-C is pressed in the code that Python then runs, where exceptions are lost
_CTRL_C_IN_A_CALLBACK = """
import signal, sys, weakref
from cryoforum_core import cli
from cryoforum_core.progress import Progress

class Dropped:
    def __del__(self):
        if "__del__" in sys.argv:
            signal.raise_signal(signal.SIGINT)

class Plain:
    pass

steps = 0
update = Progress.update

def update_and_drop(self, n=1, **figures):
    global steps
    steps += 1
    if steps == 3:
        print("dropped in step 3", flush=True)
        dropped = Dropped() if "__del__" in sys.argv else Plain()
        reference = weakref.ref(dropped, lambda _: "__del__" in sys.argv or signal.raise_signal(signal.SIGINT))
        del dropped
    assert steps <= 3, "the job went on"
    update(self, n, **figures)

Progress.update = update_and_drop
cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize("callback", ["weakref", "__del__"])
def test_ctrl_c_is_not_lost_in_a_callback(tmp_path, molecule, callback):
    command = [sys.executable, "-c", _CTRL_C_IN_A_CALLBACK, callback, "simulate", "--out", "run", "--model", str(molecule),
               "--n-particles", "300000"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert "dropped in step 3" in done.stdout
    assert done.returncode == 130 and "--resume" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run/summary.json").exists()


def test_program_errors_keep_their_traceback(tmp_path):
    """A bug must not look like bad input; here, a summary that is not JSON."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"job": "simulate"}')
    (run / "summary.json").write_text("not JSON")
    result = program("report", "--out", tmp_path / "page", "--run", run)
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_doctor_needs_no_directory_and_passes(cryoforum, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cryoforum("doctor")
    assert result.returncode == 0, result.stderr
    assert "all 5 checks passed" in result.stdout and "torch" in result.stdout
    assert not list(tmp_path.iterdir())


def test_doctor_writes_to_its_output_directory(cryoforum, tmp_path):
    assert cryoforum("doctor", "--out", tmp_path / "run").returncode == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["ok"] is True


def test_background_job_stops_at_sigterm(tmp_path, molecule):
    """Background jobs of a script ignore SIGINT; SIGTERM must still end them."""
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process inherits it, as from such a shell
    try:
        code, errors, _ = interrupted_simulation(tmp_path, molecule, signal.SIGINT, signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert code == 130 and "--resume" in errors
