"""The job ab-initio: runs the method that --method asks for."""

from ..run_directory import RunDirectory
from .end_to_end.run import end_to_end
from .hybrid import hybrid
from .plan import AbInitioPlan, OnEvaluate


def run_ab_initio(plan: AbInitioPlan, run: RunDirectory, on_evaluate: OnEvaluate | None = None) -> dict:
    """Runs the method; returns the summary, whose ``converged`` says whether the map is to be relied on.

    ``on_evaluate``: see ``end_to_end``; the hybrid method has no use for it.
    """
    if plan.config.method == "hybrid":
        return hybrid(plan, run)
    return end_to_end(plan, run, on_evaluate)
