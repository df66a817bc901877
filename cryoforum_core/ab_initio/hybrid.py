"""The hybrid method: search from a random start, half maps, network, and a final matching of every particle.

Each stage, each round of the half maps and each half set of the final matching leaves its result in ``stages/`` of the
run, so that ``--resume`` goes on with the next one, until the run's summary is written.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..progress import format_duration
from ..results.write import write_micrographs
from ..run_directory import RunDirectory
from .convergence import left_out
from .live_run import LiveRun
from .plan import AbInitioPlan
from .stages.final_matching import match_finally
from .stages.half_maps import refine_half_maps
from .stages.maps import write_maps_and_results
from .stages.network import train_network
from .stages.search import search
from .stages.store import StageStore
from .summary import hybrid_summary
from .time_estimate import estimated_seconds

logger = logging.getLogger("cryoforum")

# relative lengths of the stages on a CPU, of 3,000 images of 64 px, for the estimate of the time left
SHARES = {"search": 2.0, "half maps": 1.6, "network": 1.8, "final matching": 3.7, "maps": 0.2}


def hybrid(plan: AbInitioPlan, run: RunDirectory) -> dict:
    """Runs all stages, writes all files of the run, and returns the summary, with ``converged`` and why."""
    run.stages.mkdir(exist_ok=True)
    store, live = StageStore(run.stages, plan.config.resume, plan.device), LiveRun(run, SHARES)
    if plan.config.resume:
        live.go_on_after(store.seconds())
    logger.info("Expected time on this device: about %s; the time left is shown during the run.",
                format_duration(estimated_seconds(plan)))
    with _stage("search", store, live):
        found = search(plan, store, live)
    with _stage("half maps", store, live):
        refined = refine_half_maps(plan, found, store, live)
    skipped, network = left_out(plan, found, refined.refinement.pair), None
    with _stage("network", store, live):
        if "distillation" not in skipped:
            network = train_network(plan, run, refined, store, live)
    with _stage("final matching", store, live):
        final = match_finally(plan, refined, network and network.poses, "refinement" in skipped, store, live)
    with _stage("maps", store, live):
        maps, of_states = write_maps_and_results(plan, run, refined.half_sets, final, network is not None, live)
        micrographs = write_micrographs(run, plan.images, final.results)
    live.log_times()
    summary = hybrid_summary(plan, found, refined, network, final, maps, live.seconds) | micrographs | of_states
    live.show(1.0, message="finished" if summary["converged"] else "did not converge")
    return summary


@contextmanager
def _stage(name: str, store: StageStore, live: LiveRun) -> Iterator[None]:
    """The time of each stage is kept: the network's is a part of what was spent before."""
    with live.stage(name):
        yield
    store.save_seconds(live.seconds)
