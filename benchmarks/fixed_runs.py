"""Small runs with fixed seeds on one thread, and whether two checkouts give the same arrays.

A change of structure must not change a figure::

    python benchmarks/fixed_runs.py make BEFORE --checkout /path/to/the/older/checkout
    python benchmarks/fixed_runs.py make AFTER
    python benchmarks/fixed_runs.py compare BEFORE AFTER     # exit code 1 where an array differs

Runs: simulate, train, predict (adaptive, local, the network alone, from labelled particles), select by several rules,
reconstruct, ab initio of both methods, evaluate. What depends on the clock is left out: training ends after a number of
steps, and the hybrid method's network, which is trained for a time, is skipped. Times and file paths are not compared.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import starfile
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
AB_INITIO = ["--particles", "set/particles.star", "--search-steps", "60", "--seeds", "1", "--device", "cpu"]
RUNS = {
    "set": ["simulate", "--n-particles", "400", "--box-size-px", "32", "--snr", "0.5", "--shift-rms-px", "1",
            "--junk-fraction", "0.15", "--seed", "3"],
    "clean": ["simulate", "--n-particles", "200", "--box-size-px", "32", "--snr", "1", "--noise", "coloured", "--seed", "4"],
    "network": ["train", "--particles", "set/particles.star", "--reference", "set/map.mrc", "--max-steps", "60",
                "--precision", "float32", "--device", "cpu"],
    "labelled": ["train", "--particles", "clean/truth.star", "--max-steps", "30", "--precision", "float32", "--encoder",
                 "compact", "--device", "cpu"],
    "adaptive": ["predict", "--particles", "set/particles.star", "--model", "network", "--device", "cpu"],
    "local": ["predict", "--particles", "set/particles.star", "--model", "network", "--refinement", "local", "--device", "cpu"],
    "alone": ["predict", "--particles", "set/particles.star", "--model", "network", "--refinement", "none", "--device", "cpu"],
    "known": ["predict", "--particles", "set/particles.star", "--model", "network", "--calibration-particles",
              "clean/truth.star", "--device", "cpu"],
    "select": ["select", "--run", "adaptive"],
    "select_fraction": ["select", "--run", "adaptive", "--measure", "expected-error", "--keep-fraction", "0.6"],
    "select_error": ["select", "--run", "adaptive", "--max-error-deg", "5"],
    "select_auto": ["select", "--run", "adaptive", "--auto", "--device", "cpu"],
    "select_alone": ["select", "--run", "alone"],
    "map": ["reconstruct", "--particles", "adaptive/particles.star", "--device", "cpu"],
    "hybrid": ["ab-initio", *AB_INITIO, "--skip", "distillation"],
    "hybrid_unrefined": ["ab-initio", *AB_INITIO, "--skip", "distillation", "refinement", "--hand-reference", "set/map.mrc"],
    "end_to_end": ["ab-initio", "--particles", "clean/particles.star", "--method", "end-to-end", "--epochs", "2",
                   "--encoder", "compact", "--device", "cpu"],
    "evaluation": ["evaluate", "--particles", "adaptive/particles.star", "--truth", "set/truth.star", "--map", "map/map.mrc",
                   "--truth-map", "set/map.mrc"],
}
# bad_input is none of these: 3 says that a run did not converge, which such short searches may well not
GOOD_CODES = (0, 3)
TIMED = ("seconds", "per_second", "stages", "version", "path")
# names of arrays and of summaries' figures that have changed since: old -> new
RENAMED = {"promised_fraction": "nominal_coverage", "held_fraction": "empirical_coverage",
           "worth_of_views": "ensemble_weight"}


def make(out: Path, checkout: Path, only: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    for name, (job, *options) in RUNS.items():
        if (only and name not in only) or (out / name / "summary.json").is_file():
            continue
        print(name, flush=True)
        code = subprocess.run([sys.executable, "-m", "cryoforum_core", job, "--out", name, *options], cwd=out,
                              env=environment, stdout=subprocess.DEVNULL).returncode
        if code not in GOOD_CODES:
            sys.exit(f"{name} ended with exit code {code}")


def arrays(path: Path) -> dict[str, np.ndarray]:
    """What a file holds, by name; nothing where the kind of file is not compared."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    if path.suffix in (".mrc", ".mrcs"):
        with mrcfile.open(path) as file:
            return {"map": file.data.copy()}
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".star":
        blocks = starfile.read(path, always_dict=True)
        return {f"{block}/{name}": np.asarray(table[name]) for block, table in blocks.items() for name in table}
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    if path.name == "summary.json":
        return dict(_figures(json.loads(path.read_text())))
    return {}


def _figures(value, name: str = ""):
    if isinstance(value, dict):
        for key, inner in value.items():
            if not any(part in key for part in TIMED):
                yield from _figures(inner, f"{name}/{RENAMED.get(key, key)}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _figures(inner, f"{name}/{place}")
    elif isinstance(value, int | float) and value is not None:
        yield name, np.array(value)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    is_number = first.dtype.kind in "fc" and second.dtype.kind in "fc"
    return first.shape == second.shape and np.array_equal(first, second, equal_nan=is_number)


def compare(before: Path, after: Path) -> int:
    """Prints what differs; returns how many arrays do."""
    n_same, different = 0, []
    for path in sorted(path.relative_to(before) for path in before.rglob("*") if path.is_file()):
        # training's metrics hold the seconds that each step took
        if path.name == "metrics.csv":
            continue
        old = {RENAMED.get(name, name): values for name, values in arrays(before / path).items()}
        if not old:
            continue
        if not (after / path).is_file():
            different.append(f"{path} is missing")
            continue
        new = arrays(after / path)
        for name, values in old.items():
            if name.endswith("rlnImageName"):
                continue
            if name not in new:
                different.append(f"{path}: {name} is missing")
            elif same(values, new[name]):
                n_same += 1
            else:
                different.append(f"{path}: {name}{_largest(values, new[name])}")
    print("\n".join(different))
    print(f"{n_same} arrays are equal bit for bit, {len(different)} are not")
    return len(different)


def _largest(first: np.ndarray, second: np.ndarray) -> str:
    if first.shape != second.shape or first.dtype.kind not in "fiu" or second.dtype.kind not in "fiu":
        return ""
    return f" differs by up to {np.nanmax(np.abs(first.astype(float) - second.astype(float))):.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    making = jobs.add_parser("make")
    making.add_argument("out", type=Path)
    making.add_argument("--checkout", type=Path, default=ROOT)
    making.add_argument("--only", nargs="*", default=[], choices=list(RUNS))
    comparing = jobs.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.job == "make":
        make(given.out.resolve(), given.checkout.resolve(), given.only)
    else:
        sys.exit(1 if compare(given.before, given.after) else 0)


if __name__ == "__main__":
    main()
