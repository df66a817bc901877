"""CryoPoseNet as a job: encoder and map learn together from random weights, then everything is written.

The map is optimised at the network's box; the final maps are reconstructed at the particles' own box from the poses found.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from ...model.encoder import ENCODERS
from ...reconstruction.reconstruct import half_sets, write_half_maps
from ...run_directory import RunDirectory
from ...training.autoencoder import EndToEndTask
from ...training.loop import LoopResult, LoopSettings, train_network
from ..live_run import LiveRun
from ..plan import AbInitioPlan, OnEvaluate
from ..summary import end_to_end_summary
from .assessment import assess
from .results import (
    final_maps,
    find_poses,
    finished_network,
    fitted_image_model,
    noisy_projections,
    save_network,
    write_poses,
)
from .setup import EndToEndSetup, prepare

# relative lengths of the stages, for the estimate of the time left
SHARES = {"training": 20.0, "poses and maps": 1.0}


def end_to_end(plan: AbInitioPlan, run: RunDirectory, on_evaluate: OnEvaluate | None = None,
               clock: Callable[[], float] = time.monotonic) -> dict:
    """Trains, writes all files of the run, and returns the summary, with ``converged`` and why.

    ``on_evaluate``: figures for ``metrics.csv`` that the training must not know, of the model, the images and the rows that
    it learns from; nothing else depends on them. ``clock`` counts the seconds of ``--train-minutes``; a comparison on a
    shared machine takes those of its process.
    """
    live = LiveRun(run, SHARES)
    if plan.config.resume:
        live.go_on_after({})
    run.checkpoint.mkdir(parents=True, exist_ok=True)
    with live.stage("training"):
        setup = prepare(plan)
        result = _train(setup, run, live, on_evaluate, clock)
    with live.stage("poses and maps"):
        summary = _finish(setup, run, result, live)
    live.log_times()
    live.show(1.0, message="finished" if summary["converged"] else "did not converge")
    return summary | {"stages": {name: round(seconds, 1) for name, seconds in live.seconds.items()}}


def _train(setup: EndToEndSetup, run: RunDirectory, live: LiveRun, on_evaluate: OnEvaluate | None,
           clock: Callable[[], float]) -> LoopResult:
    live.map(setup.model.volume.map(), setup.views.settings.pixel_size_angstrom)
    result = train_network(_ShownTask(setup, live, on_evaluate), _loop_settings(setup), run.training_state, run.metrics,
                           clock)
    setup.model.eval()
    return result


class _ShownTask(EndToEndTask):
    """The training of a setup, whose map is shown after every evaluation."""

    def __init__(self, setup: EndToEndSetup, live: LiveRun, more_figures: OnEvaluate | None):
        super().__init__(setup.model, setup.objective)
        self.setup, self.live, self.more_figures = setup, live, more_figures

    def evaluate(self) -> dict[str, float]:
        figures = super().evaluate()
        if self.more_figures is None:
            return figures
        return figures | self.more_figures(self.network, self.setup.images, self.setup.stream.rows)

    def on_evaluate(self, progress: float, figures: dict[str, float]) -> None:
        self.live.map(self.network.volume.map(), self.setup.views.settings.pixel_size_angstrom)
        self.live.show(progress, "network and map learn together", loss=figures["validation_loss"])


def _finish(setup: EndToEndSetup, run: RunDirectory, result: LoopResult, live: LiveRun) -> dict:
    """Everything after the training: poses, maps, the network as ``predict`` uses it, and whether it converged."""
    plan = setup.plan
    live.map(setup.model.volume.map(), setup.views.settings.pixel_size_angstrom)
    found = find_poses(setup)
    halves, halves_source = half_sets(plan.particles, plan.config.seed)
    maps = final_maps(plan, found, halves)
    write_half_maps(run, maps, plan.particles.pixel_size_angstrom)
    image_model, projections = fitted_image_model(setup, maps), []
    if setup.has_encoder:
        if image_model is not None:
            projections = noisy_projections(setup, found, maps, image_model)
        network, factor = finished_network(setup, projections)
        found = replace(found, bingham=found.bingham * factor)
    write_poses(plan, run, found, halves)
    summary = end_to_end_summary(setup, result, assess(setup, maps, projections), maps) | {"half_sets": halves_source}
    live.map(maps.both, plan.particles.pixel_size_angstrom, {"half maps": maps.fsc}, summary["resolution_angstrom"])
    if setup.has_encoder:
        save_network(setup, run, network, image_model, summary)
    return summary


def _loop_settings(setup: EndToEndSetup) -> LoopSettings:
    config = setup.config
    steps = config.epochs * setup.stream.steps_per_epoch if config.train_minutes is None else 10 ** 9
    # a plateau before the poses fall into place is usual: no early stop
    rate = config.learning_rate or ENCODERS[setup.model.network.config.encoder].end_to_end_learning_rate
    return LoopSettings(steps, rate, config.seed, config.train_minutes,
                        patience_evaluations=10 ** 9, resume=config.resume)
