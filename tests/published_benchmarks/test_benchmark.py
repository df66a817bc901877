"""A published table through the command line, on sets so small that only runs with known poses converge."""

import csv
import json
import shutil

import numpy as np
import pytest

from cryoforum_core.cli import main
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_stack import save_table
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.published_benchmarks import methods

BOX, N = 24, 240
TINY = ("--n-particles", N, "--box-size-px", BOX, "--minutes", 0.02, "--network-minutes", 0.02, "--search-steps", 20)


def benchmark(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "cryoposenet", *map(str, arguments)])
    return stop.value.code


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A method on the set with CTF; then more methods, seeds and a set without CTF, in the same directory."""
    out = tmp_path_factory.mktemp("benchmark") / "run"
    with pytest.MonkeyPatch.context() as patch:
        # the longest parts have tests of their own
        patch.setitem(methods._OPTIONS, "hybrid", {"method": "hybrid", "seeds": 1, "skip": ("refinement",)})
        assert benchmark("--out", out, "--sets", "G", "--methods", "hybrid", *TINY) == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    before |= {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/summary.json")}
    assert benchmark("--out", out, "--sets", "A", "--methods", "end-to-end", "per-image", *TINY, "--resume") == 0
    assert benchmark("--out", out, "--sets", "G", "--methods", "known", "--seeds", 2, *TINY, "--resume") == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}, "finished runs must not be repeated"
    return out


def rows_of(out):
    with open(out / "table.csv", newline="") as file:
        return {(row["set"], row["method"]): row for row in csv.DictReader(file)}


def test_every_set_and_method_has_a_row(out):
    rows, summary = rows_of(out), json.loads((out / "summary.json").read_text())
    assert set(rows) == {("G", "hybrid"), ("G", "known"), ("A", "end-to-end"), ("A", "per-image")}
    assert summary["n_runs"] == len(summary["runs"]) == 5 and len(summary["rows"]) == 4 and summary["hardware"]
    assert rows["G", "known"]["n_runs"] == "2" and float(rows["G", "known"]["seconds_sd"]) >= 0
    # methods with an encoder have test errors, too
    assert float(rows["A", "end-to-end"]["test_median_error_modulo_deg"]) > 0
    assert rows["A", "per-image"]["test_median_error_modulo_deg"] == ""
    text = (out / "table.md").read_text()
    assert text.count("\n| A |") == text.count("\n| G |") == 2 and "216 training images of 24 px" in text


def test_known_poses_have_no_error_and_reach_the_map_from_true_poses(out):
    row = rows_of(out)["G", "known"]
    assert float(row["mean_error_deg"]) < 1e-2
    assert abs(float(row["shells_below_ceiling_0143"])) < 0.7
    assert float(row["ceiling_0143_angstrom"]) < 12  # Nyquist 8.5


def test_sets_match_the_published_table(out):
    clean, with_ctf = (load_particles(out / f"sets/{name}/train_truth.star", require_poses=True) for name in "AG")
    assert len(clean) == len(with_ctf) == 216 and len(load_particles(out / "sets/A/test.star")) == 24
    assert not clean.ctf.has_effect and not clean.poses.shift_angstrom.any()
    defocus = with_ctf.ctf.mean_defocus_angstrom
    assert 4000 <= defocus.min() and defocus.max() <= 12000
    assert (with_ctf.ctf.defocus_u_angstrom == with_ctf.ctf.defocus_v_angstrom).all()
    assert load_particles(out / "sets/G/train.star").poses is None
    with_noise, without = (json.loads((out / f"sets/{name}/simulated/summary.json").read_text())["snr"] for name in "GA")
    assert with_noise == pytest.approx(1.0, rel=0.05) and without is None


def test_figures_and_report_are_written(out):
    for name in ("figure3.png", "figure4.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "Benchmark: cryoposenet" in page and "poses per image" in page and "src=\"http" not in page


def test_pose_errors_are_recorded_during_training(out):
    header = (out / "runs/A_per-image_0/metrics.csv").read_text().splitlines()[0]
    assert "training_mean_error_deg" in header and "training_mean_error_modulo_deg" in header


def test_sets_made_by_another_program(out, tmp_path, capsys):
    """Tables without CTF columns, for images projected without CTF."""
    external = tmp_path / "sets"
    for name in "AG":
        made = out / f"sets/{name}/simulated"
        (external / name).mkdir(parents=True)
        for source, target in (("particles.star", "input.star"), ("truth.star", "particles.star")):
            table = ParticleTable.read(made / source)
            if name == "A":
                blocks = tuple(without_ctf(block) for block in table.blocks)
                table = ParticleTable(blocks, table.path)
            save_table(table, external / name / target)
        np.savez(external / name / "truth.npz", map=str(made / "map.mrc"))
    arguments = ("--particles-of", external, "--methods", "known", "--minutes", 0.02)
    assert benchmark("--out", tmp_path / "run", "--sets", "A", "G", *arguments) == 0
    rows = rows_of(tmp_path / "run")
    assert max(float(rows[name, "known"]["mean_error_deg"]) for name in "AG") < 1e-2
    assert float(rows["A", "known"]["ceiling_0143_angstrom"]) < 10
    shutil.rmtree(external / "G")
    np.savez(external / "A/truth.npz", map="/nowhere/map.mrc")
    capsys.readouterr()
    assert benchmark("--out", tmp_path / "other", "--sets", "A", "G", *arguments) == 2
    error = capsys.readouterr().err
    assert "lacks input.star, particles.star, truth.npz" in error and "/nowhere/map.mrc" in error
    assert not (tmp_path / "other").exists()


def without_ctf(block):
    dropped = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnVoltage", "rlnAmplitudeContrast")
    return type(block)(block.name, {name: values for name, values in block.columns.items() if name not in dropped},
                       block.is_loop, block.comments)


@pytest.mark.parametrize("arguments, message", [
    (["--sets", "A", "H"], "'H'"),
    (["--methods", "magic"], "'magic'"),
    (["--methods", "--sets", "A"], "error: --methods must name at least one"),
    (["--box-size-px", "31"], "error: The box must be even"),
    (["--particles-of", "nowhere", "--sets", "B"], "error: --particles-of must hold a directory for each of --sets"),
    (["--scale", "huge"], "huge"),
])
def test_bad_input_exits_with_2_and_writes_nothing(tmp_path, capsys, arguments, message):
    assert benchmark("--out", tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_table_and_another_scale_are_refused(out, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "imagenet", "--out", "x"])
    assert stop.value.code == 2 and "imagenet" in capsys.readouterr().err
    assert benchmark("--out", out, *TINY, "--scale", "full", "--resume") == 2
    assert "these differ: scale (was 'small', is 'full')" in capsys.readouterr().err
