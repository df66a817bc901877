"""The network of the hybrid method: it learns from the poses found and from endless projections of the map they make,
then, end to end with the map, as long as that explains held-out images better."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..config import TrainConfig
from ..geometry.pose_posterior import PosePosterior
from ..imaging.fourier import resize_volume
from ..model.checkpoint import load_checkpoint, save_checkpoint
from ..model.orientation_head import PoseEstimate
from ..run_directory import RunDirectory
from ..training.autoencoder import fine_tune_end_to_end
from ..training.prepared_images import PreparedImages
from ..training.supervised import TrainingPlan, plan_training, run_training
from .plan import AbInitioPlan

logger = logging.getLogger("cryoforum")

END_TO_END_SHARE, MIN_END_TO_END_MINUTES = 0.2, 0.1
MAX_STEPS = 100_000
_BATCH = 256
_METRICS_OF_END_TO_END = "metrics_end_to_end.csv"


@dataclass(frozen=True)
class NetworkAnswers:
    """What the network says of all N particles."""

    quaternion: Tensor
    bingham: Tensor
    shift_angstrom: Tensor
    """The fields of ``PoseEstimate``"""
    figures: dict
    """For the summary"""

    @property
    def estimate(self) -> PoseEstimate:
        """On the CPU."""
        return PoseEstimate(self.quaternion, self.bingham, self.shift_angstrom).to("cpu")


def train_on_poses(plan: AbInitioPlan, run: RunDirectory, posterior: PosePosterior, minutes: float) -> NetworkAnswers:
    """Trains on what is believed of the N poses, writes ``checkpoint/`` and ``metrics.csv``, and answers for every
    particle."""
    config = plan.config
    labelled = replace(plan.particles, poses=posterior.best().to("cpu"))
    budget = 1.0 - (0.0 if "end-to-end" in config.skip else END_TO_END_SHARE)
    training = plan_training(TrainConfig(
        out=run.path, particles=config.particles, symmetry=plan.symmetry, encoder=config.encoder or "polar",
        head=config.head or "qcqp", network_box_size_px=config.network_box_size_px, batch_size=config.batch_size,
        max_steps=MAX_STEPS, max_minutes=minutes * budget, seed=config.seed, resume=config.resume,
        learning_rate=config.learning_rate),
        labelled, plan.device, plan.state, posterior)
    figures = run_training(training, run)
    figures = {name: figures[name] for name in ("validation_median_error_deg", "validation_mean_error_deg", "steps")}
    if "end-to-end" not in config.skip:
        figures |= _end_to_end(plan, run, training, max(minutes * (1 - budget), MIN_END_TO_END_MINUTES))
    said = _answers(training, plan)
    return NetworkAnswers(said.quaternion, said.bingham, said.shift_angstrom, figures)


def _end_to_end(plan: AbInitioPlan, run: RunDirectory, training: TrainingPlan, minutes: float) -> dict:
    """Trains network and map together; the network is kept only where held-out images are explained better, and it
    finds held-out poses no worse."""
    box = training.inputs.settings.box_size_px
    images = _prepared(plan, training)
    shuffled = np.random.default_rng([plan.config.seed, 0xE2]).permutation(len(plan.particles))
    n_held_out = max(1, min(500, len(shuffled) // 10))
    state_path = run.checkpoint / "end_to_end_state.pt"
    before = training.objective.evaluate(training.network, training.validation)
    tuned = fine_tune_end_to_end(training.network, resize_volume(training.volume, box), images,
                                 np.sort(shuffled[n_held_out:]), np.sort(shuffled[:n_held_out]),
                                 training.views.mask.to(plan.device), training.inputs.group.to(plan.device), minutes,
                                 state_path, run.path / _METRICS_OF_END_TO_END)
    state_path.unlink(missing_ok=True)
    after = training.objective.evaluate(tuned.network, training.validation)
    key = "validation_median_error_deg"
    kept = tuned.is_better and after[key] <= before[key]
    logger.info("end to end: unexplained power of held-out images %.4f -> %.4f, median error %.1f -> %.1f degrees: %s",
                tuned.loss_before, tuned.loss_after, before[key], after[key], "kept" if kept else "not kept")
    if kept:
        training.network.load_state_dict(tuned.network.state_dict())
        training.objective.calibrate(training.network, training.validation)
        _, metadata = load_checkpoint(run.checkpoint)
        save_checkpoint(run.checkpoint, training.network, metadata)
    return {"end_to_end_kept": bool(kept), "end_to_end_loss_before": tuned.loss_before,
            "end_to_end_loss_after": tuned.loss_after}


def _prepared(plan: AbInitioPlan, training: TrainingPlan) -> PreparedImages:
    settings = training.inputs.settings
    preparation = replace(plan.images, network_settings=settings)
    return PreparedImages(preparation.network_input, len(plan.particles), settings.box_size_px)


@torch.no_grad()
def _answers(training: TrainingPlan, plan: AbInitioPlan) -> PoseEstimate:
    network = training.network.eval()
    preparation = replace(plan.images, network_settings=training.inputs.settings)
    group = training.inputs.group.to(plan.device)
    rows = np.array_split(np.arange(len(plan.particles)), max(1, -(-len(plan.particles) // _BATCH)))
    return PoseEstimate.concatenate([network.predict(*preparation.network_input(part), group=group).to("cpu")
                                     for part in rows])
