"""Ab initio of symmetric particles: the group is given, its axes are found.

    OMP_NUM_THREADS=1 python benchmarks/symmetry.py --out DIR [--only C7 O D2] [--model C3=6vxx.pdb.gz] [--train-minutes 0.2]

C7 and O are copies of adenylate kinase around the group's axes, D2 is beta-galactosidase (5A1A), all simulated at 48 px and
SNR 0.1; ``--model GROUP=FILE`` adds others, of 64 px. Frame and hand are aligned before poses are assessed, modulo the group.
What is finished is found again in DIR. Prints a Markdown table.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from results_page import record
from simulated_sets import run_job

from cryoforum_core.config import SimulateConfig
from cryoforum_core.geometry.rotations import quaternion_to_matrix
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.jobs import simulate
from cryoforum_core.mrc import write_map
from cryoforum_core.particles.atomic_model import (
    AtomicModel,
    default_pixel_size_angstrom,
    potential_map,
    read_atomic_model,
)
from cryoforum_core.particles.simulate import DATA
from cryoforum_core.published_benchmarks.published import MODEL
from cryoforum_core.run_directory import RunDirectory

BOX, BOX_OF_MORE, SNR = 48, 64, 0.1
# images, and where the first copy's centre of mass lies, in Angstrom: on no axis, and in C7 such that the half turn about x that
# lays the molecule nearly on itself is none of the whole
COPIES = {"C7": (1200, (25.0, 70.0, 0.0)), "O": (1200, (85.0, 45.0, 20.0))}


def copies(group: str, place_angstrom: tuple[float, float, float]) -> AtomicModel:
    """Adenylate kinase at every one of the group's places."""
    one = read_atomic_model(MODEL)
    matrices = quaternion_to_matrix(symmetry_group(group).double()).numpy()
    position = np.concatenate([(one.position_angstrom + place_angstrom) @ matrix.T for matrix in matrices])
    return replace(one, position_angstrom=position, element=one.element * len(matrices),
                   occupancy=np.tile(one.occupancy, len(matrices)))


def simulated(group: str, model: AtomicModel, box_size_px: int, n_particles: int, out: Path) -> RunDirectory:
    run, volume = RunDirectory(out / "set"), out / "molecule.mrc"
    if not run.truth.is_file():
        out.mkdir(parents=True, exist_ok=True)
        pixel = default_pixel_size_angstrom(model, box_size_px)
        write_map(volume, potential_map(model, box_size_px, pixel).numpy(), pixel)
        simulate(SimulateConfig(out=run.path, model=volume, n_particles=n_particles, snr=SNR, shift_rms_px=1.0))
    return run


def row(group: str, made: RunDirectory, n_particles: int, box_size_px: int, out: Path, minutes: float) -> str:
    cost = run_job("ab-initio", out / "run", "--particles", made.particles, "--symmetry", group.lower(), "--train-minutes",
                   minutes)
    run_job("evaluate", out / "evaluate", "--particles", out / "run" / "particles.star", "--truth", made.truth,
            "--align-frame", "--allow-mirror", "--symmetry", group.lower())
    found, assessed = (json.loads((out / name / "summary.json").read_text()) for name in ("run", "evaluate"))
    record("symmetry", {"figures": {
        "group": group, "box_px": box_size_px, "particles": n_particles, "converged": "yes" if found["converged"] else "no",
        "median_deg": assessed["median_error_deg"], "mean_deg": assessed["mean_error_deg"],
        "expected_deg": found["median_expected_error_deg"], "half_maps_angstrom": found["resolution_angstrom"],
        "processor_min": cost.processor / 60}})
    return (f"| {group} | {box_size_px} | {n_particles:,} | {'yes' if found['converged'] else 'no'} | "
            f"{assessed['median_error_deg']:.2f} | {assessed['mean_error_deg']:.2f} | "
            f"{found['median_expected_error_deg']:.2f} | {found['resolution_angstrom']:.1f} | {cost.processor / 60:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=(*COPIES, "D2"), default=(*COPIES, "D2"))
    parser.add_argument("--model", action="append", default=[], metavar="GROUP=FILE")
    parser.add_argument("--train-minutes", type=float, default=0.2)
    options = parser.parse_args()
    jobs = [(group, copies(group, COPIES[group][1]), BOX, COPIES[group][0]) for group in options.only if group in COPIES]
    if "D2" in options.only:
        jobs.append(("D2", read_atomic_model(DATA / "beta_galactosidase_5a1a.pdb.gz"), BOX, 1200))
    for group, _, file in (each.partition("=") for each in options.model):
        jobs.append((group, read_atomic_model(file), BOX_OF_MORE, 2400))
    print("| group | box (px) | images | converged | median (deg) | mean (deg) | median expected error (deg) | "
          "half maps, FSC 0.143 (A) | processor (min) |\n|---|---|---|---|---|---|---|---|---|")
    for group, model, box, n in jobs:
        out = options.out / group
        print(row(group, simulated(group, model, box, n, out), n, box, out, options.train_minutes), flush=True)


if __name__ == "__main__":
    main()
