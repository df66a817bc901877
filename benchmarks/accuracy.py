"""Accuracy against the Cramer-Rao bound, on images that RELION projected.

    python benchmarks/accuracy.py DATASET --reference MAP.mrc --out DIR [--train-minutes 8]

DATASET holds ``particles.star`` with the true poses, ``input.star`` without them and ``truth.npz`` (noise). Runs
``cryoforum train --reference`` and ``cryoforum predict --refinement adaptive`` (and ``none``: the network alone) on
``input.star`` and prints one markdown row of figures. The bound: at the true pose, with the map and the noise known, the
inverse Fisher information over three rotations and two shifts gives the covariance of the best unbiased estimator; its
median error is that of errors drawn from these Gaussians.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from results_page import record

from cryoforum_core.imaging.ctf import ctf_2d
from cryoforum_core.imaging.fourier import fft_image
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.matching.refine import fisher_information
from cryoforum_core.matching.whitened_images import WhitenedImages
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import Particles, load_particles


def bound_deg(dataset: Path, reference: Path) -> tuple[float, float, float]:
    """Median and mean of the errors (degrees) and median shift error (px) of an estimator that attains the bound."""
    particles = load_particles(dataset / "particles.star", require_poses=True)
    volume, pixel_size_angstrom = read_map(reference)
    box = particles.box_size_px
    fourier_volume = FourierVolume.from_real(torch.tensor(volume), with_gradient=True)
    variance = float(np.mean(np.load(dataset / "truth.npz")["sigma"] ** 2))
    spectrum = torch.full((box // 2 + 1,), variance * box ** 2)
    rotation, shift = [], []
    generator = torch.Generator().manual_seed(0)
    for rows in torch.arange(len(particles)).split(500):
        images_ft = fft_image(particles.images(rows))
        ctf = ctf_2d(particles.ctf[rows], box, pixel_size_angstrom)
        images = WhitenedImages.from_transforms(images_ft, ctf, spectrum, box / 2 - 1)
        displacement = -particles.poses.shift_angstrom[rows] / pixel_size_angstrom
        information = fisher_information(images, fourier_volume, particles.poses.quaternion[rows], displacement)
        factor = torch.linalg.cholesky(torch.linalg.inv(information.double()))
        draws = (factor[:, None] @ torch.randn(len(rows), 64, 5, 1, generator=generator, dtype=torch.float64))[..., 0]
        rotation.append(torch.rad2deg(draws[..., :3].norm(dim=-1)).flatten())
        shift.append(draws[..., 3:].norm(dim=-1).flatten())
    rotation, shift = torch.cat(rotation), torch.cat(shift)
    return float(rotation.median()), float(rotation.mean()), float(shift.median())


def run(*arguments: str) -> float:
    """Runs a cryoforum command; returns its seconds."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "cryoforum_core", *map(str, arguments)], check=True)
    return time.monotonic() - start


def evaluate(out: Path, particles: Path, truth: Path) -> dict:
    run("evaluate", "--particles", particles, "--truth", truth, "--out", out)
    return json.loads((out / "summary.json").read_text())


def training_curve(train: Path) -> list[tuple[float, float]]:
    """(minutes, held-out median error in degrees) during training."""
    with open(train / "metrics.csv", newline="") as file:
        return [(float(row["seconds"]) / 60, float(row["validation_median_error_deg"]))
                for row in csv.DictReader(file) if row.get("validation_median_error_deg")]


def record_figures(name: str, particles: Particles, refinement: str, found: dict, bound_median_deg: float, shift_px: float,
                   train_seconds: float, predict_seconds: float, snr: float) -> None:
    n = len(particles)
    record("poses", {"figures": {
        "set": name, "particles": n, "snr": float(f"{snr:.2g}"), "refinement": refinement,
        "median_deg": found["median_error_deg"], "bound_ratio": found["median_error_deg"] / bound_median_deg,
        "mean_deg": found["mean_error_deg"], "misassigned_percent": 100 * (1 - found["fraction_below_10deg"]),
        "shift_px": shift_px, "train_min": train_seconds / 60, "predict_min": predict_seconds / 60}})
    record("speed", {"figures": {"step": f"predict --refinement {refinement}, {name}", "particles": n,
                                 "wall": f"{predict_seconds / 60:.1f} min", "processor": None}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train-minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    median, mean, shift_px = bound_deg(options.dataset, options.reference)
    print(f"bound: median {median:.3f}, mean {mean:.3f} degrees, shift {shift_px:.3f} px", flush=True)
    particles, truth, out = options.dataset / "input.star", options.dataset / "particles.star", options.out
    seconds = {"train": run("train", "--particles", particles, "--reference", options.reference, "--out", out / "train",
                            "--max-minutes", options.train_minutes, "--seed", options.seed)}
    rows = []
    for refinement in ("none", "local", "adaptive"):
        predicted = out / refinement
        seconds[refinement] = run("predict", "--particles", particles, "--model", out / "train", "--reference",
                                  options.reference, "--refinement", refinement, "--out", predicted)
        found = evaluate(out / f"evaluate_{refinement}", predicted / "particles.star", truth)
        pixel_size_angstrom = read_map(options.reference)[1]
        record_figures(options.reference.stem, load_particles(truth), refinement, found, median,
                       found["median_shift_error_angstrom"] / pixel_size_angstrom, seconds["train"], seconds[refinement],
                       float(np.load(options.dataset / "truth.npz")["signal_var"]
                             / np.mean(np.load(options.dataset / "truth.npz")["sigma"] ** 2)))
        rows.append(f"| {options.reference.stem} | {refinement} | {found['median_error_deg']:.2f} | "
                    f"{found['median_error_deg'] / median:.2f} | {found['mean_error_deg']:.2f} | "
                    f"{100 * (1 - found['fraction_below_10deg']):.1f} % | "
                    f"{found['median_shift_error_angstrom'] / pixel_size_angstrom:.3f} | "
                    f"{seconds['train'] / 60:.1f} + {seconds[refinement] / 60:.1f} min |")
    print("| map | refinement | median (deg) | / bound | mean (deg) | misassigned (> 10 deg) | median shift error (px) "
          "| train + predict |\n|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print("network alone while training (minutes: held-out median): "
          + ", ".join(f"{minutes:.1f}: {error:.1f}" for minutes, error in training_curve(out / "train")[::2]))


if __name__ == "__main__":
    main()
