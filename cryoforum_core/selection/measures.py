"""The measures by which particles are ranked (``catalogue.MEASURES``), from the results of a run."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float

from ..catalogue import ERROR_BOUND, EXPECTED_ERROR, MATCH_SCORE, MEASURES, PARTICLE_PROBABILITY, Measure
from ..geometry.bingham import dispersion_max, dispersion_trace, dispersion_wigner
from ..results.pose_results import Dispersions, ErrorEstimates, Match, PoseResults

Values = Float[np.ndarray, "*n"] | float

# the logarithm of 0 must be finite
_TINY = 1e-30


def _log(values: Values) -> Values:
    return np.log(np.maximum(values, _TINY))


def _minus_log_minus(values: Values) -> Values:
    return -np.log(np.maximum(-values, _TINY))


def _minus_exp_minus(values: Values) -> Values:
    return -np.exp(-values)


Scale = Callable[[Values], Values]

# to and from scales on which populations look alike in width: errors spread by factors, not by degrees, and match scores
# are near 0 as they are but far below by factors, as junk has a long tail of low ones
_LOGARITHMIC = (_log, np.exp)
_LOGARITHMIC_BELOW_0 = (_minus_log_minus, _minus_exp_minus)
_TAILED = (np.arcsinh, np.sinh)
_SCALES: dict[str, tuple[Scale, Scale]] = {
    MATCH_SCORE: _TAILED, EXPECTED_ERROR: _LOGARITHMIC, ERROR_BOUND: _LOGARITHMIC,
    "dispersion-max": _LOGARITHMIC_BELOW_0, "dispersion-trace": _LOGARITHMIC_BELOW_0, "dispersion-wigner": _TAILED}
_AS_THEY_ARE = (np.asarray, np.asarray)


def scaled(measure: Measure, values: Values) -> Values:
    """Values on an increasing scale on which populations look alike in width."""
    return _SCALES.get(measure.name, _AS_THEY_ARE)[0](values)


def unscaled(measure: Measure, values: Values) -> Values:
    """The inverse of ``scaled``."""
    return _SCALES.get(measure.name, _AS_THEY_ARE)[1](values)


def measures_of(results: PoseResults) -> dict[str, Float[np.ndarray, " n"]]:
    """The measures, float64, that a run's results hold, by name.

    The dispersions are those of the network's own Bingham matrix where predict refined the poses; a table that was filtered
    or joined by another program has kept the dispersions instead. A measure that is missing, or NaN for every particle, is
    left out.
    """
    match, errors = results.match or Match(), results.errors or ErrorEstimates()
    found = {PARTICLE_PROBABILITY: None if results.junk is None else results.junk.particle_probability,
             MATCH_SCORE: match.match_score, EXPECTED_ERROR: errors.expected_error_deg,
             ERROR_BOUND: errors.error_bound_deg, "figure-of-merit": errors.figure_of_merit, **_dispersions(results)}
    measures = {name: np.asarray(values, dtype=np.float64) for name, values in found.items() if values is not None}
    return {name: measures[name] for name in MEASURES if name in measures and not np.isnan(measures[name]).all()}


def _dispersions(results: PoseResults) -> dict[str, np.ndarray | None]:
    eigenvalues = results.eigenvalues if results.network is None else results.network.eigenvalues
    if eigenvalues is None:
        kept = results.dispersions or Dispersions()
        return {"dispersion-max": kept.dispersion_max, "dispersion-trace": kept.dispersion_trace,
                "dispersion-wigner": kept.dispersion_wigner}
    ascending = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
    return {"dispersion-max": dispersion_max(ascending).numpy(), "dispersion-trace": dispersion_trace(ascending).numpy(),
            "dispersion-wigner": dispersion_wigner(ascending).numpy()}
