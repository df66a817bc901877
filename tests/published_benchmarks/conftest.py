"""A published table run on sets so small that only runs with known poses converge."""

import csv

import pytest

from cryoforum_core.cli import main
from cryoforum_core.published_benchmarks import benchmark as benchmark_module
from cryoforum_core.published_benchmarks.methods import ab_initio_config

BOX, N = 24, 240
TINY = ("--n-particles", N, "--box-size-px", BOX, "--minutes", 0.02, "--network-minutes", 0.02, "--search-steps", 20)


def benchmark(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "cryoposenet", *map(str, arguments)])
    return stop.value.code


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """A method on the set with CTF; then more methods, seeds and a set without CTF, in the same directory."""
    out = tmp_path_factory.mktemp("benchmark") / "run"
    with pytest.MonkeyPatch.context() as patch:
        # the longest parts have tests of their own
        patch.setattr(benchmark_module, "ab_initio_config", _without_refinement)
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


def _without_refinement(config, method, *arguments):
    made = ab_initio_config(config, method, *arguments)
    return made.model_copy(update={"seeds": 1, "skip": ("refinement",)})
