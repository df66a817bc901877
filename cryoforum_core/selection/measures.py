"""The measures by which particles are ranked, from the results of a run."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..geometry.orientation_posterior import dispersion_max, dispersion_trace, dispersion_wigner
from ..results.pose_results import Dispersions, ErrorEstimates, Match, PoseResults

_TINY = 1e-30


@dataclass(frozen=True)
class Measure:
    """A number per particle that tells how far its orientation can be trusted."""

    name: str
    """As on the command line."""
    label: str
    column: str
    """Its name in STAR files."""
    higher_is_better: bool
    unit: str = ""
    scale: Callable[[np.ndarray], np.ndarray] = np.asarray
    """Increasing, to a scale on which populations look alike in width: errors spread by factors, not by degrees."""
    unscale: Callable[[np.ndarray], np.ndarray] = np.asarray
    usual_limit: float | None = None
    """What hardly any usual particle is worse than, where the measure has a scale of its own."""
    own_limit: float | None = None
    """The border that the measure itself means, whatever its distribution."""

    def quality(self, values: np.ndarray) -> np.ndarray:
        """Higher is better, whatever the measure."""
        return values if self.higher_is_better else -values

    def text(self, value: float) -> str:
        return f"{value:.4g}{' ' if self.unit else ''}{self.unit}"


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, _TINY))


def _minus_log_minus(values: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(-values, _TINY))


def _minus_exp_minus(values: np.ndarray) -> np.ndarray:
    return -np.exp(-values)


PARTICLE_PROBABILITY = "particle-probability"

MEASURES = {measure.name: measure for measure in (
    Measure(PARTICLE_PROBABILITY, "probability to be a particle", "rlnCryoforumParticleProbability", True,
            own_limit=0.5),
    # near 0 as it is, far below by factors: junk has a long tail of low scores
    Measure("match-score", "match score", "rlnCryoforumMatchScore", True, "", np.arcsinh, np.sinh,
            usual_limit=-4.0),
    Measure("expected-error", "expected error", "rlnCryoforumExpectedError", False, "degrees", _log, np.exp),
    Measure("error-bound", "error bound", "rlnCryoforumErrorBound", False, "degrees", _log, np.exp),
    Measure("figure-of-merit", "figure of merit", "rlnCryoforumFigureOfMerit", True),
    Measure("dispersion-max", "largest dispersion", "rlnCryoforumDispersionMax", False, "",
            _minus_log_minus, _minus_exp_minus),
    Measure("dispersion-trace", "sum of dispersions", "rlnCryoforumDispersionTrace", False, "",
            _minus_log_minus, _minus_exp_minus),
    Measure("dispersion-wigner", "Wigner log-likelihood of the dispersions", "rlnCryoforumDispersionWigner", False, "",
            np.arcsinh, np.sinh),
)}


def measures_of(results: PoseResults) -> dict[str, np.ndarray]:
    """The measures (n,) float64 that a run's results hold, by name.

    The dispersions are those of the network's own Bingham matrix where predict refined the poses; a table that was filtered
    or joined by another program has kept the dispersions instead. A measure that is missing, or NaN for every particle, is
    left out.
    """
    match, errors = results.match or Match(), results.errors or ErrorEstimates()
    found = {PARTICLE_PROBABILITY: None if results.junk is None else results.junk.particle_probability,
             "match-score": match.match_score, "expected-error": errors.expected_error_deg,
             "error-bound": errors.error_bound_deg, "figure-of-merit": errors.figure_of_merit, **_dispersions(results)}
    measures = {name: np.asarray(values, dtype=np.float64) for name, values in found.items() if values is not None}
    return {name: values for name, values in measures.items() if not np.isnan(values).all()}


def _dispersions(results: PoseResults) -> dict[str, np.ndarray | None]:
    eigenvalues = results.eigenvalues if results.network is None else results.network.eigenvalues
    if eigenvalues is None:
        kept = results.dispersions or Dispersions()
        return {"dispersion-max": kept.dispersion_max, "dispersion-trace": kept.dispersion_trace,
                "dispersion-wigner": kept.dispersion_wigner}
    ascending = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
    return {"dispersion-max": dispersion_max(ascending), "dispersion-trace": dispersion_trace(ascending),
            "dispersion-wigner": dispersion_wigner(ascending)}
