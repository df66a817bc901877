"""Does ``predict`` say when a model does not apply, and why? Trials with known faults.

    python benchmarks/applicability.py --maps 30S.mrc 70S.mrc ... --out DIR [--trials 20] [--minutes 30]

Per map: a short training on simulated projections. Per trial: images of that map (or of another one brought to the same
size), simulated with CTF at SNR 0.1 and 0.05 in turn, a fault, and the assessment by ``predict`` before any pose is
predicted (``--whole`` runs all of ``predict``). Maps alternate. Every trial is a line of ``trials.jsonl``: a second call
goes on after the last one. Prints a markdown table.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from results_page import cpu_hardware, record

from cryoforum_core import jobs
from cryoforum_core.config import PredictConfig, ReconstructConfig, SimulateConfig, TrainConfig
from cryoforum_core.imaging.ctf import ctf_2d
from cryoforum_core.imaging.fourier import fft_image, ifft_image, low_pass_volume
from cryoforum_core.inference.predict import applicability
from cryoforum_core.inference.setup import prediction_setup
from cryoforum_core.mrc import read_map, write_map, write_stack
from cryoforum_core.particles.dataset import load_particles

SNR = (0.1, 0.05)
NO_SIGNAL = 1e-6
# what is made, what must be found ("none": no mismatch warning); the later ones in a quarter of the trials
MAIN_KINDS = 6
KINDS = {
    "matched": "none", "pixel size off by 5 %": "pixel-size", "inverted contrast, wrong setting": "contrast",
    "phases flipped, wrong setting": "ctf-state", "another molecule": "another-molecule", "noise only": "noise-only",
    "inverted contrast, auto": "none", "phases flipped, auto": "none",
    "matched, SNR 0.02": "none", "matched, 20 % junk": "none", "matched, 80 % preferred viewing directions": "none",
    "matched, map low-passed": "none", "matched, map of 400 images": "none",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument("--train-minutes", type=float, default=0.3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no trial after this time")
    parser.add_argument("--whole", action="store_true", help="run all of predict, not only its assessment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    options.out.mkdir(parents=True, exist_ok=True)
    log, start = options.out / "trials.jsonl", time.monotonic()
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    finished = {(one["kind"], one["trial"]) for one in done}
    main_kinds, more = list(KINDS)[:MAIN_KINDS], list(KINDS)[MAIN_KINDS:]
    plan = [(kind, trial) for trial in range(options.trials) for kind in main_kinds]
    for trial in range(options.trials // 4):
        place = len(main_kinds) * 3 * (trial + 1) + len(more) * trial
        plan[place:place] = [(kind, trial) for kind in more]
    for kind, trial in plan:
        if (kind, trial) not in finished and time.monotonic() - start < 60 * options.minutes:
            done.append(run_trial(kind, trial, options))
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print(table(done))
    record_figures(done)


def run_trial(kind: str, trial: int, options: argparse.Namespace) -> dict:
    own = options.maps[trial % len(options.maps)]
    snr, folder = SNR[trial % 2], options.out / f"{list(KINDS).index(kind):02d}_{trial:02d}"
    particles, settings = make_set(kind, trial, own, snr, folder, options)
    config = PredictConfig(out=folder / "predict", particles=particles, model=network(own, options), seed=trial,
                           device="cpu", resume=True, **settings)
    setup = prediction_setup(config, load_particles(particles, config), torch.device("cpu"))
    start = time.process_time()
    if options.whole:
        summary = jobs.predict(config).read_summary()
    else:
        summary = applicability(config, setup).summary()
    # where the images do not tell that they are flipped, they are taken as raw, and a mismatch warning is right
    expected = "ctf-state" if kind.startswith("phases") and setup.images.state.ctf_state == "raw" else KINDS[kind]
    return {"kind": kind, "expected": expected, "trial": trial, "map": own.stem, "snr": snr,
            "cpu_seconds": time.process_time() - start,
            **{name: value for name, value in summary.items() if name.startswith(("model", "promise", "estim", "sig"))}}


def network(own: Path, options: argparse.Namespace) -> Path:
    out = options.out / f"network_{own.stem}"
    simulated = options.out / f"images_{own.stem}"
    jobs.simulate(SimulateConfig(out=simulated, model=own, n_particles=options.particles, seed=999, resume=True))
    jobs.train(TrainConfig(out=out, particles=simulated / "particles.star", reference=own, device="cpu", resume=True,
                           max_minutes=options.train_minutes, network_box_size_px=32))
    return out


def make_set(kind: str, trial: int, own: Path, snr: float, folder: Path, options: argparse.Namespace
             ) -> tuple[Path, dict]:
    """The particles of a trial, and the settings of ``predict`` with which they are assessed."""
    molecule = own
    others = [path for path in options.maps if path != own]
    other = at_size_of(others[(trial // len(options.maps)) % len(others)], own, folder)
    if kind == "another molecule":
        molecule = other
    extra = {"matched, 20 % junk": {"junk_fraction": 0.2, "other_model": other},
             "matched, 80 % preferred viewing directions": {"preferred_view_fraction": 0.8}}.get(kind, {})
    snr = {"noise only": NO_SIGNAL, "matched, SNR 0.02": 0.02}.get(kind, snr)
    noise = "coloured" if kind == "noise only" and trial % 2 else "white"
    run = jobs.simulate(SimulateConfig(out=folder / "images", model=molecule, n_particles=options.particles, snr=snr,
                                       noise=noise, seed=trial, device="cpu", resume=True, **extra))
    particles, pixel_size_angstrom = run.particles, read_map(own)[1]
    if kind == "pixel size off by 5 %":
        return particles, {"pixel_size_angstrom": pixel_size_angstrom * (1.05 if trial % 2 else 1 / 1.05)}
    if kind.startswith("inverted"):
        particles = change_images(particles, lambda images, ctf: -images)
        return particles, {} if kind.endswith("auto") else {"contrast": "bright"}
    if kind.startswith("phases"):
        particles = change_images(particles, flip)
        return particles, {} if kind.endswith("auto") else {"ctf_state": "raw"}
    if kind == "matched, map low-passed":
        volume = torch.from_numpy(read_map(own)[0])
        low = low_pass_volume(volume, len(volume) / 5)
        write_map(folder / "low.mrc", low.numpy(), pixel_size_angstrom)
        return particles, {"reference": folder / "low.mrc"}
    if kind == "matched, map of 400 images":
        other = jobs.simulate(SimulateConfig(out=folder / "others", model=own, n_particles=400, snr=snr,
                                             seed=1000 + trial, device="cpu", resume=True))
        made = jobs.reconstruct(ReconstructConfig(out=folder / "map", particles=other.truth, device="cpu", resume=True))
        return particles, {"reference": made.map}
    return particles, {}


def at_size_of(other: Path, own: Path, folder: Path) -> Path:
    """The other molecule with the pixel size of the own map: about as large in its box."""
    folder.mkdir(parents=True, exist_ok=True)
    write_map(folder / "other.mrc", read_map(other)[0], read_map(own)[1])
    return folder / "other.mrc"


def change_images(star: Path, change) -> Path:
    """The set with other images, in files beside it."""
    particles = load_particles(star)
    images = particles.images(np.arange(len(particles)))
    ctf = ctf_2d(particles.ctf, particles.box_size_px, particles.pixel_size_angstrom)
    changed = star.with_name("changed.star")
    write_stack(changed.with_suffix(".mrcs"), change(images, ctf).numpy(), particles.pixel_size_angstrom)
    changed.write_text(star.read_text().replace("particles.mrcs", "changed.mrcs"))
    return changed


def flip(images: torch.Tensor, ctf: torch.Tensor) -> torch.Tensor:
    return ifft_image(fft_image(images) * torch.where(ctf < 0, -1.0, 1.0))


def record_figures(done: list[dict]) -> None:
    for kind in KINDS:
        some = [one for one in done if one["kind"] == kind]
        if some:
            explained = [one["promise_kept"] for one in some if "promise_kept" in one]
            record("applicability", {"hardware": cpu_hardware(), "figures": {
                "set": kind, "trials": len(some), "warnings": sum(not one["model_applies"] for one in some),
                "cause": sum(one["model_applies_cause"] == one["expected"] for one in some),
                "explained": [min(explained), float(np.median(explained)), max(explained)] if explained else None,
                "cpu_s": float(np.median([one["cpu_seconds"] for one in some]))}})


def table(done: list[dict]) -> str:
    lines = ["| set | trials | mismatch warnings | cause as expected | explained power (lowest, median, highest) "
             "| CPU s (median) |",
             "|---|---|---|---|---|---|"]
    for kind in KINDS:
        some = [one for one in done if one["kind"] == kind]
        if not some:
            continue
        kept = np.array([one["promise_kept"] for one in some if "promise_kept" in one])
        spread = "-" if not len(kept) else f"{kept.min():.2f}, {np.median(kept):.2f}, {kept.max():.2f}"
        lines.append(f"| {kind} | {len(some)} | {sum(not one['model_applies'] for one in some)} | "
                     f"{sum(one['model_applies_cause'] == one['expected'] for one in some)} | {spread} | "
                     f"{np.median([one['cpu_seconds'] for one in some]):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
