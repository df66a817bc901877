"""The jobs: configuration in, run directory out. The file to read first.

Each job reads and checks all of its input before it writes anything, and reports all problems at once (InputError);
then it calls one function of a lower layer, and writes ``summary.json`` last.
"""

import functools
import importlib.metadata
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable

import torch

from . import __version__
from .config import (
    AbInitioConfig,
    BenchmarkConfig,
    DoctorConfig,
    EvaluateConfig,
    JobConfig,
    PredictConfig,
    ReconstructConfig,
    ReportConfig,
    SelectConfig,
    SimulateConfig,
    TrainConfig,
)
from .errors import InputError, NotConverged
from .problems import Problems
from .progress import format_duration
from .run_directory import RunDirectory

logger = logging.getLogger("cryoforum")

# the libraries that results depend on, by their names on PyPI
LIBRARIES = ("torch", "numpy", "roma", "torch-ctf", "mrcfile", "safetensors", "gemmi", "pydantic", "tyro", "matplotlib")


class _Inputs(Problems):
    """Reads the inputs of a job, of which device and run directory are the first."""

    read = Problems.attempt

    def __init__(self, config: JobConfig):
        super().__init__()
        self._config = config

    def __enter__(self) -> "_Inputs":
        logger.info("cryoforum %s %s", __version__, self._config.job)
        self.device = self.read(resolve_device, self._config.device)
        if self._config.out is not None:
            self.read(RunDirectory(self._config.out).check, self._config, self._config.resume)
        return self


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``. Raises InputError for a missing device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (":" in name and not number.isdecimal())):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N; it is {name!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name} needs a GPU that PyTorch can use; none was found. Use --device cpu, or check "
                         "the driver (nvidia-smi) and that PyTorch was installed with CUDA.")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise InputError(f"--device {name} must be a GPU of this machine; it has {torch.cuda.device_count()}, numbered from "
                         f"0. Use --device cuda:{torch.cuda.device_count() - 1} or lower.")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """``CPU, 2 threads`` or the GPU's name and memory."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    return f"{device}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _perform(config: JobConfig, device: torch.device, purpose: str, work: Callable[[RunDirectory], dict]
             ) -> RunDirectory:
    """Runs ``work`` in the run directory and writes the result as its summary."""
    run = RunDirectory(config.out)
    run.prepare(config, config.resume)
    run.summary.unlink(missing_ok=True)  # only a finished run has one
    logger.info("%s: %s", config.job, purpose)
    logger.info("device: %s; output: %s", describe_device(device), os.path.abspath(run.path))
    start = time.monotonic()
    summary = work(run)
    seconds = time.monotonic() - start
    about_the_run = {"job": config.job, "version": __version__, "seconds": round(seconds, 2)}
    if config.job != "report":
        _write_report(run, about_the_run | summary)
    run.write_summary(about_the_run | summary)
    run.remove_temporary()
    logger.info("%s done in %s", config.job, format_duration(seconds))
    _log_results(summary)
    return run


def _log_results(summary: dict) -> None:
    from .report.result_labels import label

    for name, value in summary.items():
        if isinstance(value, int | float | str):
            line = f"  {label(name)}: {f'{value:.4g}' if isinstance(value, float) else value}"
            logger.info("%s", line.replace("Å", "A"))  # not every terminal shows it


def _write_report(run: RunDirectory, summary: dict) -> None:
    """The report of the run. A problem with it must not lose the results."""
    from .report.report import write_report

    try:
        write_report(run, run.report, summary=summary)
    except Exception:
        logger.exception("The report could not be written; the results are complete.")


def _once(job: Callable[[JobConfig], RunDirectory]) -> Callable[[JobConfig], RunDirectory]:
    """A job that does nothing where --resume is given for a finished run with the same options."""
    @functools.wraps(job)
    def job_unless_finished(config: JobConfig, **more) -> RunDirectory:
        run = RunDirectory(config.out)
        if config.resume and run.finished and run.config.is_file() and run.read_summary().get("job") == config.job:
            if not run.changed_options(config):
                logger.info("%s is already finished; nothing to do.", run.path)
                return run
            logger.info("%s was finished with other options; running again with those given now.", run.path)
        return job(config, **more)

    return job_unless_finished


@_once
def simulate(config: SimulateConfig) -> RunDirectory:
    """Noisy images with known poses: particles.star, particles.mrcs, truth.star, map.mrc."""
    from .geometry.symmetry import normalise_name
    from .particles import simulate as simulation

    needs_other = config.junk_fraction > 0 and "other-molecule" in config.junk_kinds
    with _Inputs(config) as inputs:
        inputs.read(normalise_name, config.symmetry)
        ice_density = config.session.ice_density if config.like == "session" else 0.0
        molecule = inputs.read(simulation.load_molecule, config.model, config.box_size_px, config.pixel_size_angstrom,
                               ice_density)
        other = None
        if needs_other and molecule is not None:
            other = inputs.read(simulation.load_molecule, config.other_model or simulation.DEFAULT_OTHER_MODEL,
                                len(molecule.volume), molecule.pixel_size_angstrom, ice_density)
    snr = "SNR of a session" if config.snr is None else f"SNR {config.snr:g}"
    purpose = (f"{config.n_particles} images of {len(molecule.volume)} px at {molecule.pixel_size_angstrom:g} A/px, "
               f"{snr}, {config.junk_fraction:.0%} junk")
    return _perform(config, inputs.device, purpose,
                    lambda run: simulation.simulate(config, run, molecule, other, inputs.device))


def ab_initio(config: AbInitioConfig, on_evaluate: Callable[..., dict[str, float]] | None = None) -> RunDirectory:
    """Map, half maps, poses and a trained network, from images and CTF alone. Raises NotConverged at the end where the
    run did not converge, also when it is repeated with --resume.

    ``on_evaluate``: figures to record while the end-to-end method trains (``ab_initio.plan.OnEvaluate``).
    """
    run = _finished_ab_initio(config, on_evaluate=on_evaluate)
    summary = run.read_summary()
    if not summary["converged"]:
        raise NotConverged(f"{summary['converged_reason']} See the report: {run.report}")
    return run


@_once
def _finished_ab_initio(config: AbInitioConfig, on_evaluate: Callable[..., dict[str, float]] | None) -> RunDirectory:
    from .ab_initio.plan import plan_ab_initio
    from .ab_initio.run import run_ab_initio
    from .particles.dataset import load_particles

    with _Inputs(config) as inputs:
        particles = inputs.read(load_particles, config.particles, config)
        plan = None
        if particles is not None and inputs.device is not None:
            plan = inputs.read(plan_ab_initio, config, particles, inputs.device)
    purpose = f"{len(particles)} particles of {particles.box_size_px} px, method {config.method}"
    return _perform(config, inputs.device, purpose, lambda run: run_ab_initio(plan, run, on_evaluate))


@_once
def train(config: TrainConfig) -> RunDirectory:
    """A network from labelled particles or a map: checkpoint/, metrics.csv."""
    from .particles.dataset import load_particles
    from .particles.image_check import checked_pixels, without_constant_images
    from .training import supervised

    with _Inputs(config) as inputs:
        particles = inputs.read(load_particles, config.particles, config)
        plan = None
        if particles is not None:
            check = inputs.read(checked_pixels, particles)
            if check is not None and inputs.device is not None:
                particles = without_constant_images(particles, check)
                plan = inputs.read(supervised.plan_training, config, particles, inputs.device)
    purpose = f"{len(particles)} particles of {particles.box_size_px} px, {particles.pixel_size_angstrom:g} A/px" + (
        f", map {config.reference}" if config.reference else "")
    return _perform(config, inputs.device, purpose, lambda run: supervised.run_training(plan, run))


@_once
def predict(config: PredictConfig) -> RunDirectory:
    """Poses and their posterior: particles.star, orientation_posterior.npz."""
    from .ab_initio.other_molecule import other_molecule_figures
    from .inference.predict import predict as predict_poses
    from .inference.setup import prediction_setup
    from .particles.dataset import load_particles

    with _Inputs(config) as inputs:
        particles = inputs.read(load_particles, config.particles, config)
        setup = None
        if particles is not None and inputs.device is not None:
            setup = inputs.read(prediction_setup, config, particles, inputs.device)
    purpose = (f"{len(particles)} particles of {particles.box_size_px} px, network {config.model}, "
               f"refinement {config.refinement}")
    def work(run: RunDirectory) -> dict:
        return predict_poses(config, run, particles, setup, lambda results: other_molecule_figures(
            setup.images, setup.volume, results, run, config.seed))

    return _perform(config, inputs.device, purpose, work)


@_once
def reconstruct(config: ReconstructConfig) -> RunDirectory:
    """Map, half maps and FSC: map.mrc, map_half1.mrc, map_half2.mrc, fsc.csv."""
    from .geometry.symmetry import symmetry_group
    from .particles.dataset import load_particles
    from .particles.image_preparation import ImagePreparation
    from .reconstruction.reconstruct import reconstruct as reconstruct_map

    with _Inputs(config) as inputs:
        group = inputs.read(symmetry_group, config.symmetry)
        particles = inputs.read(load_particles, config.particles, config, require_poses=True)
        if particles is not None and inputs.device is not None:
            images = inputs.read(ImagePreparation.checked, particles, config, inputs.device)
            if config.weight_by is not None:
                inputs.read(particles.table.floats, config.weight_by)
    purpose = f"{len(particles)} particles of {particles.box_size_px} px, symmetry {config.symmetry}"
    return _perform(config, inputs.device, purpose, lambda run: reconstruct_map(
        config, run, particles, images.transforms, group.to(inputs.device), inputs.device))


@_once
def select(config: SelectConfig) -> RunDirectory:
    """Kept and rejected particles: selected.star, rejected.star, recentre.star."""
    from .report.run_files import RunFiles
    from .selection.run import plan_selection, run_selection

    predicted, plan = RunDirectory(config.run), None
    with _Inputs(config) as inputs:
        if inputs.read(_check_is_run_of, predicted, ("predict", "ab-initio")):
            plan = inputs.read(plan_selection, config, predicted, RunFiles(predicted).symmetry, inputs.device)
    return _perform(config, inputs.device, f"particles of {config.run}", lambda run: run_selection(plan, run))


@_once
def report(config: ReportConfig) -> RunDirectory:
    """A self-contained page about a finished run: report.html."""
    from .report.report import write_report

    reported = RunDirectory(config.run)
    with _Inputs(config) as inputs:
        inputs.read(_check_is_run_of, reported, ())
    return _perform(config, inputs.device, f"run {config.run}",
                    lambda run: write_report(reported, run.report, config.truth))


def _check_is_run_of(run: RunDirectory, jobs: tuple[str, ...]) -> bool:
    """True; raises InputError where ``run`` is not a finished run of one of ``jobs`` (an empty tuple: of any job)."""
    found = run.read_summary().get("job")
    if jobs and found not in jobs:
        raise InputError(f"--run must be a run of {' or '.join(jobs)}; {run.path} is a run of {found}. Check the path.")
    return True


@_once
def evaluate(config: EvaluateConfig) -> RunDirectory:
    """Errors of poses against known ones (errors.csv), and of a map against a known one (fsc.csv)."""
    from .evaluation import evaluation
    from .geometry.symmetry import symmetry_group
    from .particles.dataset import read_table

    with _Inputs(config) as inputs:
        estimated = inputs.read(read_table, config.particles)
        known = inputs.read(read_table, config.truth)
        group = inputs.read(symmetry_group, config.symmetry)
        maps = None
        if (config.map is None) != (config.truth_map is None):
            inputs.read(_refuse, "To compare maps, --map and --truth-map are needed; only one of them is given. "
                                 "Give both or neither.")
        elif config.map is not None:
            maps = inputs.read(evaluation.read_two_maps, config.map, config.truth_map)
        errors = None
        if estimated is not None and known is not None and group is not None:
            errors = inputs.read(evaluation.compare_poses, estimated, known, group, config.align_frame,
                                 config.allow_mirror, config.pixel_size_angstrom)
    return _perform(config, inputs.device, f"{config.particles} compared with {config.truth}",
                    lambda run: evaluation.write_evaluation(run, errors, maps))


@_once
def benchmark(config: BenchmarkConfig) -> RunDirectory:
    """Reproduces a published table: table.md, table.csv, figures, and the runs behind them, which --resume reuses."""
    from .published_benchmarks.benchmark import Jobs, run_benchmark
    from .published_benchmarks.data_sets import check_options

    with _Inputs(config) as inputs:
        inputs.read(check_options, config)
    jobs = Jobs(simulate, ab_initio, predict, reconstruct)
    purpose = f"{config.table}, sets {', '.join(config.sets)}, methods {', '.join(config.methods)}"
    return _perform(config, inputs.device, purpose, lambda run: run_benchmark(config, run, jobs, inputs.device))


def doctor(config: DoctorConfig) -> dict:
    """Versions, devices, memory and the self-test: printed, returned, and with --out written to a run directory.

    Raises InputError at the end where the self-test fails.
    """
    from .evaluation.self_test import run_self_test

    with _Inputs(config) as inputs:
        pass
    versions = {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}
    logger.info("libraries: %s", ", ".join(f"{name} {version}" for name, version in versions.items()))
    memory_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    logger.info("device: %s; %d CPU cores, %.1f GiB of free memory, %.1f GiB of free disk space in %s",
                describe_device(inputs.device), os.cpu_count(), memory_gib,
                shutil.disk_usage(os.getcwd()).free / 2**30, os.getcwd())
    gpus = [describe_device(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    logger.info("GPUs: %s", "; ".join(gpus) or "none that PyTorch can use")
    checks = run_self_test(inputs.device)
    failed = [check.name for check in checks if not check.ok]
    summary = {"job": "doctor", "version": __version__, "ok": not failed, "device": describe_device(inputs.device),
               "gpus": gpus, "libraries": versions, "checks": {check.name: check.figure for check in checks}}
    if config.out is not None:
        run = RunDirectory(config.out)
        run.prepare(config, config.resume)
        run.write_summary(summary)
    if failed:
        raise InputError(f"Every check of the self-test must pass; failed: {'; '.join(failed)}. Install the versions in "
                         "constraints.txt; on a GPU, compare with --device cpu.")
    logger.info("all %d checks passed", len(checks))
    return summary


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _refuse(problem: str) -> None:
    raise InputError(problem)
