"""Supervised training: from particles with poses, from a reference map, from both, or on from a checkpoint."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..errors import InputError
from ..geometry.symmetry import normalise_name, symmetric_distance_deg, symmetry_group
from ..imaging.resample import resample_volume
from ..model.checkpoint import REFERENCE, CheckpointMetadata, load_checkpoint, save_checkpoint
from ..model.encoder import MIN_BOX_SIZE_PX
from ..model.network import NetworkConfig, OrientationNetwork
from ..model.orientation_head import PoseEstimate
from ..mrc import write_map
from ..particles.dataset import Particles
from ..particles.image_state import ImageState, determine_image_state
from ..particles.preprocess import PreprocessSettings
from ..particles.simulate import load_molecule
from ..run_directory import RunDirectory
from .label_map import network_volume
from .loop import LoopResult, LoopSettings, step_generator, train_network
from .losses import bingham_loss, orientation_loss, shift_error
from .projections import NOISE_IS_FULL_AT, ImageModel, ProjectionStream, TrainingBatch
from .streams import MixedStream, ParticleStream
from .views import ParticleViews

logger = logging.getLogger("cryoforum")

MIN_LABELLED = 50
MAX_VALIDATION, N_SIMULATED_VALIDATION = 2000, 1000
SHIFT_RMS_OF_BOX = 0.04
# a network that knows the particle already must not be thrown off by large steps
FINE_TUNE_LEARNING_RATE_FACTOR = 0.3
STATE_NAME = "training_state.pt"
_BATCH = 250
# evaluations during the training must cost little of it
MAX_BATCHES_UNDERWAY = 2


@dataclass(frozen=True)
class TrainingInputs:
    """What was read and checked."""

    parent: OrientationNetwork | None
    settings: PreprocessSettings
    network: NetworkConfig
    group: Tensor
    volume: Tensor | None
    """(B, B, B) the reference on the particles' grid; None where the labels are to make it"""
    rows: np.ndarray
    """rows of the particles that may be used"""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that is decided before the first step."""

    config: TrainConfig
    inputs: TrainingInputs
    views: ParticleViews
    network: OrientationNetwork
    stream: MixedStream
    validation: list[TrainingBatch]
    validation_source: str
    image_model: ImageModel
    volume: Tensor
    """(B, B, B) what is projected, on the particles' grid"""
    n_labelled: int


def train(config: TrainConfig, run: RunDirectory, particles: Particles, device: torch.device | str = "cpu",
          state: ImageState | None = None) -> dict:
    """Plans and runs a training; returns the summary. Raises InputError before anything is written."""
    return run_training(plan_training(config, particles, device, state), run)


def plan_training(config: TrainConfig, particles: Particles, device: torch.device | str = "cpu",
                  state: ImageState | None = None) -> TrainingPlan:
    """Checks the input, estimates noise and signal, and prepares network and batches.

    ``state`` of the images' contrast and CTF: measured where it is None. Raises one InputError with all problems of
    options, map and checkpoint.
    """
    device = torch.device(device)
    inputs = check_inputs(config, particles)
    torch.manual_seed(config.seed)
    network = (inputs.parent or OrientationNetwork(inputs.network)).to(device)
    views = ParticleViews(particles, inputs.settings, state or determine_image_state(particles, config), device)
    with_labels = particles.poses is not None and (config.reference is None or (config.particle_fraction or 0) > 0)
    training_rows, held_out = _split(inputs.rows, config) if with_labels else (inputs.rows, inputs.rows[:0])
    volume = views.map_of_labels(training_rows, inputs.group) if inputs.volume is None else inputs.volume
    image_model = views.image_model(training_rows, volume, config.seed)
    logger.info("Signal-to-noise ratio at the network's box: %.3g.", image_model.snr)
    labelled = views.labelled(training_rows, image_model) if with_labels else None
    simulated = _simulated(config, views, training_rows, volume, image_model)
    fraction = _particle_fraction(config) if with_labels else 0.0
    stream = MixedStream(config.seed, config.batch_size, labelled, simulated, fraction, config.augment,
                         anneal=inputs.parent is None)
    validation, source = _validation(labelled, simulated, held_out, config.seed)
    return TrainingPlan(config, inputs, views, network, stream, validation, source, image_model, volume,
                        len(training_rows) if with_labels else 0)


def check_inputs(config: TrainConfig, particles: Particles) -> TrainingInputs:
    """Reads reference and checkpoint. Raises one InputError with all problems found."""
    problems: list[str] = []

    def attempt(function, *arguments):
        try:
            return function(*arguments)
        except InputError as error:
            problems.extend(error.problems)
            return None

    parent = attempt(load_checkpoint, config.from_checkpoint) if config.from_checkpoint is not None else None
    settings = attempt(_settings, config, particles, parent)
    group = attempt(symmetry_group, config.symmetry)
    volume = attempt(read_reference, config.reference, particles) if config.reference is not None else None
    rows = attempt(_usable_rows, config, particles)
    if particles.ctf is None:
        problems.append("Training needs the particles' CTF, and they have none. Estimate it, or export them with it.")
    if config.reference is None and particles.poses is None:
        problems.append("Training needs poses or a map; these particles have no poses. Give particles of a 3-D refinement, "
                        "or a map with --reference.")
    if problems:
        raise InputError(problems)
    network = parent[0].config if parent else NetworkConfig(
        settings.box_size_px, settings.pixel_size_angstrom, config.encoder, config.head, config.filter_channels,
        config.pooling, config.activation, config.width, config.dropout)
    return TrainingInputs(parent[0] if parent else None, settings, network, group, volume, rows)


def _settings(config: TrainConfig, particles: Particles,
              parent: tuple[OrientationNetwork, CheckpointMetadata] | None) -> PreprocessSettings:
    """How images are prepared: as the parent network was trained, else for the network's box."""
    box_size_px, pixel_size_angstrom = particles.box_size_px, particles.pixel_size_angstrom
    if parent is not None:
        settings = PreprocessSettings.from_dict(parent[1].preprocessing)
        problems = settings.problems(box_size_px, pixel_size_angstrom)
        if problems:
            raise InputError(problems)
        return settings
    wanted = config.network_box_size_px
    if wanted is not None and (wanted % 2 or not MIN_BOX_SIZE_PX <= wanted <= box_size_px):
        raise InputError(f"The network's box must be even, at least {MIN_BOX_SIZE_PX} px and at most that of the "
                         f"particles, {box_size_px} px; --network-box-size-px is {wanted}.")
    if box_size_px < MIN_BOX_SIZE_PX:
        raise InputError(f"The particles' box must be at least {MIN_BOX_SIZE_PX} px; it is {box_size_px} px.")
    return PreprocessSettings.for_images(box_size_px, pixel_size_angstrom, wanted)


def read_reference(path: Path, particles: Particles) -> Tensor:
    """A map or atomic model on the particles' grid: (B, B, B). Raises InputError where it cannot be read."""
    molecule = load_molecule(path, None, None)
    volume = resample_volume(molecule.volume, molecule.pixel_size_angstrom, particles.pixel_size_angstrom,
                             particles.box_size_px)
    if not volume.std() > 0:
        raise InputError(f"A reference must show a molecule; {path} has one value in all voxels. Give another map.")
    return volume


def _usable_rows(config: TrainConfig, particles: Particles) -> np.ndarray:
    """The rows of the half set asked for."""
    rows = np.arange(len(particles))
    if config.half_set != "all":
        if particles.half_set is None:
            raise InputError(f"--half-set {config.half_set} needs the column rlnRandomSubset; the particles have none. "
                             "Leave the option out, or give particles of a refinement.")
        rows = np.flatnonzero(particles.half_set == int(config.half_set))
    enough = MIN_LABELLED if config.reference is None else 1
    if len(rows) < enough:
        raise InputError(f"Training from labels needs at least {enough} particles; there are {len(rows)}. Give more, or a "
                         "map with --reference." if config.reference is None else
                         f"Half set {config.half_set} has no particles. Leave --half-set out.")
    return rows


def _split(rows: np.ndarray, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, drawn at random (the same for the same seed)."""
    shuffled = np.random.default_rng(config.seed).permutation(rows)
    n_held_out = min(max(1, round(config.validation_fraction * len(rows))), MAX_VALIDATION)
    return np.sort(shuffled[n_held_out:]), np.sort(shuffled[:n_held_out])


def _particle_fraction(config: TrainConfig) -> float:
    if config.particle_fraction is not None:
        return config.particle_fraction
    return 0.5 if config.reference is None else 0.0


def _simulated(config: TrainConfig, views: ParticleViews, rows: np.ndarray, volume: Tensor,
               image_model: ImageModel) -> ProjectionStream:
    settings = views.settings
    shift_rms_angstrom = config.shift_rms_angstrom or (
        SHIFT_RMS_OF_BOX * settings.box_size_px * settings.pixel_size_angstrom)
    return ProjectionStream(network_volume(volume, settings.box_size_px), views.particles.ctf[torch.from_numpy(rows)],
                            views.ctf, settings.box_size_px, settings.pixel_size_angstrom, image_model,
                            shift_rms_angstrom, views.mask, config.augment, views.device)


def _validation(labelled: ParticleStream | None, simulated: ProjectionStream, held_out: np.ndarray,
                seed: int) -> tuple[list[TrainingBatch], str]:
    """Held-out images in batches, and what they are."""
    if labelled is not None and len(held_out):
        return [labelled.at(part) for part in np.array_split(held_out, -(-len(held_out) // _BATCH))], "held-out particles"
    plain = simulated.without_jitter()
    generator = step_generator(seed, 0, 3, simulated.device)
    return [plain.batch(_BATCH, generator) for _ in range(N_SIMULATED_VALIDATION // _BATCH)], "simulated projections"


def run_training(plan: TrainingPlan, run: RunDirectory) -> dict:
    """Trains, writes ``checkpoint/`` and ``metrics.csv``, and returns the summary."""
    config = plan.config
    run.checkpoint.mkdir(parents=True, exist_ok=True)
    write_map(run.checkpoint / REFERENCE, plan.volume.numpy(), plan.views.particles.pixel_size_angstrom)
    state_path = run.checkpoint / STATE_NAME
    result = train_network(plan.network, plan.stream, Objective(plan), lambda network: evaluate(network, plan, MAX_BATCHES_UNDERWAY),
                           _loop_settings(plan), state_path, run.metrics)
    found = evaluate(plan.network, plan)
    summary = _summary(plan, result, found)
    save_checkpoint(run.checkpoint, plan.network, CheckpointMetadata(
        network=plan.inputs.network, symmetry=normalise_name(config.symmetry),
        preprocessing=plan.inputs.settings.to_dict(), noise_spectrum=plan.image_model.noise_spectrum.tolist(),
        signal_scale=plan.image_model.signal_scale, training=summary, reference=run.checkpoint / REFERENCE))
    state_path.unlink()
    return summary


def _loop_settings(plan: TrainingPlan) -> LoopSettings:
    config = plan.config
    factor = 1.0 if plan.inputs.parent is None else FINE_TUNE_LEARNING_RATE_FACTOR
    return LoopSettings(max_steps=config.max_steps, learning_rate=config.learning_rate * factor, seed=config.seed,
                        max_minutes=config.max_minutes, patience_evaluations=config.patience_evaluations,
                        patience_from_progress=NOISE_IS_FULL_AT if plan.stream.anneal else 0.0, resume=config.resume)


class Objective:
    """The loss of a batch: orientation, likelihood of A, and shift."""

    def __init__(self, plan: TrainingPlan):
        self.config, self.group = plan.config, plan.inputs.group.to(plan.views.device)
        self.device, self.pixel_size_angstrom = plan.views.device, plan.inputs.settings.pixel_size_angstrom

    def __call__(self, network: nn.Module, batch: TrainingBatch, progress: float) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            estimate = network(batch.images, batch.ctf)
        terms = self.terms(estimate, batch, progress)
        total = (terms["orientation_loss"] + self.config.bingham_weight * terms["bingham_loss"]
                 + self.config.shift_weight * terms["shift_loss"])
        return total, {name: value.item() for name, value in terms.items()}

    def terms(self, estimate: PoseEstimate, batch: TrainingBatch, progress: float) -> dict[str, Tensor]:
        """Means over the batch, in radians, nats, and quarters of the box."""
        box_size_angstrom = batch.images.shape[-1] * self.pixel_size_angstrom
        return {
            "orientation_loss": orientation_loss(self.config.loss, progress, estimate.quaternion, batch.quaternion,
                                                 self.group).mean(),
            "bingham_loss": bingham_loss(estimate.bingham, batch.quaternion, self.group).mean(),
            "shift_loss": shift_error(estimate.shift_angstrom, batch.shift_angstrom, box_size_angstrom).mean(),
        }


@torch.no_grad()
def evaluate(network: OrientationNetwork, plan: TrainingPlan, max_batches: int | None = None) -> dict[str, float]:
    """Errors on (the first batches of) the held-out images; ``validation_loss`` is the objective of the training's end."""
    network.eval()
    group, config = plan.inputs.group.to(plan.views.device), plan.config
    angle, shift, likelihood = [], [], []
    for batch in plan.validation[:max_batches]:
        estimate = network(batch.images, batch.ctf)
        angle.append(symmetric_distance_deg(estimate.quaternion, batch.quaternion, group))
        shift.append((estimate.shift_angstrom - batch.shift_angstrom).norm(dim=-1))
        likelihood.append(bingham_loss(estimate.bingham, batch.quaternion, group))
    angle, shift, likelihood = (torch.cat(values) for values in (angle, shift, likelihood))
    quarter_box_angstrom = 0.25 * network.box_size_angstrom
    loss = (torch.deg2rad(angle).mean() + config.shift_weight * shift.mean() / quarter_box_angstrom
            + config.bingham_weight * likelihood.mean())
    return {"validation_loss": loss.item(), "validation_median_error_deg": angle.median().item(),
            "validation_mean_error_deg": angle.mean().item(),
            "validation_fraction_below_10deg": (angle < 10).float().mean().item(),
            "validation_negative_log_likelihood": likelihood.mean().item(),
            "validation_median_shift_error_angstrom": shift.median().item()}


def _summary(plan: TrainingPlan, result: LoopResult, found: dict[str, float]) -> dict:
    return {**found, "validation_source": plan.validation_source, "seconds": round(result.seconds, 2),
            "steps": result.steps, "stopped_by": result.reason, "n_particles": len(plan.inputs.rows),
            "n_labelled": plan.n_labelled, "snr": plan.image_model.snr, "signal_scale": plan.image_model.signal_scale,
            "network_box_size_px": plan.inputs.network.box_size_px,
            "network_pixel_size_angstrom": plan.inputs.network.pixel_size_angstrom,
            "symmetry": normalise_name(plan.config.symmetry), **plan.views.state.to_dict()}
