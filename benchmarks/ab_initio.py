"""Ab initio: how reliable the search is, how accurate whole runs are, what each stage is worth, and others' programs.

    python benchmarks/ab_initio.py reliability SET ... --out DIR [--seeds 10] [--steps 400]
    python benchmarks/ab_initio.py accuracy    SET ... --reference MAP ... --out DIR [--train-minutes 2]
    python benchmarks/ab_initio.py ablation    SET --reference MAP --out DIR
    python benchmarks/ab_initio.py others      SET --reference MAP --out DIR [--cryodrgn cryodrgn] [--only ...]

SET holds images that another program projected: ``input.star`` (without poses), ``particles.star`` (the true poses) and
``truth.npz`` (``sigma`` of the noise, ``signal_var``, ``map``). Ab initio fixes neither frame nor hand nor, in C1, the
centre: poses and maps are turned, mirrored and moved onto the truth before they are judged. Processor seconds stand
beside wall time, for the machine may have other work. What is finished is found again in DIR and not done twice.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
from cryoforum_core.geometry.pose_errors import (
    FrameAlignment,
    align_frame,
    align_poses,
    rotation_errors_deg,
    shift_errors_angstrom,
)
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.masks import soft_sphere
from cryoforum_core.imaging.resolution import fourier_shell_correlation, resolution_angstrom
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.fields import pose_columns
from cryoforum_core.particles.image_stack import save_table

CONVERGED_BELOW_DEG, LOST_ABOVE_DEG = 10.0, 10.0
MASK_RADIUS_BOXES = 0.45  # as in evaluate
NOT_CONVERGED = 3  # exit code
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class SimulatedSet:
    """A set with known poses."""

    path: Path

    @property
    def particles(self) -> Path:
        return self.path / "input.star"

    @property
    def truth(self) -> Path:
        return self.path / "particles.star"

    @property
    def _facts(self):
        return np.load(self.path / "truth.npz")

    @property
    def molecule(self) -> str:
        return Path(str(self._facts["map"])).stem

    @property
    def snr(self) -> float:
        return float(self._facts["signal_var"] / np.mean(self._facts["sigma"] ** 2))

    @property
    def name(self) -> str:
        return f"{self.molecule} | {self.snr:.2g}"


@dataclass(frozen=True)
class Cost:
    """Seconds of a program; ``stages``: processor seconds by stage, of a run that says where it is."""

    wall: float
    processor: float
    exit_code: int
    stages: dict[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------- running programs
def measured(command: Sequence, log: Path, progress: Path | None = None, max_processor_seconds: float | None = None,
             **options) -> Cost:
    """Runs a program to its end, or until it has had so much processor time; ``progress``: the run's progress.json."""
    if max_processor_seconds is not None:
        import resource

        limit = int(max_processor_seconds)
        options["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    start, stages, seen = time.monotonic(), {}, 0.0
    with open(log, "w") as file:
        process = subprocess.Popen([str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, **options)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            used = processor_seconds(process.pid)
            stage = current_stage(progress)
            stages[stage], seen = stages.get(stage, 0.0) + max(0.0, used - seen), max(seen, used)
            time.sleep(POLL_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(time.monotonic() - start, usage.ru_utime + usage.ru_stime, process.returncode, stages)


def processor_seconds(pid: int) -> float:
    """Of a process and all of its threads so far; 0 where it has just ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def current_stage(progress: Path | None) -> str:
    try:
        return json.loads(progress.read_text())["stage"]
    except (AttributeError, OSError, ValueError, KeyError):
        return "start"


def run_job(job: str, out: Path, *options, **more) -> Cost:
    """A cryoforum job, once: its cost is kept beside its run."""
    kept = out.parent / f"{out.name}_cost.json"
    if kept.is_file() and (out / "summary.json").is_file():
        return Cost(**json.loads(kept.read_text()))
    if out.is_dir():
        shutil.rmtree(out)  # a run that was stopped: its times would be wrong
    out.parent.mkdir(parents=True, exist_ok=True)
    cost = measured([sys.executable, "-m", "cryoforum_core", job, "--out", out, *options],
                    out.parent / f"{out.name}.log", out / "progress.json", **more)
    if cost.exit_code not in (0, NOT_CONVERGED):
        raise SystemExit(f"{job} ended with {cost.exit_code}; see {out.parent / out.name}.log")
    kept.write_text(json.dumps(asdict(cost)))
    return cost


# ---------------------------------------------------------------- the truth's frame
@dataclass(frozen=True)
class InTrueFrame:
    """Poses (N) of an ab initio run, turned, mirrored and moved into the truth's frame, with their errors (N,)."""

    poses: Poses
    alignment: FrameAlignment
    error_deg: Tensor
    shift_error_angstrom: Tensor

    @classmethod
    def of(cls, found: Poses, truth: Poses) -> "InTrueFrame":
        group = symmetry_group("c1").double()
        truth = Poses(truth.quaternion.double(), truth.shift_angstrom.double())
        found = Poses(found.quaternion.double(), found.shift_angstrom.double())
        alignment = align_poses(found, truth, group, allow_mirror=True)
        poses = alignment.apply_to_poses(found)
        return cls(poses, alignment, rotation_errors_deg(poses.quaternion, truth.quaternion, group),
                   shift_errors_angstrom(poses.shift_angstrom, truth.shift_angstrom))

    def figures(self, pixel_size_angstrom: float) -> dict:
        """Medians and means in degrees, the part that is lost, and shifts in pixels."""
        return {"median_deg": float(self.error_deg.median()), "mean_deg": float(self.error_deg.mean()),
                "lost": float((self.error_deg > LOST_ABOVE_DEG).double().mean()),
                "shift_px": float(self.shift_error_angstrom.median()) / pixel_size_angstrom,
                "off_centre_px": float(self.alignment.translation_angstrom.norm()) / pixel_size_angstrom,
                "is_mirrored": self.alignment.is_mirrored}


def resolutions(volume: Tensor, known: Tensor, pixel_size_angstrom: float) -> tuple[float, float]:
    """Where the FSC against the known map (b, b, b) falls below 0.143 and 0.5, in Angstrom."""
    mask = soft_sphere(len(known), MASK_RADIUS_BOXES * len(known))
    fsc = fourier_shell_correlation(volume * mask, known * mask)
    return tuple(resolution_angstrom(fsc, len(known), pixel_size_angstrom, limit) for limit in (0.143, 0.5))


def judged_poses(particles: Path, truth: Path) -> InTrueFrame:
    """Both files with the same images in the same order."""
    found, known = (load_particles(path, require_poses=True) for path in (particles, truth))
    if len(found) != len(known):
        raise SystemExit(f"{particles} has {len(found)} images, {truth} {len(known)}")
    return InTrueFrame.of(found.poses, known.poses)


def relion_map(data: SimulatedSet, poses: Poses | None, out: Path) -> Tensor:
    """``relion_reconstruct`` of the set with these poses, or the true ones: (b, b, b)."""
    path = out.with_suffix(".mrc")
    if not path.is_file():
        particles = load_particles(data.truth, require_poses=True)
        poses = particles.poses if poses is None else poses
        star = out.with_suffix(".star")
        save_table(particles.table.with_columns(pose_columns(particles.table, poses, particles.pixel_size_angstrom)), star)
        # RELION looks for images from where it runs
        subprocess.run(["relion_reconstruct", "--i", star.resolve(), "--o", path.resolve(), "--ctf", "--pad", "2"],
                       cwd=star.parent, check=True, capture_output=True)
    return torch.from_numpy(read_map(path)[0])


# ---------------------------------------------------------------- reliability
def held_out_rows(n: int, seed: int) -> np.ndarray:
    """The images by which ``SearchImages.prepare`` judges a search, in its order."""
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
    turned = align_frame(result.held_out_quaternion, known, group, allow_mirror=True).apply(
        result.held_out_quaternion.double())
    error_deg = rotation_errors_deg(turned, known, group)
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
def whole_run(data: SimulatedSet, reference: Path, out: Path, *options) -> dict:
    """``cryoforum ab-initio`` and what ``evaluate`` says of its poses and map; ``relion``: of RELION's map with its poses."""
    cost = run_job("ab-initio", out, "--particles", data.particles, *options)
    evaluated = out.parent / f"{out.name}_evaluate"
    run_job("evaluate", evaluated, "--particles", out / "particles.star", "--truth", data.truth, "--align-frame",
            "--allow-mirror", "--map", out / "map.mrc", "--truth-map", reference)
    judged, summary = (json.loads((run / "summary.json").read_text()) for run in (evaluated, out))
    known, pixel_size_angstrom = read_map(reference)
    by_relion = relion_map(data, judged_poses(out / "particles.star", data.truth).poses, out.parent / f"{out.name}_relion")
    return {"converged": summary["converged"], "walls": summary.get("stages", {}),
            "median_deg": judged["median_error_deg"], "mean_deg": judged["mean_error_deg"],
            "lost": 1 - judged["fraction_below_10deg"],
            "shift_px": judged["median_shift_error_angstrom"] / pixel_size_angstrom,
            "off_centre_px": float(np.linalg.norm(judged["frame_translation_angstrom"])) / pixel_size_angstrom,
            "extent_angstrom": len(known) * pixel_size_angstrom,
            "map": (judged["resolution_angstrom"], judged["resolution_at_fsc_0.5_angstrom"]),
            "relion": resolutions(by_relion, torch.from_numpy(known), pixel_size_angstrom), **asdict(cost)}


def bound(data: SimulatedSet, reference: Path, out: Path) -> tuple[float, float, float]:
    """Median and mean error (degrees) and shift error (px) at the Cramer-Rao bound of the true map."""
    kept = out / "bound.json"
    if not kept.is_file():
        from accuracy import bound_deg

        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(bound_deg(data.path, reference)))
    return tuple(json.loads(kept.read_text()))


def true_pose_resolutions(data: SimulatedSet, reference: Path, out: Path) -> tuple[float, float]:
    known, pixel_size_angstrom = read_map(reference)
    return resolutions(relion_map(data, None, out / "true_poses"), torch.from_numpy(known), pixel_size_angstrom)


def accuracy(data: SimulatedSet, reference: Path, out: Path, options: Sequence) -> str:
    """Markdown rows of one set: poses; map; time."""
    limit = bound(data, reference, out)
    true = true_pose_resolutions(data, reference, out)
    found = whole_run(data, reference, out / "run", *options)
    extent = found["extent_angstrom"]
    short = [extent / true[i] - extent / found["relion"][i] for i in (0, 1)]
    rows = [f"poses | {data.name} | {'yes' if found['converged'] else 'no'} | {found['median_deg']:.2f} | "
            f"{limit[0]:.2f} | **{found['median_deg'] / limit[0]:.2f}** | {found['mean_deg']:.2f} | "
            f"{100 * found['lost']:.1f} % | {found['shift_px']:.3f} ({limit[2]:.3f}) | {found['off_centre_px']:.2f} |",
            f"map | {data.name} | {_pair(found['map'])} | {_pair(found['relion'])} | {_pair(true)} | "
            f"{short[0]:.1f} / {short[1]:.1f} |", f"time | {data.name} | {stage_times(found)} |"]
    return "\n".join(rows)


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
    lines = ["| run | median (deg) | mean (deg) | lost (> 10 deg) | FSC 0.143 / 0.5 (A) | said to have converged "
             "| wall / processor (min) |", "|---|---|---|---|---|---|---|"]
    for number, (name, skip) in enumerate(ABLATIONS.items()):
        if not only or str(number) in only:
            lines.append(_ablation_row(name, whole_run(data, reference, out / f"run{number}", *options, *skip)))
    if not only or "end-to-end" in only:
        minutes = json.loads((out / "run0_cost.json").read_text())["wall"] / 60
        found = whole_run(data, reference, out / "end_to_end", "--method", "end-to-end", "--train-minutes", f"{minutes:.2f}")
        lines.append(_ablation_row("without search (--method end-to-end), same wall time", found))
    return "\n".join(lines)


def _ablation_row(name: str, found: dict) -> str:
    return (f"| {name} | {found['median_deg']:.2f} | {found['mean_deg']:.2f} | {100 * found['lost']:.1f} % | "
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
        print(reliability_table(reliability(sets, options.out, options.seeds, options.steps)))
        return
    if len(options.reference) != len(sets):
        parser.error("give the true map of each set by --reference, in the same order")
    for data, reference in zip(sets, options.reference, strict=True):
        if options.command == "accuracy":
            print(accuracy(data, reference, options.out / data.path.name, job_options), flush=True)
        elif options.command == "ablation":
            print(ablation(data, reference, options.out / data.path.name, job_options, options.only), flush=True)
        else:
            import others

            print(others.compare(data, reference, options.out / data.path.name, options), flush=True)


if __name__ == "__main__":
    main()
