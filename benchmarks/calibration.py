"""Do the bounds in degrees hold? On sets that another program projected, by prediction from a map, and by ab initio.

    python benchmarks/calibration.py predict   SET ... --reference MAP ... --model RUN ... --out DIR [--symmetry c1 ...]
    python benchmarks/calibration.py ab-initio RUN ... --truth SET ...

SET as for ``ab_initio.py``: ``input.star`` without poses, ``particles.star`` with the true ones. ``--model``: a run of
train for each set's map; any will do, for poses are searched for. The bound's coverage overall, in each defocus quartile
and in the poorest of 48 groups of views; its sharpness (mean bound over mean error), beside that of one bound for all
particles and of bounds in the order of Cryo-forum's three dispersions of the same network, each fitted on half of the
particles with the truth at hand; with --relion also of bounds in the order of RELION's rlnMaxValueProbDistribution. What is
finished is found again in DIR. Prints a Markdown table.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from relion_probability import relion_probability

from cryoforum_core.geometry.even_directions import even_directions
from cryoforum_core.geometry.pose_errors import align_poses, rotation_errors_deg, shift_errors_angstrom
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import quaternion_to_matrix
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.selection.measures import measures_of

DISPERSIONS = ("dispersion-max", "dispersion-trace", "dispersion-wigner")
N_BINS = 10
N_CONES = 48
HEADER = ("| set | SNR | particles | held | by defocus quartile | groups of views: poorest, below 80 % | mean error (deg) "
          "| mean expected error | median bound | bound / error | one bound for all | by dispersion (three) | by RELION's "
          "| held by the shift's bound |\n"
          "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")


def held_and_sharpness(error_deg: np.ndarray, measure: np.ndarray | None, coverage: float) -> tuple[float, float]:
    """Of bounds that grow with a measure (n,) (higher is less sure), or of one bound for all: the quantile of the error
    in each tenth of every second particle, by rank of the measure; judged on the others."""
    fitted = np.arange(len(error_deg)) % 2 == 0
    if measure is None:
        bound = np.full((~fitted).sum(), np.quantile(error_deg[fitted], coverage))
    else:
        # by rank: many measures may be equal
        rank = np.argsort(np.argsort(measure, kind="stable"))
        of_bin = rank * N_BINS // len(rank)
        quantiles = np.array([np.quantile(error_deg[fitted & (of_bin == i)], coverage) for i in range(N_BINS)])
        bound = quantiles[of_bin[~fitted]]
    error = error_deg[~fitted]
    return float(np.mean(error <= bound)), float(bound.mean() / error.mean())


def judged(run: Path, truth: Path, symmetry: str, is_ab_initio: bool, probability: np.ndarray | None = None) -> dict:
    """Figures of one run; ``probability`` (n,): RELION's."""
    group = symmetry_group(symmetry).double()
    known, found = (load_particles(path, require_poses=True) for path in (truth, run / "particles.star"))
    known_poses, found_poses = (Poses(p.poses.quaternion.double(), p.poses.shift_angstrom.double()) for p in (known, found))
    if is_ab_initio:
        found_poses = align_poses(found_poses, known_poses, group, allow_mirror=True).apply_to_poses(found_poses)
    error = rotation_errors_deg(found_poses.quaternion, known_poses.quaternion, group).numpy()
    with np.load(run / "orientation_posterior.npz", allow_pickle=False) as arrays:
        posterior = dict(arrays)
    bound, expected = posterior["error_bound_deg"], posterior["expected_error_deg"]
    coverage = json.loads((run / "summary.json").read_text())["error_bound_coverage"]
    within = error <= bound
    shift_error = shift_errors_angstrom(found_poses.shift_angstrom, known_poses.shift_angstrom).numpy()
    defocus = known.ctf.defocus_u_angstrom.numpy()
    quarter = np.digitize(defocus, np.quantile(defocus, (0.25, 0.5, 0.75)))
    views = quaternion_to_matrix(known_poses.quaternion)[:, 2].numpy()
    cone = (views @ even_directions(N_CONES).T).argmax(1)
    of_cones = np.array([within[cone == i].mean() for i in range(N_CONES) if (cone == i).any()])
    measures = measures_of(PoseResults.from_arrays(posterior))
    return {"n": len(error), "held": float(within.mean()),
            "shift_held": float((shift_error <= posterior["shift_error_bound_angstrom"]).mean()),
            "quartiles": [float(within[quarter == i].mean()) for i in range(4)],
            "poorest_cone": float(of_cones.min()), "cones_below": int((of_cones < 0.8).sum()), "cones": len(of_cones),
            "mean_error": float(error.mean()), "mean_expected": float(expected.mean()),
            "median_bound": float(np.median(bound)), "sharpness": float(bound.mean() / error.mean()),
            "constant": held_and_sharpness(error, None, coverage),
            "dispersions": [held_and_sharpness(error, measures[name], coverage) for name in DISPERSIONS],
            "relion": None if probability is None else held_and_sharpness(error, -probability, coverage)}


def row(name: str, snr: float, figures: dict) -> str:
    one, three = figures["constant"], figures["dispersions"]
    return (f"| {name} | {snr:.2g} | {figures['n']:,} | **{100 * figures['held']:.1f} %** | "
            f"{', '.join(f'{100 * x:.0f}' for x in figures['quartiles'])} % | {100 * figures['poorest_cone']:.0f} %, "
            f"{figures['cones_below']} of {figures['cones']} | {figures['mean_error']:.2f} | {figures['mean_expected']:.2f} | "
            f"{figures['median_bound']:.2f} | {figures['sharpness']:.2f} | {one[1]:.2f} | "
            f"{', '.join(f'{ratio:.2f}' for _, ratio in three)} | "
            f"{'-' if figures['relion'] is None else format(figures['relion'][1], '.2f')} | "
            f"{100 * figures['shift_held']:.1f} % |")


def predicted(data: Path, reference: Path, model: Path, symmetry: str, out: Path) -> Path:
    """The run of predict, once."""
    if not (out / "summary.json").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out.parent / f"{out.name}.log", "w") as log:
            subprocess.run([sys.executable, "-m", "cryoforum_core", "predict", "--particles", data / "input.star", "--model",
                            model, "--reference", reference, "--symmetry", symmetry, "--out", out], check=True, stdout=log,
                           stderr=subprocess.STDOUT)
    return out


def _facts(data: Path) -> tuple[str, float]:
    facts = np.load(data / "truth.npz")
    return Path(str(facts["map"])).stem, float(facts["signal_var"] / np.mean(facts["sigma"] ** 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("predict", "ab-initio"))
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--reference", type=Path, nargs="+", default=[])
    parser.add_argument("--model", type=Path, nargs="+", default=[])
    parser.add_argument("--truth", type=Path, nargs="+", default=[])
    parser.add_argument("--symmetry", nargs="+", default=["c1"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--relion", action="store_true", help="predict: RELION's probability too (relion_refine)")
    options = parser.parse_args()
    if options.relion and options.command == "ab-initio":
        parser.error("--relion goes with predict: ab initio has no reference for RELION")
    symmetries = options.symmetry * (len(options.paths) if len(options.symmetry) == 1 else 1)
    print(HEADER)
    for i, path in enumerate(options.paths):
        data = options.truth[i] if options.command == "ab-initio" else path
        run = path if options.command == "ab-initio" else predicted(
            path, options.reference[i], options.model[i], symmetries[i], options.out / path.name)
        probability = relion_probability(data / "input.star", options.reference[i], options.out / f"{path.name}_relion",
                                         symmetries[i]) if options.relion else None
        figures = judged(run, data / "particles.star", symmetries[i], options.command == "ab-initio", probability)
        print(row(*_facts(data), figures), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
