"""What the benchmarks of ab initio share: sets with known poses, timed programs, poses and maps in the truth's frame.

A set is a directory of images that another program projected: ``input.star`` (without poses), ``particles.star`` (the true
poses) and ``truth.npz`` (``sigma`` of the noise, ``signal_var``, ``map``).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoforum_core.geometry.pose_errors import FrameAlignment, align_poses, rotation_errors_deg, shift_errors_angstrom
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.masks import soft_sphere
from cryoforum_core.imaging.resolution import fourier_shell_correlation, resolution_angstrom
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.fields import pose_columns
from cryoforum_core.particles.image_stack import save_table

MISASSIGNED_ABOVE_DEG = 10.0
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
    def rounded_snr(self) -> float:
        return float(f"{self.snr:.2g}")

    @property
    def title(self) -> str:
        """As the page of results names the set."""
        return f"{self.molecule}, SNR {self.rounded_snr:g}"

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
    """Poses (N) of an ab initio run, rotated, mirrored and shifted into the truth's frame, with their errors (N,)."""

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
        """Medians and means in degrees, the fraction that is misassigned, and shifts in pixels."""
        return {"median_deg": float(self.error_deg.median()), "mean_deg": float(self.error_deg.mean()),
                "misassigned": float((self.error_deg > MISASSIGNED_ABOVE_DEG).double().mean()),
                "shift_px": float(self.shift_error_angstrom.median()) / pixel_size_angstrom,
                "off_centre_px": float(self.alignment.translation_angstrom.norm()) / pixel_size_angstrom,
                "is_mirrored": self.alignment.is_mirrored}


def resolutions(volume: Tensor, known: Tensor, pixel_size_angstrom: float) -> tuple[float, float]:
    """Where the FSC against the known map (b, b, b) falls below 0.143 and 0.5, in Angstrom."""
    mask = soft_sphere(len(known), MASK_RADIUS_BOXES * len(known))
    fsc = fourier_shell_correlation(volume * mask, known * mask)
    return tuple(resolution_angstrom(fsc, len(known), pixel_size_angstrom, limit) for limit in (0.143, 0.5))


def aligned_poses(particles: Path, truth: Path) -> InTrueFrame:
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


# ---------------------------------------------------------------- whole runs
def whole_run(data: SimulatedSet, reference: Path, out: Path, *options) -> dict:
    """``cryoforum ab-initio`` and how ``evaluate`` assesses poses and map; ``relion``: RELION's map with these poses."""
    cost = run_job("ab-initio", out, "--particles", data.particles, *options)
    evaluated = out.parent / f"{out.name}_evaluate"
    run_job("evaluate", evaluated, "--particles", out / "particles.star", "--truth", data.truth, "--align-frame",
            "--allow-mirror", "--map", out / "map.mrc", "--truth-map", reference)
    found, summary = (json.loads((run / "summary.json").read_text()) for run in (evaluated, out))
    known, pixel_size_angstrom = read_map(reference)
    by_relion = relion_map(data, aligned_poses(out / "particles.star", data.truth).poses, out.parent / f"{out.name}_relion")
    return {"converged": summary["converged"], "walls": summary.get("stages", {}),
            "median_deg": found["median_error_deg"], "mean_deg": found["mean_error_deg"],
            "misassigned": 1 - found["fraction_below_10deg"],
            "shift_px": found["median_shift_error_angstrom"] / pixel_size_angstrom,
            "off_centre_px": float(np.linalg.norm(found["frame_translation_angstrom"])) / pixel_size_angstrom,
            "extent_angstrom": len(known) * pixel_size_angstrom,
            "map": (found["resolution_angstrom"], found["resolution_at_fsc_0.5_angstrom"]),
            "relion": resolutions(by_relion, torch.from_numpy(known), pixel_size_angstrom), **asdict(cost)}
