"""Junk and its reasons: how well junk of five kinds is separated from particles, whether its reason is right, and what a
set without junk loses; beside the older match score, Cryo-forum's measures of dispersion on the same network, and (with
--relion) the largest value of RELION 3.1's probability distribution, after one iteration of its 3-D refinement from the map.

Each set is simulated twice, with junk and without; public commands do the rest (simulate, train, predict, select). Runs
that are finished are used again. Printed: Markdown tables.

    python benchmarks/junk.py --work /tmp/junk --map 30S.mrc --map 70S.mrc --snr 0.1 --snr 0.05 \
        --defocus empiar10028_defocus.npz --n-particles 1500
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cleanup import command, markdown_table, roc_area
from relion_probability import COLUMN, relion_probability
from results_page import record

from cryoforum_core.catalogue import JUNK_KIND_COLUMN
from cryoforum_core.config import JUNK_KINDS
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.selection.measures import MEASURES, measures_of
from cryoforum_core.selection.selection import REASON_COLUMN

REASON_OF = {"noise": "not-a-particle", "blank": "not-a-particle", "off-centre": "off-centre",
             "overlap": "overlapping-neighbour", "other-molecule": "another-object"}
MEASURES_SHOWN = ("particle-probability", "match-score", "dispersion-max", "dispersion-trace", "dispersion-wigner")


@dataclass(frozen=True)
class Assessed:
    """Of one set: ROC areas (measure -> all and each kind), and fractions."""

    areas: dict[str, dict[str, float]]
    junk_found: float
    particles_rejected: float
    reason_right: float
    reason_right_of: dict[str, float]
    clean_rejected: float


def rejected_reasons(work: Path, out: str) -> dict[int, str]:
    """Reason by particle id, of a run of select."""
    table = ParticleTable.read(work / out / "rejected.star")
    if not len(table):
        return {}
    return dict(zip(table.integers("rlnParticleId").tolist(), table.strings(REASON_COLUMN).tolist(), strict=True))


def assess(work: Path, name: str, with_relion: bool) -> Assessed:
    """The finished runs of one set against what is true of it."""
    truth = ParticleTable.read(work / f"{name}_set" / "truth.star")
    kind_of = dict(zip(truth.integers("rlnParticleId").tolist(), truth.strings(JUNK_KIND_COLUMN).tolist(), strict=True))
    with np.load(work / f"{name}_predict" / "orientation_posterior.npz", allow_pickle=False) as arrays:
        measures, ids = measures_of(PoseResults.from_arrays(arrays)), arrays["particle_id"].tolist()
    kind, reasons = np.array([kind_of[i] for i in ids]), rejected_reasons(work, f"{name}_select")
    areas = {}
    for measure in MEASURES_SHOWN:
        quality = MEASURES[measure].quality(measures[measure])
        good = quality[kind == "none"]
        areas[measure] = {"all": roc_area(good, quality[kind != "none"])} | {
            each: roc_area(good, quality[kind == each]) for each in JUNK_KINDS}
    if with_relion:
        made = work / f"{name}_set"
        quality = relion_probability(made / "particles.star", made / "map.mrc", work / f"{name}_relion")
        areas[COLUMN] = {"all": roc_area(quality[kind == "none"], quality[kind != "none"])} | {
            each: roc_area(quality[kind == "none"], quality[kind == each]) for each in JUNK_KINDS}
    rejected = np.array([i in reasons for i in ids])
    right = np.array([REASON_OF.get(k) == reasons.get(i) for k, i in zip(kind, ids, strict=True)])
    found = rejected & (kind != "none")
    n_clean = len(ParticleTable.read(work / f"{name}_clean_predict" / "particles.star"))
    return Assessed(areas, float(found.sum() / (kind != "none").sum()), float(rejected[kind == "none"].mean()),
                  float(right[found].mean()),
                  {each: float(right[found & (kind == each)].mean()) for each in JUNK_KINDS},
                  len(rejected_reasons(work, f"{name}_clean_select")) / n_clean)


def run_commands(options: argparse.Namespace, path: Path, snr: float, name: str) -> None:
    """Simulates, trains (once for each map) and predicts into ``options.work``."""
    low, high = (13500.0, 27800.0)
    if options.defocus is not None:
        with np.load(options.defocus, allow_pickle=False) as arrays:
            low, high = np.percentile((arrays["dfu"] + arrays["dfv"]) / 2, [5, 95]).round()
    train = options.train or options.work / f"{path.stem}_train"
    for suffix, n, junk, seed in (("", options.n_particles, options.junk_fraction, options.seed),
                                  ("_clean", options.n_clean, 0, options.seed + 1)):
        made = options.work / f"{name}{suffix}_set"
        command(options.work, "simulate", made.name, "--model", path, "--n-particles", n, "--snr", snr,
                "--junk-fraction", junk, "--defocus-min-angstrom", low, "--defocus-max-angstrom", high, "--seed", seed)
        if options.train is None:
            command(options.work, "train", train.name, "--particles", made / "particles.star", "--reference",
                    made / "map.mrc", "--max-minutes", options.train_minutes, "--network-box-size-px", 32)
        command(options.work, "predict", f"{name}{suffix}_predict", "--particles", made / "particles.star", "--model",
                train, "--reference", made / "map.mrc", "--no-calibrate", "--seed", options.seed)
        command(options.work, "select", f"{name}{suffix}_select", "--run", options.work / f"{name}{suffix}_predict")


def record_figures(name: str, snr: float, n_particles: int, result: Assessed) -> None:
    which = {"set": name, "snr": snr, "particles": n_particles}
    record("junk", {"figures": which | {
        "found_percent": 100 * result.junk_found, "rejected_percent": 100 * result.particles_rejected,
        "reason_percent": 100 * result.reason_right, "clean_percent": 100 * result.clean_rejected,
        **{kind: 100 * right for kind, right in result.reason_right_of.items()}}})
    for measure, area in result.areas.items():
        record("junk_measures", {"figures": which | {
            "measure": measure, **{kind: f"{value:.4f}" for kind, value in area.items()}}})


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    areas, decisions = [], []
    for path in options.map:
        for snr in options.snr:
            name = f"{path.stem}_{snr:g}"
            run_commands(options, path, snr, name)
            result = assess(options.work, name, options.relion)
            record_figures(path.stem.partition("_")[0], snr, options.n_particles, result)
            areas += [[name, measure, *(f"{area[kind]:.4f}" for kind in ("all", *JUNK_KINDS))]
                      for measure, area in result.areas.items()]
            decisions.append([name, f"{100 * result.junk_found:.1f} %", f"{100 * result.particles_rejected:.2f} %",
                             f"{100 * result.reason_right:.1f} %",
                             *(f"{100 * result.reason_right_of[kind]:.0f} %" for kind in JUNK_KINDS),
                             f"{100 * result.clean_rejected:.2f} %"])
    print(f"{options.n_particles:,} images with {options.junk_fraction:.0%} junk of five kinds; {options.n_clean:,} "
          f"without. Area under the ROC curve, particles against junk:\n\n"
          f"{markdown_table(['set', 'measure', 'all junk', *JUNK_KINDS], areas)}\n\nThe default of select:\n")
    header = ["set", "junk found", "particles rejected", "reason right", *JUNK_KINDS, "rejected of a clean set"]
    print(markdown_table(header, decisions))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of all runs; finished ones are used again")
    parser.add_argument("--map", type=Path, action="append", required=True, help="map to simulate from; may be repeated")
    parser.add_argument("--snr", type=float, action="append", required=True, help="may be repeated")
    parser.add_argument("--defocus", type=Path, help="npz with dfu and dfv: the middle 90 %% of their range is simulated")
    parser.add_argument("--train", type=Path, help="finished run of train to use for all maps, instead of training")
    parser.add_argument("--train-minutes", type=float, default=0.5)
    parser.add_argument("--n-particles", type=int, default=1500)
    parser.add_argument("--n-clean", type=int, default=1000)
    parser.add_argument("--junk-fraction", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--relion", action="store_true", help="RELION's probability too (relion_refine)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
