"""Bad input through the command line: exit code 2, every problem named with its remedy, no traceback, nothing written.

Each case is caused for real: the file is damaged, missing or of the wrong kind.
"""

import json
import os
import shutil
import subprocess
import sys

import mrcfile
import numpy as np
import pytest

from cryoforum_core.cli import main
from cryoforum_core.mrc import write_map, write_stack
from cryoforum_core.particles.table import ParticleTable

BOX, PIXEL, N = 32, 5.0, 60


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A good set with its map, and a network trained on it for two steps."""
    folder = tmp_path_factory.mktemp("made")
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    centres = np.random.default_rng(0).uniform(-6, 6, (10, 3))
    volume = sum(np.exp(-((x - a)**2 + (y - b)**2 + (z - c)**2) / 4) for a, b, c in centres)
    write_map(folder / "molecule.mrc", volume, PIXEL)
    assert run("simulate", "--out", folder / "set", "--model", folder / "molecule.mrc", "--n-particles", N,
               "--snr", 5) == 0
    assert run("train", "--out", folder / "network", "--particles", folder / "set/particles.star", "--reference",
               folder / "molecule.mrc", "--max-steps", 2, "--batch-size", 4) == 0
    return folder


@pytest.fixture
def work(made, tmp_path):
    """A copy of the set that a test may damage."""
    shutil.copytree(made / "set", tmp_path / "set")
    shutil.copy(made / "molecule.mrc", tmp_path / "molecule.mrc")
    return tmp_path


def everything_below(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def refused(work, capsys):
    """Runs a command that must be refused; returns its problems."""
    def check(*arguments, n_problems=1):
        before = everything_below(work)
        capsys.readouterr()
        assert run(*arguments) == 2
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        assert everything_below(work) == before, "something was written"
        problems = [line.removeprefix("error: ") for line in errors.splitlines()]
        assert all(line.startswith("error: ") for line in errors.splitlines())
        assert len(problems) == n_problems, problems
        return problems if n_problems > 1 else problems[0]

    return check


@pytest.fixture
def reading(made, work):
    """The jobs that read images, each ready to run on ``particles``; ``truth`` has poses too."""
    def commands(particles):
        return {
            "train": ("train", "--out", work / "out", "--particles", particles, "--reference", work / "molecule.mrc"),
            "predict": ("predict", "--out", work / "out", "--particles", particles, "--model", made / "network"),
            "reconstruct": ("reconstruct", "--out", work / "out", "--particles", particles),
        }

    return commands


JOBS_THAT_READ = ("train", "predict", "reconstruct")


def change_table(path, **columns):
    ParticleTable.read(path).with_columns(columns).write(path)


@pytest.mark.parametrize("job", JOBS_THAT_READ)
def test_missing_stack(work, refused, reading, job):
    (work / "set/particles.mrcs").unlink()
    assert "Every image stack must exist; 1 do not: particles.mrcs" in refused(*reading(work / "set/truth.star")[job])


@pytest.mark.parametrize("job", JOBS_THAT_READ)
def test_fewer_images_than_rows(work, refused, reading, job):
    images = mrcfile.read(work / "set/particles.mrcs")
    write_stack(work / "set/particles.mrcs", images[:30], PIXEL)
    assert "has 30, and the rows refer to image 60" in refused(*reading(work / "set/truth.star")[job])


def test_stack_that_was_cut_short(work, refused, reading):
    path = work / "set/particles.mrcs"
    path.write_bytes(path.read_bytes()[:50_000])
    assert "cut short" in refused(*reading(work / "set/truth.star")["reconstruct"])


@pytest.mark.parametrize("box, pixel, message", [(24, PIXEL, "All stacks must have one box size"),
                                                 (31, PIXEL, "Images must have an even box")])
def test_boxes_that_differ_or_are_odd(work, refused, reading, box, pixel, message):
    write_stack(work / "set/second.mrcs", np.random.default_rng(0).normal(size=(N, box, box)), pixel)
    names = [f"{i + 1:06d}@{'second' if i % 2 else 'particles'}.mrcs" for i in range(N)]
    if box % 2:
        names = [f"{i + 1:06d}@second.mrcs" for i in range(N)]
    change_table(work / "set/truth.star", rlnImageName=names)
    assert message in refused(*reading(work / "set/truth.star")["predict"])


def test_pixel_sizes_that_are_none(work, refused, reading):
    table = ParticleTable.read(work / "set/truth.star")
    optics = {name: column.tolist() for name, column in table.optics.columns.items()}
    optics = {name: values * 2 for name, values in optics.items()}
    optics["rlnOpticsGroup"], optics["rlnImagePixelSize"] = [1, 2], [5.0, -6.0]
    columns = {name: column.tolist() for name, column in table.particles.columns.items()}
    columns["rlnOpticsGroup"] = [1 + i % 2 for i in range(N)]
    ParticleTable.from_columns(columns, optics).write(work / "set/truth.star")
    assert "The pixel size must be a number above 0; found -6, 5 A" in refused(*reading(work / "set/truth.star")["predict"])


@pytest.mark.parametrize("job", JOBS_THAT_READ)
def test_no_ctf_columns(work, refused, reading, job):
    table = ParticleTable.read(work / "set/truth.star")
    columns = {name: column for name, column in table.particles.columns.items() if not name.startswith("rlnDefocus")}
    ParticleTable.from_columns(columns, table.optics.columns).write(work / "set/truth.star")
    problem = refused(*reading(work / "set/truth.star")[job])
    assert "lacks rlnDefocusU, rlnDefocusV, rlnDefocusAngle" in problem and "Estimate the CTF" in problem


def set_value(path, index, value):
    """Puts one value into an MRC file: mrcfile warns of values that are not finite when it writes them."""
    data = np.memmap(path, dtype=np.float32, mode="r+", offset=1024)
    data[index] = value
    data.flush()


@pytest.mark.parametrize("job", JOBS_THAT_READ)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite(work, refused, reading, job, value):
    set_value(work / "set/particles.mrcs", 6 * BOX**2 + 100, value)
    assert "Images must have finite values; NaN or infinite ones are in particles 7." in refused(
        *reading(work / "set/truth.star")[job])


@pytest.mark.parametrize("job", JOBS_THAT_READ)
def test_constant_images(work, refused, reading, job):
    images = np.array(mrcfile.read(work / "set/particles.mrcs"))
    images[:35] = 3.0
    write_stack(work / "set/particles.mrcs", images, PIXEL)
    assert "35 of the 60 images checked have one value in all pixels" in refused(*reading(work / "set/truth.star")[job])


def test_no_poses_to_reconstruct_or_learn_from(work, refused, reading):
    assert "lacks rlnAngleRot" in refused(*reading(work / "set/particles.star")["reconstruct"])
    assert "poses or a map" in refused("train", "--out", work / "out", "--particles", work / "set/particles.star")


def write_bad_map(path, shape, pixel, fill=0.0):
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.full(shape, np.nan_to_num(fill), dtype=np.float32))
        if pixel:
            file.voxel_size = pixel
    set_value(path, 0, fill)


@pytest.mark.parametrize("shape, pixel, fill, message", [
    ((32, 32, 30), PIXEL, 0.0, "A map must be a cube"),
    ((31, 31, 31), PIXEL, 0.0, "A map must have an even box"),
    ((32, 32, 32), None, 0.0, "A map must have a pixel size"),
    ((32, 32, 32), PIXEL, np.nan, "A map must have finite values"),
    ((32, 32, 32), PIXEL, 1.0, "must show a molecule"),
])
def test_wrong_reference(work, refused, reading, shape, pixel, fill, message):
    write_bad_map(work / "molecule.mrc", shape, pixel, fill)
    assert message in refused(*reading(work / "set/particles.star")["train"])


@pytest.mark.parametrize("job", ["train", "predict"])
def test_missing_map(work, refused, reading, job):
    command = [*reading(work / "set/particles.star")[job], "--reference", work / "absent.mrc"]
    assert "A map must exist" in refused(*command)


def test_maps_to_compare_that_differ(work, refused):
    write_bad_map(work / "other.mrc", (24, 24, 24), PIXEL)
    assert "same box and pixel size" in refused(
        "evaluate", "--out", work / "out", "--particles", work / "set/truth.star", "--truth", work / "set/truth.star",
        "--map", work / "molecule.mrc", "--truth-map", work / "other.mrc")


@pytest.mark.parametrize("job", JOBS_THAT_READ)
def test_unknown_symmetry(work, refused, reading, job):
    problem = refused(*reading(work / "set/truth.star")[job], "--symmetry", "q7")
    assert "'q7' is none. Known: c1, c2" in problem


@pytest.mark.parametrize("job", JOBS_THAT_READ)
def test_empty_set(work, refused, reading, job):
    ParticleTable.read(work / "set/truth.star").subset(np.arange(0)).write(work / "set/truth.star")
    assert "must not be empty" in refused(*reading(work / "set/truth.star")[job])


def test_set_that_is_no_star_file(work, refused, reading):
    assert "STAR file" in refused(*reading(work / "set/particles.mrcs")["reconstruct"])
    assert "must exist" in refused(*reading(work / "absent.star")["reconstruct"])


@pytest.mark.parametrize("job", JOBS_THAT_READ)
def test_output_that_cannot_be_written(work, refused, reading, job):
    (work / "file").write_text("not a directory")
    command = list(reading(work / "set/truth.star")[job])
    command[2] = work / "file/run"
    assert "must be writable" in refused(*command) or "must be a directory" in refused(*command)
    command[2] = work / "file"
    assert "--out must be a directory" in refused(*command)


@pytest.mark.parametrize("job", [*JOBS_THAT_READ, "simulate"])
def test_existing_run_without_resume(work, refused, reading, job):
    (work / "out").mkdir()
    (work / "out/config.json").write_text(json.dumps({"job": job}))
    commands = reading(work / "set/truth.star") | {"simulate": ("simulate", "--out", work / "out", "--model",
                                                                work / "molecule.mrc")}
    assert "Add --resume to continue that run" in refused(*commands[job])


def test_resume_in_a_directory_that_is_no_such_run(work, refused, reading):
    command = [*reading(work / "set/truth.star")["reconstruct"], "--resume"]
    (work / "out").mkdir()
    (work / "out/thesis.tex").write_text("years of work")
    assert "contains files but no config.json" in refused(*command)
    (work / "out/config.json").write_text('{"job": "train"}')
    assert "is a 'train' run" in refused(*command)


def test_checkpoint_that_is_not_one(made, work, refused, reading):
    def predict_with(model):
        command = list(reading(work / "set/particles.star")["predict"])
        return refused(*command[:-1], model)

    assert "does not exist" in predict_with(work / "absent")
    assert "has no finished training" in predict_with(work / "set")
    shutil.copytree(made / "network/checkpoint", work / "checkpoint")
    weights = work / "checkpoint/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "must contain the weights of its network" in predict_with(work / "checkpoint")
    (work / "checkpoint/checkpoint.json").write_text("{}")
    assert "must describe its network" in predict_with(work / "checkpoint")


def test_pixel_size_that_the_network_does_not_know(made, work, refused, reading):
    problem = refused(*reading(work / "set/particles.star")["predict"], "--pixel-size-angstrom", 9)
    assert "pixels of at most the network's 5 A; these have 9 A" in problem


def test_no_gpu(work, refused, reading):
    command = [*reading(work / "set/truth.star")["reconstruct"], "--device", "cuda:99"]
    assert "--device cuda:99" in refused(*command)
    command[-1] = "gpu"
    assert "--device must be auto, cpu, cuda or cuda:N; it is 'gpu'" in refused(*command)


def test_particles_without_known_pose(work, refused):
    ParticleTable.read(work / "set/truth.star").subset(np.arange(50)).write(work / "known.star")
    assert "10 of 60 particles" in refused("evaluate", "--out", work / "out", "--particles", work / "set/truth.star",
                                           "--truth", work / "known.star")


def test_runs_that_are_unfinished_or_of_another_job(work, refused):
    assert "must be a run of predict" in refused("select", "--out", work / "out", "--run", work / "set")
    (work / "set/summary.json").unlink()
    for job in ("select", "report"):
        problem = refused(job, "--out", work / "out", "--run", work / "set")
        assert "must be finished" in problem and "--resume" in problem


def test_all_problems_of_one_input_at_once(work, refused):
    images = np.array(mrcfile.read(work / "set/particles.mrcs"))
    write_stack(work / "set/particles.mrcs", images[:20, :, :30], PIXEL)
    table = ParticleTable.read(work / "set/truth.star")
    columns = dict(table.particles.columns) | {"rlnRandomSubset": ["3"] * N}
    columns.pop("rlnAngleRot")
    columns.pop("rlnDefocusU")
    ParticleTable.from_columns(columns, table.optics.columns).write(work / "set/truth.star")
    problems = refused("reconstruct", "--out", work / "out", "--particles", work / "set/truth.star", "--symmetry", "zz",
                       "--device", "cuda:77", n_problems=7)
    for words in ("cuda:77", "point group", "20, and the rows refer to image 60", "square", "lacks rlnAngleRot",
                  "lacks rlnDefocusU", "rlnRandomSubset must be 1 or 2"):
        assert any(words in problem for problem in problems), words


# the command line, with a queue that sends SIGTERM after the second row of metrics.csv
_STOPPED_AT_SECOND_ROW = """
import signal, sys
from cryoforum_core import cli
from cryoforum_core.training.loop import MetricsFile

write, rows = MetricsFile.write, []

def write_and_stop(self, step, *figures):
    write(self, step, *figures)
    rows.append(step)
    if len(rows) == 2:
        signal.raise_signal(signal.SIGTERM)

MetricsFile.write = write_and_stop
cli.main(sys.argv[1:])
"""


def test_interrupted_training_goes_on(made, work):
    """SIGTERM, as a queue sends it: 130, the state of the training is kept, and --resume ends the training."""
    arguments = ["train", "--out", str(work / "out"), "--particles", str(work / "set/particles.star"), "--reference",
                 str(work / "molecule.mrc"), "--max-steps", "50", "--batch-size", "4"]
    done = subprocess.run([sys.executable, "-c", _STOPPED_AT_SECOND_ROW, *arguments], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 130 and "--resume" in done.stderr and "Traceback" not in done.stderr
    metrics = work / "out/metrics.csv"
    assert not (work / "out/summary.json").exists()
    assert [line.split(",")[0] for line in metrics.read_text().splitlines()] == ["step", "1", "2"]
    assert run(*arguments, "--resume") == 0
    steps = [int(line.split(",")[0]) for line in metrics.read_text().splitlines()[1:]]
    assert steps == list(range(1, 51))
    assert json.loads((work / "out/summary.json").read_text())["validation_median_error_deg"] > 0
