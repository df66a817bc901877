"""How often the end-to-end method of ab initio converges: plain, with each device alone, with the recommended pair.

    OMP_NUM_THREADS=1 python benchmarks/end_to_end.py --out DIR [--seeds 10] [--seconds 30] [--only "plain" ...]

A particle of six blobs, 1,000 images of 16 px without shifts and CTF; a seed is a start of network and map, with
a split of the images of its own. Every run trains for the same processor time. A run has converged where the median
error of its poses, frame and hand aligned, is below 20 degrees; beside it stands what the job itself says, which knows
no truth. What is finished is kept in ``runs.jsonl``, and each run in ``runs/``; it is not done twice. Prints a Markdown
table.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from results_page import cpu_hardware, record

from cryoforum_core.ab_initio.end_to_end.run import end_to_end
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.config import AbInitioConfig, SimulateConfig
from cryoforum_core.geometry.pose_errors import align_frame, rotation_errors_deg
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.jobs import simulate
from cryoforum_core.mrc import write_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.run_directory import RunDirectory

CONVERGED_BELOW_DEG = 20.0
BOX, PIXEL_ANGSTROM, N_IMAGES = 16, 6.0, 1000
# centre (x, y, z), in boxes, and weight
BLOBS = (((0.25, 0.0, 0.0), 1.5), ((-0.12, 0.05, 0.0), 1.0), ((-0.22, -0.1, 0.05), 0.8), ((0.02, 0.22, 0.08), 1.2),
         ((-0.05, -0.02, 0.25), 0.7), ((0.1, -0.1, -0.15), 0.9))
BLOB_WIDTH = 0.06
# one value of the contrast transfer function everywhere: 1
NO_CTF = {"amplitude_contrast": 1.0, "spherical_aberration_mm": 0.0, "defocus_min_angstrom": 0.0,
          "defocus_max_angstrom": 0.0, "astigmatism_angstrom": 0.0}
COMMON = {"method": "end-to-end", "encoder": "compact", "batch_size": 32, "shifts": False, "ctf_state": "raw",
          "contrast": "bright", "device": "cpu"}
VARIANTS: dict[str, dict] = {
    "plain": {},
    "symmetric loss": {"symmetric_loss": True},
    "4 heads": {"n_heads": 4},
    "low frequencies first": {"frequency_marching": True},
    "random poses (weight 1)": {"random_pose_weight": 1.0},
    "direct updates after 30 epochs": {"per_image_after_epoch": 30},
    "random poses (1) and symmetric loss": {"random_pose_weight": 1.0, "symmetric_loss": True},
    "encoder polar": {"encoder": "polar"},
    "encoder polar, random poses (1)": {"encoder": "polar", "random_pose_weight": 1.0},
}


def molecule() -> torch.Tensor:
    """A map (16, 16, 16) that looks different from all sides."""
    axis = (torch.arange(BOX) - BOX // 2) / BOX
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return sum(weight * torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * BLOB_WIDTH ** 2))
               for (a, b, c), weight in BLOBS)


def images(out: Path, snr: float) -> RunDirectory:
    """The one set of all runs; ``truth`` has the poses."""
    run, model = RunDirectory(out / "images"), out / "molecule.mrc"
    if not run.truth.is_file():
        write_map(model, molecule().numpy(), PIXEL_ANGSTROM)
        simulate(SimulateConfig(out=run.path, model=model, n_particles=N_IMAGES, snr=snr, shift_rms_px=0.0, **NO_CTF))
    return run


def one_run(made: RunDirectory, out: Path, options: Mapping, seed: int, seconds: float) -> dict:
    """Figures of a run of the method in ``out``; median error in degrees over all images."""
    if out.is_dir():
        shutil.rmtree(out)  # a run that was stopped: its time would be wrong
    config = AbInitioConfig(out=out, particles=made.particles, seed=seed, train_minutes=seconds / 60, **COMMON | options)
    run, start = RunDirectory(config.out), time.process_time()
    run.prepare(config)
    plan = plan_ab_initio(config, load_particles(config.particles, config), torch.device("cpu"))
    summary = end_to_end(plan, run, clock=time.process_time)
    processor = time.process_time() - start
    found, known = (load_particles(path, require_poses=True).poses.quaternion.double()
                    for path in (run.particles, made.truth))
    group = symmetry_group("c1").double()
    aligned = align_frame(found, known, group, allow_mirror=True).apply(found)
    error_deg = rotation_errors_deg(aligned, known, group)
    median_deg = float(error_deg.median())
    return {"median_deg": median_deg, "below": float((error_deg < CONVERGED_BELOW_DEG).double().mean()),
            "converged": median_deg < CONVERGED_BELOW_DEG, "says": summary["converged"],
            "processor": processor, "steps": summary["n_steps"], "reason": summary["converged_reason"],
            **{name: summary[name] for name in ("validation_loss", "loss_without_poses", "turn_error_deg",
                                             "projection_error_deg")}}


def benchmark(out: Path, variants: Iterable[str], seeds: int, seconds: float, snr: float) -> list[dict]:
    """All runs, seed by seed, so that a benchmark that is stopped has as many of each variant."""
    out.mkdir(parents=True, exist_ok=True)
    path, made = out / "runs.jsonl", images(out, snr)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in range(seeds):
        for name in variants:
            if (name, seed) in done:
                continue
            run = out / "runs" / f"{list(VARIANTS).index(name)}_{seed}"
            rows.append({"variant": name, "seed": seed, "seconds": seconds,
                         **one_run(made, run, VARIANTS[name], seed, seconds)})
            with open(path, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: a line for each variant."""
    lines = ["| variant | converged | median error (deg): median over seeds [min, max] | assessment agrees | steps "
             "| processor s |", "|---|---|---|---|---|---|"]
    for name in VARIANTS:
        some = [row for row in rows if row["variant"] == name]
        if not some:
            continue
        n, errors = len(some), [row["median_deg"] for row in some]
        mean = {key: statistics.mean(row[key] for row in some) for key in ("steps", "processor")}
        lines.append(f"| {name} | {sum(row['converged'] for row in some)} of {n} | {statistics.median(errors):.1f} "
                     f"[{min(errors):.1f}, {max(errors):.1f}] | {sum(row['converged'] == row['says'] for row in some)} "
                     f"of {n} | {mean['steps']:.0f} | {mean['processor']:.0f} |")
    return "\n".join(lines)


def record_figures(name: str, snr: float | str, some: list[dict]) -> None:
    errors = [row["median_deg"] for row in some]
    record("reliability", {"hardware": cpu_hardware(), "figures": {
        "set": f"six blobs, {BOX} px", "snr": snr, "method": f"end to end: {name}",
        "converged": f"{sum(row['converged'] for row in some)} of {len(some)}", "median_deg": statistics.median(errors),
        "best_deg": min(errors), "worst_deg": max(errors), "mean_deg": None,
        "agrees": f"{sum(row['converged'] == row['says'] for row in some)} of {len(some)}",
        "steps": round(statistics.mean(row["steps"] for row in some)),
        "processor_s": statistics.mean(row["processor"] for row in some)}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30.0, help="processor time for the training of each run")
    parser.add_argument("--snr", type=float, default=float("inf"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    options = parser.parse_args()
    rows = benchmark(options.out, options.only, options.seeds, options.seconds, options.snr)
    print(table(rows))
    for name in VARIANTS:
        some = [row for row in rows if row["variant"] == name]
        if some:
            record_figures(name, "no noise" if options.snr == float("inf") else options.snr, some)


if __name__ == "__main__":
    main()
