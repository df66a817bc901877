"""What each part of the network is worth: filter channels, pooling, activation, head, loss, labels, encoder.

Every row changes one thing of the default and trains with the same budget of processor time, three seeds each, on
images of a ribosome subunit at 32 px; the error is that of 1,000 images that no training saw. Prints Markdown rows.

    OMP_NUM_THREADS=1 python benchmarks/encoder_comparison.py --map 30S_64_5.0.mrc --out comparison.csv
"""

import argparse
import csv
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from results_page import cpu_hardware, record

from cryoforum_core.config import SimulateConfig, TrainConfig
from cryoforum_core.geometry.rotations import angular_distance_deg
from cryoforum_core.particles.dataset import Particles, load_particles
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.particles.simulate import load_molecule, simulate
from cryoforum_core.run_directory import RunDirectory
from cryoforum_core.training.loop import LoopSettings, train_network
from cryoforum_core.training.losses import bingham_loss
from cryoforum_core.training.supervised import SupervisedTask, TrainingPlan, learning_rate, plan_training

LABELS = {"reference": None}
VARIANTS: dict[str, dict] = {
    "default": {},
    "filter channels: none": {"filter_channels": 0},
    "filter channels: 2": {"filter_channels": 2},
    "encoder: compact, pooling: generalised mean": {"encoder": "compact", "pooling": "gem"},
    "encoder: compact, pooling: average": {"encoder": "compact", "pooling": "average"},
    "encoder: compact, pooling: maximum": {"encoder": "compact", "pooling": "max"},
    "activation: PReLU": {"activation": "prelu"},
    "activation: SiLU": {"activation": "silu"},
    "head: qcqp-psd": {"head": "qcqp-psd"},
    "head: qcqp-psd, learning rate 1e-3": {"head": "qcqp-psd", "learning_rate": 1e-3},
    "head: s2s2": {"head": "s2s2"},
    "head: quaternion": {"head": "quaternion"},
    "head: euler": {"head": "euler"},
    "loss: own error": {"loss": "own"},
    "loss: pairs only": {"loss": "pairwise"},
    "loss: chordal": {"loss": "chordal"},
    "Bingham weight 0 (the paper's loss)": {"bingham_weight": 0.0},
    "Bingham weight 0.1": {"bingham_weight": 0.1},
    "Bingham weight 0.1, learning rate 1e-3": {"bingham_weight": 0.1, "learning_rate": 1e-3},
    "Bingham weight 3": {"bingham_weight": 3.0},
    "Bingham weight 10": {"bingham_weight": 10.0},
    "encoder: compact": {"encoder": "compact"},
    "encoder: compact, learning rate 6e-3": {"encoder": "compact", "learning_rate": 6e-3},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "encoder: cryoforum": {"encoder": "cryoforum", "learning_rate": 1e-3},
    "encoder: cryoforum, width 8": {"encoder": "cryoforum", "width": 8},
    "encoder: cryoposenet": {"encoder": "cryoposenet", "learning_rate": 1e-3},
    "2,000 labels, no augmentation": LABELS | {"augment": False, "particle_fraction": 1.0},
    "2,000 labels, augmentation": LABELS | {"particle_fraction": 1.0},
    "2,000 labels and projections of their map": LABELS,
    "projections of the map of 2,000 labels": LABELS | {"particle_fraction": 0.0},
}


def make_particles(directory: Path, map_path: Path, n: int, seed: int, snr: float) -> Particles:
    """A set with true poses."""
    config = SimulateConfig(out=directory, model=map_path, n_particles=n, snr=snr, seed=seed)
    run = RunDirectory(config.out)
    run.prepare(config)
    simulate(config, run, load_molecule(map_path, None, None), None)
    return load_particles(run.truth)


class WithoutEvaluation(SupervisedTask):
    """Every evaluation is better than the one before: the weights at the end count."""

    def __init__(self, plan: TrainingPlan):
        super().__init__(plan)
        self.losses = itertools.count(0, -1)

    def evaluate(self) -> dict[str, float]:
        return {"validation_loss": next(self.losses)}


def measure(options: dict, seed: int, seconds: float, map_path: Path, training: Particles, test: Particles,
            directory: Path) -> dict[str, float]:
    """Trains one variant; returns its errors on the test set."""
    config = TrainConfig(**{"out": directory, "particles": "in memory", "reference": map_path, "seed": seed,
                            "network_box_size_px": 32, **options})
    plan = plan_training(config, training, state=ImageState())
    settings = LoopSettings(max_steps=10**9, max_minutes=seconds / 60, seed=seed,
                            learning_rate=learning_rate(config, plan.network))
    with tempfile.TemporaryDirectory() as scratch:
        result = train_network(WithoutEvaluation(plan), settings, Path(scratch) / "state.pt",
                               Path(scratch) / "metrics.csv", time.process_time)
    batch = plan.views.labels(test)
    with torch.no_grad():
        estimate = plan.network.eval()(batch.images, batch.ctf)
        likelihood = bingham_loss(estimate.bingham, batch.quaternion, plan.inputs.group)
    error = angular_distance_deg(estimate.quaternion, batch.quaternion)
    shift = (estimate.shift_angstrom - batch.shift_angstrom).norm(dim=1)
    return {"median_error_deg": error.median().item(), "mean_error_deg": error.mean().item(),
            "negative_log_likelihood": likelihood.mean().item(), "median_shift_error_angstrom": shift.median().item(),
            "steps": result.steps}


def row(name: str, results: list[dict[str, float]]) -> str:
    """A Markdown row: mean and half the range over the seeds."""
    cells = [name]
    for key, digits in (("median_error_deg", 1), ("mean_error_deg", 1), ("negative_log_likelihood", 2),
                        ("median_shift_error_angstrom", 1), ("steps", 0)):
        values = [result[key] for result in results]
        spread = (max(values) - min(values)) / 2
        cells.append(f"{statistics.mean(values):.{digits}f} +- {spread:.{digits}f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--map", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="CSV of all runs")
    parser.add_argument("--seconds", type=float, default=18.0, help="processor time of one training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--snr", type=float, default=0.5, help="at the map's own box")
    parser.add_argument("--only", nargs="*", default=[""], help="variants whose name contains one of these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        training = make_particles(Path(scratch) / "training", options.map, 2000, 1, options.snr)
        test = make_particles(Path(scratch) / "test", options.map, 1000, 2, options.snr)
        print("| variant | median (degrees) | mean (degrees) | -log likelihood | median shift error (A) | steps |")
        print("|---|---|---|---|---|---|", flush=True)
        with open(options.out, "w", newline="") as file:
            writer = None
            for name, changes in VARIANTS.items():
                if not any(part in name for part in options.only):
                    continue
                results = []
                for seed in range(options.seeds):
                    results.append(measure(changes, seed, options.seconds, options.map, training, test,
                                           Path(scratch) / "run"))
                    writer = writer or csv.DictWriter(file, ["variant", "seed", *results[0]])
                    if file.tell() == 0:
                        writer.writeheader()
                    writer.writerow({"variant": name, "seed": seed, **results[-1]})
                    file.flush()
                line = row(name, results)
                print(line, flush=True)
                _, *cells = line.strip("| ").split(" | ")
                record("encoders", {"hardware": cpu_hardware(), "figures": {
                    "variant": name, "seconds": options.seconds,
                    **dict(zip(("median_deg", "mean_deg", "nll", "shift_angstrom", "steps"), cells, strict=True))}})


if __name__ == "__main__":
    main()
