"""Makes the sets, runs the methods, compares their results with the truth, and writes the table and the figures.

``sets/`` holds the images, ``runs/`` an ordinary run directory for each job, ``results/`` the figures of each run. What
exists is not computed again. The table has all results in ``results/``, also those of earlier calls with other sets.
"""

import logging
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..config import BenchmarkConfig, BenchmarkMethod, ImageInputConfig, PredictConfig, ReconstructConfig
from ..errors import NotConverged
from ..geometry.poses import Poses, displacement_px
from ..imaging.ctf import ctf_2d
from ..imaging.fourier import ifft_image, shift_phase
from ..imaging.projection import FourierVolume
from ..mrc import read_map
from ..particles.dataset import Particles, load_particles
from ..report.benchmark_page import write_figures
from ..report.benchmark_results import Result, read_results, result_path, write_result
from ..run_directory import RunDirectory
from .data_sets import DataSet, prepared_set
from .methods import ab_initio_config, errors_on_evaluate, has_encoder, refinement
from .published import CRYOPOSENET, NEAR_SYMMETRY
from .table import write_table
from .truth_comparison import MapAgreement, PoseAlignment, map_agreement

logger = logging.getLogger("cryoforum")


@dataclass(frozen=True)
class Jobs:
    """The jobs that a benchmark calls: configuration in, run directory out."""

    simulate: Callable[..., RunDirectory]
    ab_initio: Callable[..., RunDirectory]
    predict: Callable[..., RunDirectory]
    reconstruct: Callable[..., RunDirectory]


def run_benchmark(config: BenchmarkConfig, run: RunDirectory, jobs: Jobs, device: torch.device) -> dict:
    """Runs what is missing, writes the table after each set and the figures at the end, and returns the summary."""
    (run.path / "results").mkdir(exist_ok=True)
    for name in config.sets:
        data = prepared_set(config, name, run.path / "sets" / name, jobs.simulate)
        for method in config.methods:
            for seed in range(config.seed, config.seed + config.seeds):
                if result_path(run.path, name, method, seed).is_file():
                    continue
                logger.info("benchmark: set %s (%s), %s, seed %d", name, CRYOPOSENET[name].label, method, seed)
                write_result(run.path, _Runner(config, run.path, jobs, device, data).result(method, seed))
        write_table(read_results(run.path), run.path, config)  # so far
    results = read_results(run.path)
    rows = write_table(results, run.path, config)
    write_figures(run.path)
    return {"table": config.table, "scale": config.scale, "n_runs": len(results), "rows": rows,
            "hardware": sorted({result.figures["hardware"] for result in results}),
            "runs": [result.figures for result in results]}


class _Runner:
    """The runs of one data set."""

    def __init__(self, config: BenchmarkConfig, out: Path, jobs: Jobs, device: torch.device, data: DataSet):
        self.config, self.out, self.jobs, self.device, self.data = config, out, jobs, device, data
        known, pixel_size_angstrom = read_map(data.map)
        self.known, self.pixel_size_angstrom = torch.from_numpy(known), round(pixel_size_angstrom, 5)
        self.image_input = ImageInputConfig(ctf_state=data.ctf_state)

    def result(self, method: BenchmarkMethod, seed: int) -> Result:
        """Runs the method and compares its result with the truth."""
        path = self.out / "runs" / f"{self.data.name}_{method}_{seed}"
        truth = self._load(self.data.train_truth)
        run = self._ab_initio(method, seed, path, truth.poses)
        summary = run.read_summary()
        found = load_particles(run.particles, self.image_input, require_poses=True)
        alignment = PoseAlignment.of(found.poses, truth.poses, NEAR_SYMMETRY)
        errors = alignment.errors(found.poses.quaternion, truth.poses.quaternion)
        volume = torch.from_numpy(read_map(run.map)[0])
        agreement = map_agreement(volume, self.known, self.pixel_size_angstrom, alignment)
        ceiling = self._ceiling()
        figures = {"set": self.data.name, "label": CRYOPOSENET[self.data.name].label,
                   "snr_db": CRYOPOSENET[self.data.name].snr_db, "method": method, "seed": seed,
                   "converged": summary["converged"], **errors, **self._test_errors(method, path, alignment),
                   **self._map_figures(agreement, ceiling),
                   "half_map_resolution_angstrom": summary["resolution_angstrom"],
                   "n_train": len(truth), "box_size_px": len(volume), "pixel_size_angstrom": self.pixel_size_angstrom,
                   "seconds": summary["seconds"], "hardware": describe_hardware(self.device)}
        return Result(figures, {"fsc": agreement.fsc.numpy(), "ceiling_fsc": ceiling.fsc.numpy(),
                                **self._pictures(found, volume, agreement.volume)})

    def _load(self, path: Path) -> Particles:
        return load_particles(path, self.image_input, require_poses=True)

    def _ab_initio(self, method: BenchmarkMethod, seed: int, path: Path, truth: Poses) -> RunDirectory:
        path.parent.mkdir(exist_ok=True)
        config = ab_initio_config(self.config, method, self.data, seed, path)
        try:
            return self.jobs.ab_initio(config, on_evaluate=errors_on_evaluate(truth, seed))
        except NotConverged as reason:
            logger.info("%s did not converge: %s", path.name, reason)
            return RunDirectory(path)

    def _test_errors(self, method: BenchmarkMethod, path: Path, alignment: PoseAlignment) -> dict[str, float]:
        """Errors of held-out images, in the frame of the run: poses of ``predict``, and those of the network alone."""
        if not has_encoder(method):
            return {}
        out = path.with_name(f"{path.name}_test")
        run = self.jobs.predict(PredictConfig(
            out=out, particles=self.data.test, model=path, refinement=refinement(method), device=self.config.device,
            ctf_state=self.data.ctf_state, resume=out.is_dir()))
        truth = self._load(self.data.test_truth).poses.quaternion
        with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
            found = {"test": arrays["quaternion"], "test_network": arrays["network_quaternion"]}
        return {f"{kind}_{name}": value for kind, quaternion in found.items()
                for name, value in alignment.errors(torch.from_numpy(quaternion), truth).items()}

    def _ceiling(self) -> MapAgreement:
        """The map of the same images reconstructed with their true poses."""
        out = self.out / "runs" / f"{self.data.name}_true_poses"
        run = self.jobs.reconstruct(ReconstructConfig(
            out=out, particles=self.data.train_truth, device=self.config.device, ctf_state=self.data.ctf_state,
            resume=out.is_dir()))
        return MapAgreement.of(torch.from_numpy(read_map(run.map)[0]), self.known)

    def _map_figures(self, agreement: MapAgreement, ceiling: MapAgreement) -> dict[str, float]:
        extent = len(self.known) * self.pixel_size_angstrom
        figures = {}
        for level, found, best in zip(("05", "0143"), agreement.resolutions_angstrom(self.pixel_size_angstrom),
                                      ceiling.resolutions_angstrom(self.pixel_size_angstrom), strict=True):
            figures |= {f"resolution_{level}_angstrom": found, f"ceiling_{level}_angstrom": best,
                        f"shells_below_ceiling_{level}": extent / best - extent / found}
        return figures

    def _pictures(self, found: Particles, volume: torch.Tensor, aligned: torch.Tensor) -> dict[str, np.ndarray]:
        """The first image, the matching projection of the reconstructed map, and central slices of that map and of the true
        one."""
        poses, box = found.poses[:1], found.box_size_px
        ctf = ctf_2d(found.ctf[:1], box, found.pixel_size_angstrom)
        phase = shift_phase(displacement_px(poses.shift_angstrom, found.pixel_size_angstrom), box)
        projection = ifft_image(FourierVolume.from_real(volume).project(poses.quaternion) * phase * ctf)[0]
        return {"image": found.images([0])[0].numpy(), "projection": projection.numpy(),
                "found_slice": aligned[box // 2].numpy(), "true_slice": self.known[box // 2].numpy()}


def describe_hardware(device: torch.device) -> str:
    """The processor or GPU by name, and how many cores the run may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {cores} CPU cores"
    return f"{_processor_name()}, {torch.get_num_threads()} of {cores} cores"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
