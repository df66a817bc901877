"""Ab initio: how reliable the search is, how accurate whole runs are, what each stage is worth, and others' programs.

    python benchmarks/ab_initio.py reliability SET ... --out DIR [--seeds 10] [--steps 400]
    python benchmarks/ab_initio.py accuracy    SET ... --reference MAP ... --out DIR [--train-minutes 2]
    python benchmarks/ab_initio.py ablation    SET --reference MAP --out DIR
    python benchmarks/ab_initio.py others      SET --reference MAP --out DIR [--cryodrgn cryodrgn] [--only ...]

SET as in ``simulated_sets.py``. Ab initio fixes neither frame nor hand nor, in C1, the centre: poses and maps are rotated,
mirrored and shifted onto the truth before they are assessed. Processor seconds stand beside wall time, for the machine may
have other work. What is finished is found again in DIR and not done twice.
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import others
import torch
from accuracy import bound_deg
from results_page import record
from simulated_sets import SimulatedSet, relion_map, resolutions, whole_run

from cryoforum_core.ab_initio.plan import AbInitioPlan, plan_ab_initio
from cryoforum_core.ab_initio.random_starts import (
    HELD_OUT_FRACTION,
    LAST_RADIUS_PX,
    MAX_HELD_OUT,
    MAX_IMAGES,
    SearchImages,
    run_search,
    search_settings,
)
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.geometry.pose_errors import align_frame, rotation_errors_deg
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles

CONVERGED_BELOW_DEG = 10.0


# ---------------------------------------------------------------- reliability
def held_out_rows(n: int, seed: int) -> np.ndarray:
    """The images by which ``SearchImages.prepare`` assesses a search, in its order."""
    rows = np.random.default_rng([seed, 0xAB]).permutation(n)[:MAX_IMAGES]
    return np.sort(rows[:min(MAX_HELD_OUT, int(HELD_OUT_FRACTION * len(rows)))])


def ab_initio_plan(data: SimulatedSet, out: Path, seed: int) -> AbInitioPlan:
    config = AbInitioConfig(out=out, particles=data.particles, seed=seed)
    return plan_ab_initio(config, load_particles(data.particles), torch.device("cpu"))


def one_search(data: SimulatedSet, truth: Poses, out: Path, seed: int, steps: int) -> dict:
    """The job's first stage with one seed, as the job runs it; errors (degrees) of the held-out images' best poses."""
    plan = ab_initio_plan(data, out, seed)
    wall, processor = time.monotonic(), time.process_time()
    images = SearchImages.prepare(plan.images, seed, min(LAST_RADIUS_PX, plan.max_radius_px))
    box = plan.particles.box_size_px
    settings = search_settings(images, steps, plan.mask_radius_px / box, plan.max_displacement_px / box)
    result = run_search(images, settings, seed, out / "search_state.pt", False, lambda search, log_evidence: None)
    wall, processor = time.monotonic() - wall, time.process_time() - processor
    known = truth[torch.from_numpy(held_out_rows(len(plan.particles), seed))].quaternion.double()
    group = symmetry_group("c1").double()
    aligned = align_frame(result.held_out_quaternion, known, group, allow_mirror=True).apply(
        result.held_out_quaternion.double())
    error_deg = rotation_errors_deg(aligned, known, group)
    return {"set": data.name, "seed": seed, "steps": steps, "median_deg": float(error_deg.median()),
            "mean_deg": float(error_deg.mean()), "converged": bool(error_deg.median() < CONVERGED_BELOW_DEG),
            "said_to_have_structure": bool(result.found_structure), "structure": result.structure,
            "processor": processor, "wall": wall}


def reliability(sets: Iterable[SimulatedSet], out: Path, seeds: int, steps: int) -> list[dict]:
    """All searches, kept in ``searches.jsonl``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "searches.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(row["set"], row["seed"], row["steps"]) for row in rows}
    for seed in range(seeds):
        for data in sets:
            if (data.name, seed, steps) in done:
                continue
            truth = load_particles(data.truth, require_poses=True).poses
            rows.append(one_search(data, truth, out, seed, steps))
            with open(path, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    return [row for row in rows if row["steps"] == steps]


def record_reliability(sets: Iterable[SimulatedSet], rows: list[dict]) -> None:
    for data in sets:
        some = [row for row in rows if row["set"] == data.name]
        errors = [row["median_deg"] for row in some]
        record("reliability", {"figures": {
            "set": data.molecule, "snr": data.rounded_snr, "method": "search", "converged":
            f"{sum(row['converged'] for row in some)} of {len(some)}", "median_deg": float(np.mean(errors)), "best_deg":
            min(errors), "worst_deg": max(errors), "mean_deg": float(np.mean([row["mean_deg"] for row in some])), "agrees":
            f"{sum(row['converged'] == row['said_to_have_structure'] for row in some)} of {len(some)}", "steps":
            some[0]["steps"], "processor_s": float(np.mean([row["processor"] for row in some]))}})


def reliability_table(rows: list[dict]) -> str:
    lines = ["| map | SNR | converged | median error (deg): mean over seeds, worst | mean error (deg) | processor s "
             "| wall s |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        some = [row for row in rows if row["set"] == name]
        mean = {key: np.mean([row[key] for row in some]) for key in ("median_deg", "mean_deg", "processor", "wall")}
        lines.append(f"| {name} | {sum(row['converged'] for row in some)} of {len(some)} | {mean['median_deg']:.1f}, "
                     f"{max(row['median_deg'] for row in some):.1f} | {mean['mean_deg']:.1f} | "
                     f"{mean['processor']:.0f} | {mean['wall']:.0f} |")
    return "\n".join(lines)


# ---------------------------------------------------------------- whole runs
def bound(data: SimulatedSet, reference: Path, out: Path) -> tuple[float, float, float]:
    """Median and mean error (degrees) and shift error (px) at the Cramer-Rao bound of the true map."""
    kept = out / "bound.json"
    if not kept.is_file():
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(bound_deg(data.path, reference)))
    return tuple(json.loads(kept.read_text()))


def true_pose_resolutions(data: SimulatedSet, reference: Path, out: Path) -> tuple[float, float]:
    known, pixel_size_angstrom = read_map(reference)
    return resolutions(relion_map(data, None, out / "true_poses"), torch.from_numpy(known), pixel_size_angstrom)


def accuracy(data: SimulatedSet, reference: Path, out: Path, options: Sequence) -> str:
    """Markdown rows of one set: poses; map; time. They are recorded, too."""
    limit = bound(data, reference, out)
    true = true_pose_resolutions(data, reference, out)
    found = whole_run(data, reference, out / "run", *options)
    extent = found["extent_angstrom"]
    short = [extent / true[i] - extent / found["relion"][i] for i in (0, 1)]
    _record_accuracy(data, found, limit, true, short)
    rows = [f"poses | {data.name} | {'yes' if found['converged'] else 'no'} | {found['median_deg']:.2f} | "
            f"{limit[0]:.2f} | **{found['median_deg'] / limit[0]:.2f}** | {found['mean_deg']:.2f} | "
            f"{100 * found['misassigned']:.1f} % | {found['shift_px']:.3f} ({limit[2]:.3f}) | {found['off_centre_px']:.2f} |",
            f"map | {data.name} | {_pair(found['map'])} | {_pair(found['relion'])} | {_pair(true)} | "
            f"{short[0]:.1f} / {short[1]:.1f} |", f"time | {data.name} | {stage_times(found)} |"]
    return "\n".join(rows)


# the run's stages, and the columns of the page
STAGES = {"search": "search", "half maps": "half_maps", "network": "network", "final matching": "final", "maps": "maps"}


def _record_accuracy(data: SimulatedSet, found: dict, limit: tuple, true: tuple, short: list[float]) -> None:
    which = {"set": data.molecule, "snr": data.rounded_snr, "particles": len(load_particles(data.particles))}
    total = [found["wall"] / 60, found["processor"] / 60]
    record("ab_initio", {"figures": which | {
        "converged": "yes" if found["converged"] else "no", "median_deg": found["median_deg"], "bound_deg": limit[0],
        "bound_ratio": round(found["median_deg"] / limit[0], 3), "mean_deg": found["mean_deg"],
        "misassigned_percent": 100 * found["misassigned"], "shift_px": found["shift_px"], "shift_bound_px": limit[2],
        "off_centre_px": found["off_centre_px"], "own_map_angstrom": found["map"], "map_angstrom": found["relion"],
        "true_map_angstrom": true, "short_shells": short, "time_min": total}})
    record("ab_initio_time", {"figures": which | {"all": total} | {
        column: [seconds.get(stage) and seconds[stage] / 60 for seconds in (found["walls"], found["stages"])]
        for stage, column in STAGES.items()}})


def stage_times(found: dict) -> str:
    walls = found["walls"]
    stages = " | ".join(f"{walls[name] / 60:.1f} / {found['stages'].get(name, float('nan')) / 60:.1f}" for name in walls)
    return f"{stages} | {found['wall'] / 60:.1f} / {found['processor'] / 60:.1f}"


def _pair(values: tuple[float, float]) -> str:
    return f"{values[0]:.2f} / {values[1]:.2f}"


# ---------------------------------------------------------------- ablation
ABLATIONS = {"full": (), "without distillation (no network)": ("--skip", "distillation"),
             "without end-to-end": ("--skip", "end-to-end"), "without refinement (the network's poses)":
             ("--skip", "refinement")}


def ablation(data: SimulatedSet, reference: Path, out: Path, options: Sequence, only: Sequence[str]) -> str:
    """Markdown rows: the whole run, without each part, and without the search."""
    lines = ["| run | median (deg) | mean (deg) | misassigned (> 10 deg) | FSC 0.143 / 0.5 (A) | said to have converged "
             "| wall / processor (min) |", "|---|---|---|---|---|---|---|"]
    for number, (name, skip) in enumerate(ABLATIONS.items()):
        if not only or str(number) in only:
            lines.append(_ablation_row(data, name, whole_run(data, reference, out / f"run{number}", *options, *skip)))
    if not only or "end-to-end" in only:
        minutes = json.loads((out / "run0_cost.json").read_text())["wall"] / 60
        found = whole_run(data, reference, out / "end_to_end", "--method", "end-to-end", "--train-minutes", f"{minutes:.2f}")
        lines.append(_ablation_row(data, "without search (--method end-to-end), same wall time", found))
    return "\n".join(lines)


def _ablation_row(data: SimulatedSet, name: str, found: dict) -> str:
    record("ablation", {"figures": {
        "set": data.title, "run": name, "median_deg": found["median_deg"], "mean_deg": found["mean_deg"],
        "misassigned_percent": 100 * found["misassigned"], "map_angstrom": found["map"],
        "converged": "yes" if found["converged"] else "no", "time_min": [found["wall"] / 60, found["processor"] / 60]}})
    return (f"| {name} | {found['median_deg']:.2f} | {found['mean_deg']:.2f} | {100 * found['misassigned']:.1f} % | "
            f"{_pair(found['map'])} | {'yes' if found['converged'] else 'no'} | "
            f"{found['wall'] / 60:.1f} / {found['processor'] / 60:.1f} |")


# ---------------------------------------------------------------- command line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("reliability", "accuracy", "ablation", "others"))
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--reference", type=Path, nargs="+", default=[], help="the true map of each set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=AbInitioConfig.model_fields["search_steps"].default)
    parser.add_argument("--train-minutes", type=float, default=2.0)
    parser.add_argument("--only", nargs="+", default=[], help="ablation: numbers of runs; others: names of programs")
    parser.add_argument("--cryodrgn", default="cryodrgn", help="others: the command")
    parser.add_argument("--relion-final-resolution", type=float, default=15, help="others: of RELION's initial model, angstrom")
    parser.add_argument("--relion-final-batch", type=int, default=500, help="others: images in RELION's last iterations")
    parser.add_argument("--processor-minutes", type=float, default=40.0, help="others: limit of each program")
    options = parser.parse_args()
    sets = [SimulatedSet(path.resolve()) for path in options.sets]
    for name in ("out", "reference"):
        value = getattr(options, name)
        setattr(options, name, [p.resolve() for p in value] if isinstance(value, list) else value.resolve())
    job_options = ["--search-steps", options.steps, "--train-minutes", options.train_minutes]
    if options.command == "reliability":
        rows = reliability(sets, options.out, options.seeds, options.steps)
        print(reliability_table(rows))
        record_reliability(sets, rows)
        return
    if len(options.reference) != len(sets):
        parser.error("give the true map of each set by --reference, in the same order")
    for data, reference in zip(sets, options.reference, strict=True):
        if options.command == "accuracy":
            print(accuracy(data, reference, options.out / data.path.name, job_options), flush=True)
        elif options.command == "ablation":
            print(ablation(data, reference, options.out / data.path.name, job_options, options.only), flush=True)
        else:
            print(others.compare(data, reference, options.out / data.path.name, options), flush=True)


if __name__ == "__main__":
    main()
