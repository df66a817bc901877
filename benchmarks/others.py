"""Other programs' ab initio on the images of one set, for ``ab_initio.py others``: RELION 3.1 and cryoDRGN, one thread each.

Each gets what its own interface would give it, and runs to its end or until its processor time is over; then the poses of
its last finished iteration are assessed.
"""

import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import torch
from results_page import record
from simulated_sets import Cost, InTrueFrame, SimulatedSet, measured, relion_map, resolutions, whole_run

from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import matrix_to_quaternion
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles, read_poses, read_table

BACKGROUND_RADIUS_BOXES, DIAMETER_BOXES = 0.45, 0.9
HEADER = ("| program | finished | median (deg) | mean (deg) | misassigned (> 10 deg) "
          "| map with its poses by relion_reconstruct: FSC 0.143 / 0.5 (A) | processor (min) | wall (min) |\n|---|---|---|---|---|---|---|---|")


def compare(data: SimulatedSet, reference: Path, out: Path, options) -> str:
    """Markdown rows of all programs, or of those named by ``--only``."""
    out.mkdir(parents=True, exist_ok=True)
    programs = {"search": _ours, "ours": _ours, "relion": _relion, "cryodrgn": _cryodrgn, "cryodrgn-voxels": _cryodrgn}
    lines = [HEADER]
    for name, program in programs.items():
        if not options.only or name in options.only:
            lines.append(program(name, data, reference, out, options))
    return "\n".join(lines)


def _ours(name: str, data: SimulatedSet, reference: Path, out: Path, options) -> str:
    skipped = ("distillation", "refinement") if name == "search" else ("distillation",)
    found = whole_run(data, reference, out / name, "--search-steps", options.steps, "--skip", *skipped)
    label = "cryoforum, search and one round of half maps" if name == "search" else "cryoforum, without network"
    return _row(data, label, "yes", found, found["relion"], found["processor"], found["wall"])


def _row(data: SimulatedSet, label: str, finished: str, found: dict, map_angstrom: tuple[float, float], processor: float,
         wall: float) -> str:
    record("other_programs", {"figures": {
        "set": data.title, "program": label, "finished": finished, "median_deg": f"{found['median_deg']:.2f}",
        "mean_deg": f"{found['mean_deg']:.2f}", "misassigned_percent": 100 * found["misassigned"],
        "map_angstrom": map_angstrom, "processor_min": round(processor / 60, 1)}})
    return (f"| {label} | {finished} | {found['median_deg']:.2f} | {found['mean_deg']:.2f} | "
            f"{100 * found['misassigned']:.1f} % | {map_angstrom[0]:.2f} / {map_angstrom[1]:.2f} | {processor / 60:.1f} | {wall / 60:.1f} |")


def _assess(label: str, data: SimulatedSet, reference: Path, poses: Poses, out: Path, cost: Cost,
            reached: str) -> str:
    truth = load_particles(data.truth, require_poses=True).poses
    found = InTrueFrame.of(poses, truth)
    known, pixel_size_angstrom = read_map(reference)
    volume = relion_map(data, found.poses, out)
    finished = ("yes" if cost.exit_code == 0 else f"no, ended with {cost.exit_code}") + f", {reached}"
    return _row(data, label, finished, found.figures(pixel_size_angstrom),
                resolutions(volume, torch.from_numpy(known), pixel_size_angstrom), cost.processor, cost.wall)


def one_thread() -> dict[str, str]:
    return os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


# ---------------------------------------------------------------- RELION
def normalised_images(data: SimulatedSet, out: Path) -> Path:
    """A STAR file of the images as RELION wants them: background of mean 0 and deviation 1."""
    particles = load_particles(data.particles)
    stack = out / "normalised.mrcs"
    subprocess.run(["relion_preprocess", "--operate_on", data.path / "particles.mrcs", "--operate_out", stack.stem, "--norm",
                    "--bg_radius", str(round(BACKGROUND_RADIUS_BOXES * particles.box_size_px))], cwd=out, check=True,
                   capture_output=True)
    star = out / "normalised.star"
    star.write_text(data.particles.read_text().replace("@particles.mrcs", f"@{stack.name}"))
    return star


def relion_command(star: Path, box_angstrom: float, final_resolution_angstrom: float = 15,
                   final_batch: int = 500) -> list[str]:
    """The initial model of RELION 3.1's interface, one class, by default with its defaults."""
    return ["relion_refine", "--i", star.name, "--o", "./run", "--sgd", "--denovo_3dref", "--sgd_ini_iter", "50",
            "--sgd_inbetween_iter", "200", "--sgd_fin_iter", "50", "--sgd_write_iter", "10", "--sgd_ini_resol", "35",
            "--sgd_fin_resol", f"{final_resolution_angstrom:g}", "--sgd_ini_subset", "100", "--sgd_fin_subset", str(final_batch),
            "--ctf", "--K", "1", "--sym", "C1", "--flatten_solvent", "--zero_mask", "--particle_diameter",
            str(round(DIAMETER_BOXES * box_angstrom)),
            "--oversampling", "1", "--healpix_order", "1", "--offset_range", "6", "--offset_step", "2", "--pad", "1",
            "--dont_combine_weights_via_disc", "--preread_images", "--pool", "3", "--j", "1", "--random_seed", "1"]


def _relion(name: str, data: SimulatedSet, reference: Path, out: Path, options) -> str:
    folder = out / name
    folder.mkdir(exist_ok=True)
    star = normalised_images(data, folder)
    particles = load_particles(data.particles)
    command = relion_command(star, particles.box_size_px * particles.pixel_size_angstrom, options.relion_final_resolution,
                             options.relion_final_batch)
    cost = measured(command, folder / "log.txt", max_processor_seconds=60 * options.processor_minutes, cwd=folder,
                    env=one_thread())
    last = sorted(folder.glob("run_it*_data.star"))[-1]
    label = (f"RELION 3.1.3, SGD initial model, final resolution {options.relion_final_resolution:g} A, final batch "
             f"{options.relion_final_batch}")
    return _assess(label, data, reference, relion_poses(last), folder / "judged", cost, f"{last.stem.split('_')[1]} of 300")


def relion_poses(path: Path) -> Poses:
    """Poses in the order of the stack."""
    table = read_table(path)
    number = np.array([int(name.partition("@")[0]) for name in table.strings("rlnImageName")])
    return read_poses(table)[torch.from_numpy(np.argsort(number))]


# ---------------------------------------------------------------- cryoDRGN
def cryodrgn_commands(program: str, star: Path, pixel_size_angstrom: float, box_size_px: int, *options: str) -> list[list[str]]:
    """CTF, then ab initio of one structure (``abinit`` of cryoDRGN 4), on one thread; an eighth of the box is searched for
    shifts, as by cryoforum."""
    # without --ps a STAR file that has no phase shift gives phase shifts of NaN, and then every loss is NaN
    return [[program, "parse_ctf_star", str(star), "-D", str(box_size_px), "--Apix", str(pixel_size_angstrom), "--ps", "0",
             "-o", "ctf.pkl"],
            [program, "abinit", str(star), "--datadir", str(star.parent), "--zdim", "0", "--ctf", "ctf.pkl", "-o", "out",
             "--num-workers", "0", "--max-threads", "1", "--no-amp", "--seed", "1", "--checkpoint", "1", "--no-analysis",
             "--log-interval", "100", "--t-extent", str(box_size_px / 8), *options]]


def _cryodrgn(name: str, data: SimulatedSet, reference: Path, out: Path, options) -> str:
    folder = out / name
    folder.mkdir(exist_ok=True)
    particles = load_particles(data.particles)
    commands = cryodrgn_commands(options.cryodrgn, data.particles, particles.pixel_size_angstrom, particles.box_size_px,
                                 *(["--explicit-volume"] if name == "cryodrgn-voxels" else []))
    label = "cryoDRGN abinit" + (", voxels instead of a network" if name == "cryodrgn-voxels" else "")
    subprocess.run(commands[0], cwd=folder, check=True, capture_output=True, env=one_thread())
    cost = measured(commands[1], folder / "log.txt", max_processor_seconds=60 * options.processor_minutes, cwd=folder,
                    env=one_thread())
    epochs = sorted(folder.glob("out/pose.*.pkl"), key=lambda path: int(path.suffixes[0][1:]))
    # what the warm-up before the first pose search leaves is no result
    if not epochs or epochs[-1].suffixes[0] == ".0":
        return (f"| {label} | no: no pose search finished (ended with {cost.exit_code}) | - | - | - | - | "
                f"{cost.processor / 60:.1f} | {cost.wall / 60:.1f} |")
    poses = cryodrgn_poses(epochs[-1], particles.pixel_size_angstrom)
    return _assess(label, data, reference, poses, folder / "judged", cost, f"epoch {epochs[-1].suffixes[0][1:]} of 30")


def cryodrgn_poses(path: Path, pixel_size_angstrom: float) -> Poses:
    """From its pickle of rotations (N, 3, 3), RELION's A, and translations (N, 2) in pixels."""
    with open(path, "rb") as file:
        rotations, translations = pickle.load(file)
    return Poses(matrix_to_quaternion(torch.from_numpy(np.asarray(rotations)).double()),
                 torch.from_numpy(np.asarray(translations)).double() * pixel_size_angstrom)
