"""The third stage: a network is trained on the poses found and on simulated projections of their map; then end to end with
the map, unless that explains held-out images worse."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...config import TrainConfig
from ...geometry.pose_hypotheses import PoseHypotheses
from ...imaging.fourier import resize_volume
from ...model.checkpoint import load_checkpoint, save_checkpoint
from ...model.orientation_head import PoseEstimate
from ...run_directory import RunDirectory
from ...training.autoencoder import fine_tune_end_to_end
from ...training.image_batches import PreparedImages
from ...training.supervised import TrainingPlan, plan_training, run_training
from ..live_run import LiveRun
from ..plan import AbInitioPlan
from ..time_estimate import training_minutes
from .half_maps import RefinedHalfSets
from .store import StageStore, State

logger = logging.getLogger("cryoforum")

# part of the time that the network has together with the map
END_TO_END_SHARE = 0.2
# the least of it
MIN_END_TO_END_MINUTES = 0.1
# held out of it, where there are many images
MAX_HELD_OUT = 500
# where there are few
HELD_OUT_FRACTION = 0.1
# the time ends the training, never this
MAX_STEPS = 100_000
# images whose poses the network finds at once
_BATCH = 256
# in the run directory
_METRICS_OF_END_TO_END = "metrics_end_to_end.csv"
# a stream of random numbers of its own
_SEED_OF_HELD_OUT = 0xE2


@dataclass(frozen=True)
class TrainedNetwork:
    """What the network finds for all N particles, on the CPU, and the figures of its training, for the summary."""

    poses: PoseEstimate
    figures: dict

    def state(self) -> State:
        return {"quaternion": self.poses.quaternion, "bingham": self.poses.bingham,
                "shift_angstrom": self.poses.shift_angstrom, "figures": self.figures}

    @classmethod
    def of_state(cls, state: State) -> "TrainedNetwork":
        return cls(PoseEstimate(state["quaternion"], state["bingham"], state["shift_angstrom"]).to("cpu"), state["figures"])


def train_network(plan: AbInitioPlan, run: RunDirectory, refined: RefinedHalfSets, store: StageStore, live: LiveRun
                  ) -> TrainedNetwork:
    """Trains on the posterior of the poses, for a time that grows with what the run took so far; writes ``checkpoint/`` and
    ``metrics.csv``."""
    def train() -> State:
        minutes = training_minutes(plan.config, sum(live.seconds.values()))
        logger.info("training the network for %.1f minutes", minutes)
        live.show(0.01, f"training for {minutes:.1f} minutes; the report will show the curve")
        return _trained(plan, run, refined.refinement.poses, minutes).state()

    return TrainedNetwork.of_state(store.kept("network", train))


def _trained(plan: AbInitioPlan, run: RunDirectory, hypotheses: PoseHypotheses, minutes: float) -> TrainedNetwork:
    config = plan.config
    labelled = replace(plan.particles, poses=hypotheses.best_poses(plan.particles.pixel_size_angstrom).to("cpu"))
    budget = 1.0 - (0.0 if "end-to-end" in config.skip else END_TO_END_SHARE)
    training = plan_training(TrainConfig(
        out=run.path, particles=config.particles, symmetry=plan.symmetry, encoder=config.encoder or "polar",
        head=config.head or "qcqp", network_box_size_px=config.network_box_size_px, batch_size=config.batch_size,
        max_steps=MAX_STEPS, max_minutes=minutes * budget, seed=config.seed, resume=config.resume,
        learning_rate=config.learning_rate),
        labelled, plan.device, plan.state, hypotheses)
    figures = run_training(training, run)
    figures = {name: figures[name] for name in ("validation_median_error_deg", "validation_mean_error_deg", "steps")}
    if "end-to-end" not in config.skip:
        figures |= _end_to_end(plan, run, training, max(minutes * (1 - budget), MIN_END_TO_END_MINUTES))
    return TrainedNetwork(_found(training, plan), figures)


def _end_to_end(plan: AbInitioPlan, run: RunDirectory, training: TrainingPlan, minutes: float) -> dict:
    """Trains network and map together; the network is kept only where held-out images are explained better, and it
    finds held-out poses no worse."""
    box = training.inputs.settings.box_size_px
    images = _prepared(plan, training)
    shuffled = np.random.default_rng([plan.config.seed, _SEED_OF_HELD_OUT]).permutation(len(plan.particles))
    n_held_out = max(1, min(MAX_HELD_OUT, int(HELD_OUT_FRACTION * len(shuffled))))
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
def _found(training: TrainingPlan, plan: AbInitioPlan) -> PoseEstimate:
    network = training.network.eval()
    preparation = replace(plan.images, network_settings=training.inputs.settings)
    group = training.inputs.group.to(plan.device)
    rows = np.array_split(np.arange(len(plan.particles)), max(1, -(-len(plan.particles) // _BATCH)))
    return PoseEstimate.concatenate([network.predict(*preparation.network_input(part), group=group).to("cpu")
                                     for part in rows])
