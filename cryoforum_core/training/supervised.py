"""Supervised training: on particles with poses, on projections of a reference map, or on both; also from a checkpoint."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..config import TrainConfig
from ..geometry.pose_hypotheses import PoseHypotheses
from ..geometry.symmetry import normalise_name
from ..model.checkpoint import REFERENCE, CheckpointMetadata, save_checkpoint
from ..model.encoder import ENCODERS
from ..model.network import OrientationNetwork
from ..mrc import write_map
from ..particles.dataset import Particles
from ..particles.image_state import ImageState, determine_image_state, images_of
from ..run_directory import RunDirectory
from .inputs import TrainingInputs, check_inputs
from .loop import LoopResult, LoopSettings, TrainingTask, step_generator, train_network
from .map_from_labels import network_volume
from .objective import Objective
from .schedules import NOISE_IS_FULL_AT
from .simulated_projections import ImageModel, ProjectionStream, TrainingBatch
from .streams import MixedStream, ParticleStream
from .training_particles import TrainingParticles

logger = logging.getLogger("cryoforum")

# images held out of a large set: their median error is known to a few percent
MAX_VALIDATION = 2000
# simulated images to validate on, where there are no labels
N_SIMULATED_VALIDATION = 1000
# evaluations during the training must cost little of it
MAX_BATCHES_UNDERWAY = 2
# standard deviation of the shifts of projections, as a part of the box, where none is given: particles as they are picked
SHIFT_RMS_OF_BOX = 0.04
# large steps would undo what the network has been trained for before
FINE_TUNE_LEARNING_RATE_FACTOR = 0.3
# images evaluated at once
_BATCH = 250


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that is set before the first step of a training."""

    config: TrainConfig
    inputs: TrainingInputs
    views: TrainingParticles
    network: OrientationNetwork
    objective: Objective
    stream: MixedStream
    validation: list[TrainingBatch]
    validation_source: str
    image_model: ImageModel
    volume: Float[Tensor, "d d d"]
    """what is projected, with the particles' field of view"""
    n_labelled: int


def train(config: TrainConfig, run: RunDirectory, particles: Particles, device: torch.device | str = "cpu",
          state: ImageState | None = None) -> dict:
    """Plans and runs a training; returns the summary. Raises InputError before anything is written."""
    return run_training(plan_training(config, particles, device, state), run)


def plan_training(config: TrainConfig, particles: Particles, device: torch.device | str = "cpu",
                  state: ImageState | None = None, hypotheses: PoseHypotheses | None = None) -> TrainingPlan:
    """Checks the input, estimates noise and signal, and prepares network and batches.

    ``state`` of the images' contrast and CTF: measured where it is None. ``hypotheses``: labels that are not certain;
    the particles' poses are its best. Raises one InputError with all problems of
    options, map and checkpoint.
    """
    device = torch.device(device)
    inputs = check_inputs(config, particles, device)
    torch.manual_seed(config.seed)
    network = (inputs.parent or OrientationNetwork(inputs.network)).to(device)
    views = TrainingParticles(particles, inputs.settings, state or determine_image_state(particles, config), device)
    fraction = particle_fraction(config, particles)
    rows, held_out = _split(inputs.rows, config) if fraction else (inputs.rows, inputs.rows[:0])
    volume = views.map_of_labels(rows, inputs.group, config.seed) if inputs.volume is None else inputs.volume
    image_model = views.image_model(rows, volume, config.seed)
    logger.info("Signal-to-noise ratio at the network's box: %.3g.", image_model.snr)
    labelled = views.labelled(rows, image_model, hypotheses) if fraction else None
    simulated = _simulated(config, views, rows, volume, image_model) if fraction < 1 else None
    stream = MixedStream(config.seed, config.batch_size, labelled, simulated, fraction, config.augment,
                         anneal=inputs.parent is None and simulated is not None)
    validation = _held_out_batches(labelled, held_out) if fraction else _simulated_batches(simulated, config.seed)
    objective = Objective(config, inputs.group, network.box_size_angstrom, device)
    return TrainingPlan(config, inputs, views, network, objective, stream, validation,
                        "held-out particles" if fraction else "simulated projections", image_model, volume,
                        len(rows) if fraction else 0)


def particle_fraction(config: TrainConfig, particles: Particles) -> float:
    """The share of the particles' own images in a batch: only where they have labels."""
    if particles.poses is None:
        return 0.0
    if config.particle_fraction is not None:
        return config.particle_fraction
    return 0.5 if config.reference is None else 0.0


def _split(rows: np.ndarray, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, drawn at random (the same for the same seed)."""
    shuffled = np.random.default_rng(config.seed).permutation(rows)
    n_held_out = min(max(1, round(config.validation_fraction * len(rows))), MAX_VALIDATION)
    return np.sort(shuffled[n_held_out:]), np.sort(shuffled[:n_held_out])


def _simulated(config: TrainConfig, views: TrainingParticles, rows: np.ndarray, volume: Tensor,
               image_model: ImageModel) -> ProjectionStream:
    settings = views.settings
    return ProjectionStream(network_volume(volume, settings.box_size_px), views.particles.ctf[torch.from_numpy(rows)],
                            views.ctf, settings.box_size_px, settings.pixel_size_angstrom, image_model,
                            _shift_rms_angstrom(config, views), views.mask, config.augment, views.device)


def _shift_rms_angstrom(config: TrainConfig, views: TrainingParticles) -> float:
    return config.shift_rms_angstrom or SHIFT_RMS_OF_BOX * views.extent_angstrom


def _held_out_batches(labelled: ParticleStream, rows: np.ndarray) -> list[TrainingBatch]:
    return [labelled.at(part) for part in np.array_split(rows, -(-len(rows) // _BATCH))]


def _simulated_batches(simulated: ProjectionStream, seed: int) -> list[TrainingBatch]:
    plain, generator = simulated.without_jitter(), step_generator(seed, 0, 3, simulated.device)
    return [plain.batch(_BATCH, generator) for _ in range(N_SIMULATED_VALIDATION // _BATCH)]


def run_training(plan: TrainingPlan, run: RunDirectory) -> dict:
    """Trains, writes ``checkpoint/`` and ``metrics.csv``, and returns the summary."""
    config = plan.config
    run.checkpoint.mkdir(parents=True, exist_ok=True)
    write_map(run.checkpoint / REFERENCE, plan.volume.numpy(), plan.views.extent_angstrom / len(plan.volume))
    result = train_network(SupervisedTask(plan), _loop_settings(plan), run.training_state, run.metrics)
    plan.objective.calibrate(plan.network, plan.validation)
    summary = _summary(plan, result, plan.objective.evaluate(plan.network, plan.validation, as_predicted=True))
    save_checkpoint(run.checkpoint, plan.network, CheckpointMetadata(
        network=plan.inputs.network, symmetry=normalise_name(config.symmetry),
        preprocessing=plan.inputs.settings.to_dict(), images=images_of(plan.views.particles, plan.views.state),
        noise_spectrum=plan.image_model.noise_spectrum.tolist(),
        signal_scale=plan.image_model.signal_scale, training=summary, reference=run.checkpoint / REFERENCE))
    return summary


class SupervisedTask(TrainingTask):
    """A plan as a task of the training loop."""

    def __init__(self, plan: TrainingPlan):
        super().__init__(plan.network)
        self.plan, self.evaluated = plan, plan.validation[:MAX_BATCHES_UNDERWAY]

    def batch(self, step: int, progress: float) -> TrainingBatch:
        return self.plan.stream(step, progress)

    def loss(self, batch: TrainingBatch, progress: float) -> tuple[Float[Tensor, ""], dict[str, float]]:
        return self.plan.objective(self.network, batch, progress)

    def evaluate(self) -> dict[str, float]:
        return self.plan.objective.evaluate(self.network, self.evaluated)


def _loop_settings(plan: TrainingPlan) -> LoopSettings:
    config = plan.config
    factor = 1.0 if plan.inputs.parent is None else FINE_TUNE_LEARNING_RATE_FACTOR
    rate = learning_rate(config, plan.network) * factor
    return LoopSettings(max_steps=config.max_steps, learning_rate=rate, seed=config.seed,
                        max_minutes=config.max_minutes, patience_evaluations=config.patience_evaluations,
                        patience_from_progress=NOISE_IS_FULL_AT if plan.stream.anneal else 0.0, resume=config.resume)


def learning_rate(config: TrainConfig, network: OrientationNetwork) -> float:
    """The one asked for, or the default of the encoder."""
    return config.learning_rate or ENCODERS[network.config.encoder].learning_rate


def _summary(plan: TrainingPlan, result: LoopResult, found: dict[str, float]) -> dict:
    return {**found, "validation_source": plan.validation_source, "seconds": round(result.seconds, 2),
            "steps": result.steps, "stopped_by": result.reason, "n_particles": len(plan.inputs.rows),
            "n_labelled": plan.n_labelled, "snr": plan.image_model.snr, "signal_scale": plan.image_model.signal_scale,
            "network_box_size_px": plan.inputs.network.box_size_px,
            "network_pixel_size_angstrom": plan.inputs.network.pixel_size_angstrom,
            "shift_rms_angstrom": _shift_rms_angstrom(plan.config, plan.views),
            "symmetry": normalise_name(plan.config.symmetry), **plan.views.state.to_dict()}
