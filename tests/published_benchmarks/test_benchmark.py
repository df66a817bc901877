"""A published table through the command line, on sets so small that only runs with known poses converge."""

import json

import pytest

from cryoforum_core.cli import main

from .conftest import TINY, benchmark, rows_of


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


def test_figures_and_report_are_written(out):
    for name in ("figure3.png", "figure4.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "Benchmark: cryoposenet" in page and "poses per image" in page and "src=\"http" not in page


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
