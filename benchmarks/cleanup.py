"""Clean-up: which measure of uncertainty finds junk, and what removing it does, against removing as many at random.

Simulated particles with junk of five kinds go through the public commands: simulate, train (or a given network),
predict, select by each measure and by default, evaluate, reconstruct. Printed: Markdown tables.

    python benchmarks/cleanup.py --work /tmp/cleanup --n-particles 3000 --train-minutes 5
    python benchmarks/cleanup.py --work /tmp/cleanup --train run_of_train
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results_page import record

from cryoforum_core.catalogue import JUNK_KIND_COLUMN
from cryoforum_core.config import JUNK_KINDS
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.selection.measures import MEASURES, measures_of

RANDOM_DRAWS = 200


@dataclass(frozen=True, eq=False)
class Scored:
    """What is known of N predicted particles; errors in degrees, junk's against the pose it was drawn with."""

    measures: dict[str, np.ndarray]
    kind: np.ndarray
    error_deg: np.ndarray

    @property
    def is_junk(self) -> np.ndarray:
        return self.kind != "none"


@dataclass(frozen=True)
class Cleaned:
    """What a selection leaves: counts, mean errors in degrees with junk and without, resolution against the truth."""

    name: str
    n_kept: int
    junk_found: float
    particles_rejected: float
    mean_error_deg: float
    random_mean_error_deg: float
    random_spread_deg: float


def roc_area(good: np.ndarray, junk: np.ndarray) -> float:
    """Chance that a junk image has a lower quality than a particle (Mann-Whitney), ties counted half; NaN without junk.

    good (n,), junk (m,): higher is better; what is not finite counts as the lowest.
    """
    if not len(good) or not len(junk):
        return float("nan")
    values = np.concatenate([good, junk])
    values = np.where(np.isfinite(values), values, -np.inf)
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - 0.5 * (count - 1)  # the mean rank of equal values, from 1
    above = rank[inverse][:len(good)].sum() - 0.5 * len(good) * (len(good) + 1)
    return float(above / (len(good) * len(junk)))


def roc_areas(scored: Scored) -> dict[str, dict[str, float]]:
    """measure -> {"all": area, kind: area, ...}."""
    areas = {}
    for name, values in scored.measures.items():
        quality = MEASURES[name].quality(values)
        good = quality[~scored.is_junk]
        areas[name] = {"all": roc_area(good, quality[scored.is_junk])} | {
            kind: roc_area(good, quality[scored.kind == kind]) for kind in JUNK_KINDS}
    return areas


def remove_at_random(error_deg: np.ndarray, n_kept: int, rng: np.random.Generator, draws: int = RANDOM_DRAWS
                     ) -> tuple[float, float]:
    """Mean over draws, and spread, of the mean error of ``n_kept`` particles taken at random."""
    means = [error_deg[rng.permutation(len(error_deg))[:n_kept]].mean() for _ in range(draws)]
    return float(np.mean(means)), float(np.std(means))


def assess(name: str, kept: np.ndarray, scored: Scored, rng: np.random.Generator) -> Cleaned:
    """What the rows ``kept`` (k,) hold."""
    is_kept = np.zeros(len(scored.kind), dtype=bool)
    is_kept[kept] = True
    mean, spread = remove_at_random(scored.error_deg, len(kept), rng)
    is_gone = ~is_kept
    return Cleaned(name, len(kept), float(is_gone[scored.is_junk].mean()), float(is_gone[~scored.is_junk].mean()),
                   float(scored.error_deg[is_kept].mean()), mean, spread)


def roc_table(areas: dict[str, dict[str, float]]) -> str:
    """The areas as a Markdown table, best measure first."""
    header = ["measure", "all junk", *JUNK_KINDS]
    rows = [[name, *(f"{area[kind]:.3f}" for kind in ("all", *JUNK_KINDS))]
            for name, area in sorted(areas.items(), key=lambda item: -item[1]["all"])]
    return markdown_table(header, rows)


def cleaned_table(before: Scored, cleaned: list[Cleaned]) -> str:
    """What each selection keeps and how it changes the mean error, as a Markdown table."""
    header = ["removed by", "kept", "junk found", "particles rejected", "mean error", "same number at random"]
    rows = [["nothing", f"{len(before.kind):,}", "0 %", "0 %", f"{before.error_deg.mean():.2f}°", "-"]]
    for c in cleaned:
        rows.append([c.name, f"{c.n_kept:,}", f"{100 * c.junk_found:.1f} %", f"{100 * c.particles_rejected:.1f} %",
                     f"{c.mean_error_deg:.2f}°", f"{c.random_mean_error_deg:.2f}° ± {c.random_spread_deg:.2f}°"])
    return markdown_table(header, rows)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# -- what runs commands

def command(work: Path, job: str, out: str, *arguments: object) -> dict:
    """Runs a command, or takes up a finished run of an earlier call; returns its summary."""
    line = [sys.executable, "-m", "cryoforum_core", job, "--out", str(work / out), *map(str, arguments)]
    if not (work / out / "summary.json").is_file():
        print("+ cryoforum " + shlex.join(line[3:]), file=sys.stderr, flush=True)
        subprocess.run([*line, *(["--resume"] if (work / out).is_dir() else [])], check=True, stdout=sys.stderr)
    return json.loads((work / out / "summary.json").read_text())


def read_scored(work: Path) -> Scored:
    """The run of predict beside the truth, joined by particle id."""
    with np.load(work / "predict/orientation_posterior.npz") as arrays:
        measures, particle_id = measures_of(PoseResults.from_arrays(arrays)), arrays["particle_id"]
    truth = ParticleTable.read(work / "simulate/truth.star")
    kind_of = dict(zip(truth.integers("rlnParticleId").tolist(), truth.strings(JUNK_KIND_COLUMN).tolist(), strict=True))
    with open(work / "evaluate/errors.csv", newline="") as file:
        error_of = {int(row["particle"]): float(row["error_deg"]) for row in csv.DictReader(file)}
    return Scored(measures, np.array([kind_of[i] for i in particle_id.tolist()]),
                  np.array([error_of[i] for i in particle_id.tolist()]))


def kept_rows(work: Path, out: str) -> np.ndarray:
    """Rows, in the order of the run of predict, that a run of select kept."""
    with np.load(work / "predict/orientation_posterior.npz") as arrays:
        row_of = {i: row for row, i in enumerate(arrays["particle_id"].tolist())}
    ids = ParticleTable.read(work / out / "selected.star").integers("rlnParticleId")
    return np.array([row_of[i] for i in ids.tolist()])


def map_quality(work: Path, out: str, particles: Path) -> list[str]:
    """Of the particles' map against the true one: resolution (FSC 0.5), mean FSC over the outer half of the shells."""
    command(work, "reconstruct", f"map_{out}", "--particles", particles)
    found = command(work, "evaluate", f"map_{out}_evaluate", "--particles", particles, "--truth",
                    work / "simulate/truth.star", "--map", work / f"map_{out}/map.mrc", "--truth-map",
                    work / "simulate/map.mrc")
    with open(work / f"map_{out}_evaluate/fsc.csv", newline="") as file:
        fsc = np.array([float(row["fsc"]) for row in csv.DictReader(file)])
    return [f"{found['resolution_at_fsc_0.5_angstrom']:.1f} Å", f"{fsc[len(fsc) // 2:].mean():.3f}"]


def random_subset(work: Path, n_kept: int, rng: np.random.Generator) -> Path:
    """A STAR file of ``n_kept`` particles of the run of predict."""
    path = work / "random.star"
    table = ParticleTable.read(work / "predict/particles.star")
    table.subset(np.sort(rng.permutation(len(table))[:n_kept])).write(path)
    return path


def run_commands(options: argparse.Namespace) -> None:
    """Simulates, trains, predicts and evaluates into ``options.work``."""
    work, seed = options.work, ("--seed", options.seed)
    work.mkdir(parents=True, exist_ok=True)
    command(work, "simulate", "simulate", "--n-particles", options.n_particles, "--snr", options.snr,
            "--junk-fraction", options.junk_fraction, *seed)
    particles, reference = work / "simulate/particles.star", work / "simulate/map.mrc"
    if options.train is None:
        command(work, "train", "train", "--particles", particles, "--reference", reference,
                "--max-minutes", options.train_minutes, "--network-box-size-px", options.network_box_size_px, *seed)
    command(work, "predict", "predict", "--particles", particles, "--model", options.train or work / "train",
            "--reference", reference, "--refinement", options.refinement, *seed)
    command(work, "evaluate", "evaluate", "--particles", work / "predict/particles.star",
            "--truth", work / "simulate/truth.star")


def main() -> None:
    options = parse()
    run_commands(options)
    work, scored, rng = options.work, read_scored(options.work), np.random.default_rng(options.seed)
    n_good = int((~scored.is_junk).sum())
    default = command(work, "select", "select_default", "--run", work / "predict")
    cleaned = [assess("default of select", kept_rows(work, "select_default"), scored, rng)]
    for name in scored.measures:
        command(work, "select", f"select_{name}", "--run", work / "predict", "--measure", name, "--keep-count", n_good)
        cleaned.append(assess(name, kept_rows(work, f"select_{name}"), scored, rng))
    record_figures(options, scored, cleaned)
    maps = {"all": work / "predict/particles.star", "kept by default": work / "select_default/selected.star",
            "as many at random": random_subset(work, default["n_selected"], rng)}
    network = json.loads((options.train or work / "train").joinpath("summary.json").read_text())
    print(f"{options.n_particles:,} images (30S, SNR {options.snr:g}, CTF, shifts), {options.junk_fraction:.0%} junk; "
          f"network trained for {network['seconds'] / 60:.0f} minutes (held-out median "
          f"{network['validation_median_error_deg']:.0f}°), refinement {options.refinement}.\n\n"
          f"ROC area, particles against junk:\n\n{roc_table(roc_areas(scored))}\n")
    good = scored.error_deg[~scored.is_junk]
    print(f"Mean error over what is kept, junk with the pose that it was drawn with (particles alone: median "
          f"{np.median(good):.2f}°, mean {good.mean():.2f}°). Each measure removes as many as there is junk:\n\n"
          f"{cleaned_table(scored, cleaned)}\n\n{default['explanation']}\n")
    print("Map against the true one:\n")
    print(markdown_table(["particles", "resolution (FSC 0.5)", "mean FSC of the outer half of the shells"],
                         [[name, *map_quality(work, name.split()[0], path)] for name, path in maps.items()]))


def record_figures(options: argparse.Namespace, scored: Scored, cleaned: list[Cleaned]) -> None:
    """Of each way of removing junk, and the ROC areas."""
    name = f"30S, SNR {options.snr:g}, {options.n_particles:,} images, {options.junk_fraction:.0%} junk"
    record("cleanup", {"figures": {"set": name, "removed_by": "nothing", "kept": len(scored.kind), "found_percent": 0,
                                   "lost_percent": 0, "mean_deg": float(scored.error_deg.mean()), "random_deg": None}})
    for c in cleaned:
        record("cleanup", {"figures": {
            "set": name, "removed_by": c.name, "kept": c.n_kept, "found_percent": 100 * c.junk_found,
            "lost_percent": 100 * c.particles_rejected, "mean_deg": c.mean_error_deg,
            "random_deg": [c.random_mean_error_deg, c.random_spread_deg]}})
    for measure, area in roc_areas(scored).items():
        record("junk_measures", {"figures": {
            "set": f"30S, {options.junk_fraction:.0%} junk", "snr": options.snr, "particles": options.n_particles,
            "measure": measure, **{kind: f"{value:.3f}" for kind, value in area.items()}}})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of all runs; finished ones are used again")
    parser.add_argument("--train", type=Path, help="finished run of train to use, instead of training one")
    parser.add_argument("--train-minutes", type=float, default=5.0)
    parser.add_argument("--network-box-size-px", type=int, default=32)
    parser.add_argument("--n-particles", type=int, default=3000)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--junk-fraction", type=float, default=0.15)
    parser.add_argument("--refinement", choices=("none", "local", "adaptive"), default="adaptive")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
