"""The Cryo-forum author's notebook experiments, redone: 5,000 images split 2512/838/1650, errors of the network alone.

    python benchmarks/cryoforum_notebook.py --models FOLDER --out DIR [--box 64] [--train-minutes 8] [--device cpu]
        [--only 70S] [options of train, such as --loss pairwise]

Two molecules: the 70S ribosome with CTF (C1), and beta-galactosidase (D2), both at SNR 0.1 and without shifts, the latter
at one defocus, as in the notebooks. The network learns from the 2,512 labelled images, and from projections of the map
that these images give; 838 are held out for the early stop's sake, 1,650 are the test. FOLDER holds
``70S_sparx_grp0.pdb.gz`` and ``5a1a.pdb.gz``. The notebooks' box is 128 px, which wants a GPU.

Prints a row for each set, with the error of ``predict --refinement adaptive`` beside that of the network alone, and the
held-out error of the network while it trained. A set that is there already is used again.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from results_page import record

from cryoforum_core.particles.dataset import load_particles

SPLIT = (2512, 838, 1650)


@dataclass(frozen=True)
class Experiment:
    """One notebook: the molecule, its CTF, and the published errors in degrees."""

    name: str
    model: str
    symmetry: str
    defocus_angstrom: tuple[float, float]
    extent_angstrom: float
    published_median_deg: float
    published_mean_deg: float
    aim_deg: tuple[float, float]


EXPERIMENTS = (
    Experiment("70S, CTF", "70S_sparx_grp0.pdb.gz", "c1", (10000.0, 25000.0), 384.0, 4.38, 5.03, (2.5, 3.5)),
    Experiment("beta-galactosidase, D2", "5a1a.pdb.gz", "d2", (21580.0, 21580.0), 318.7, 2.90, 8.76,
               (2.0, 3.0)),
)


def run(*arguments) -> float:
    """Runs a cryoforum command; returns its seconds."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "cryoforum_core", *map(str, arguments)], check=True)
    return time.monotonic() - start


def summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


def split(truth: Path, out: Path) -> tuple[Path, Path]:
    """STAR files of the labelled (training and validation) and of the test particles, in random order."""
    particles = load_particles(truth, require_poses=True)
    order = np.random.default_rng(0).permutation(len(particles))
    labelled, test = order[:SPLIT[0] + SPLIT[1]], order[SPLIT[0] + SPLIT[1]:]
    for name, rows in (("labelled", labelled), ("test", test)):
        particles.subset(np.sort(rows)).save(out / f"{name}.star")
    return out / "labelled.star", out / "test.star"


def make_set(experiment: Experiment, out: Path, box_size_px: int, common: tuple) -> None:
    """Simulates the images, unless they are there."""
    if (out / "set" / "summary.json").exists():
        return
    run("simulate", "--model", experiment.model, "--out", out / "set", "--n-particles", sum(SPLIT),
        "--box-size-px", box_size_px, "--pixel-size-angstrom", experiment.extent_angstrom / box_size_px, "--snr", 0.1,
        "--shift-rms-px", 0, "--defocus-min-angstrom", experiment.defocus_angstrom[0],
        "--defocus-max-angstrom", experiment.defocus_angstrom[1], "--symmetry", experiment.symmetry, *common)


def test_error(experiment: Experiment, test: Path, out: Path, refinement: str, common: tuple) -> tuple[str, float]:
    """Median / mean error in degrees of the test particles, and the seconds that ``predict`` took."""
    seconds = run("predict", "--particles", test, "--model", out / "train", "--refinement", refinement,
                  "--out", out / refinement, *common)
    errors = out / f"errors-{refinement}"
    run("evaluate", "--particles", out / refinement / "particles.star", "--truth", test, "--symmetry",
        experiment.symmetry, "--out", errors)
    found = summary(errors)
    return f"{found['median_error_deg']:.2f} / {found['mean_error_deg']:.2f}", seconds


def curve(metrics: Path) -> list[str]:
    """The network's held-out median error while it trained, two rows of a table: minutes and degrees."""
    with open(metrics, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["validation_median_error_deg"]]
    minutes = " | ".join(f"{float(row['seconds']) / 60:.1f}" for row in rows)
    return [f"| minute | {minutes} |", "|---" * (len(rows) + 1) + "|",
            "| degrees | " + " | ".join(f"{float(row['validation_median_error_deg']):.1f}" for row in rows) + " |"]


def redo(experiment: Experiment, options: argparse.Namespace, train_options: list[str]) -> tuple[str, list[str]]:
    """Simulates, trains, predicts and evaluates; returns a row of the table, and the curve of the training."""
    out = options.out / experiment.name.split(",")[0].replace(" ", "_")
    common = ("--device", options.device)
    make_set(replace(experiment, model=options.models / experiment.model), out, options.box, common)
    labelled, test = split(out / "set" / "truth.star", out)
    budget = ("--max-minutes", options.train_minutes) if options.train_minutes else ("--max-steps", options.max_steps)
    seconds = run("train", "--particles", labelled, "--symmetry", experiment.symmetry, "--out", out / "train",
                  "--validation-fraction", SPLIT[1] / (SPLIT[0] + SPLIT[1]), *budget, *train_options, *common)
    alone, _ = test_error(experiment, test, out, "none", common)
    refined, search_seconds = test_error(experiment, test, out, "adaptive", common)
    network = json.loads((out / "train" / "config.json").read_text())
    record("notebooks", {"figures": {
        "set": experiment.name, "box_px": options.box, "encoder": f"{network['encoder']}, {network['width']} channels",
        "steps": summary(out / "train")["steps"], "train_min": seconds / 60, "error_deg": alone, "notebook_deg":
        [experiment.published_median_deg, experiment.published_mean_deg], "aim_deg": list(experiment.aim_deg),
        "matched_deg": refined}})
    row = (f"| {experiment.name} | {options.box} | {summary(out / 'train')['steps']} | {seconds / 60:.1f} min | "
           f"{alone} | {experiment.published_median_deg:.2f} / {experiment.published_mean_deg:.2f} | {refined} | "
           f"{search_seconds / 60:.1f} min |")
    return row, curve(out / "train" / "metrics.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--train-minutes", type=float)
    parser.add_argument("--max-steps", type=int, default=40000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="the set whose name contains this")
    options, train_options = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    done = {experiment.name: redo(experiment, options, train_options)
            for experiment in EXPERIMENTS if options.only in experiment.name}
    print("| set | box (px) | steps | training | test median / mean (deg), network alone | notebook, 128 px | "
          "after matching (adaptive) | matching |\n|---|---|---|---|---|---|---|---|")
    print("\n".join(row for row, _ in done.values()))
    for name, (_, lines) in done.items():
        print(f"\n{name}: held-out median error of the network alone, while it trained\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
