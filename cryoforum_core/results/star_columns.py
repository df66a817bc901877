"""The columns that a run adds to particles.star, beside the poses."""

import numpy as np
from jaxtyping import Shaped

from .pose_results import PoseResults

EXPECTED_ERROR_COLUMN = "rlnCryoforumExpectedError"
ERROR_BOUND_COLUMN = "rlnCryoforumErrorBound"
FIGURE_OF_MERIT_COLUMN = "rlnCryoforumFigureOfMerit"
EXPECTED_SHIFT_ERROR_COLUMN = "rlnCryoforumExpectedShiftError"
SHIFT_ERROR_BOUND_COLUMN = "rlnCryoforumShiftErrorBound"
MATCH_SCORE_COLUMN = "rlnCryoforumMatchScore"
REASON_COLUMN = "rlnCryoforumReason"
PARTICLE_PROBABILITY_COLUMN = "rlnCryoforumParticleProbability"
STATE_COLUMN = "rlnCryoforumState"
MINOR_STATE_PROBABILITY_COLUMN = "rlnCryoforumMinorStateProbability"


def star_columns(results: PoseResults) -> dict[str, Shaped[np.ndarray, " n"]]:
    """The columns beside the poses that a STAR file gets."""
    columns = {}
    if results.errors is not None:
        columns = {EXPECTED_ERROR_COLUMN: results.errors.expected_error_deg,
                   ERROR_BOUND_COLUMN: results.errors.error_bound_deg,
                   FIGURE_OF_MERIT_COLUMN: results.errors.figure_of_merit,
                   EXPECTED_SHIFT_ERROR_COLUMN: results.errors.expected_shift_error_angstrom,
                   SHIFT_ERROR_BOUND_COLUMN: results.errors.shift_error_bound_angstrom}
    if results.match is not None and results.match.match_score is not None and np.isfinite(results.match.match_score).all():
        columns[MATCH_SCORE_COLUMN] = results.match.match_score
    if results.junk is not None:
        columns |= {REASON_COLUMN: results.junk.reason, PARTICLE_PROBABILITY_COLUMN: results.junk.particle_probability}
    if results.states is not None:
        columns |= {STATE_COLUMN: results.states.state,
                    MINOR_STATE_PROBABILITY_COLUMN: results.states.minor_state_probability}
    return {name: values for name, values in columns.items() if values is not None}
