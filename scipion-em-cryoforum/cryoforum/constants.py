# **************************************************************************
# *
# * Authors:     The cryoforum authors
# *
# * This program is free software; you can redistribute it and/or modify
# * it under the terms of the GNU General Public License as published by
# * the Free Software Foundation; either version 3 of the License, or
# * (at your option) any later version.
# *
# * This program is distributed in the hope that it will be useful,
# * but WITHOUT ANY WARRANTY; without even the implied warranty of
# * MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE.  See the
# * GNU General Public License for more details.
# *
# * You should have received a copy of the GNU General Public License
# * along with this program; if not, see <https://www.gnu.org/licenses/>.
# *
# **************************************************************************
"""Names and values that several modules share."""

# Plugin variables
CRYOFORUM_HOME = 'CRYOFORUM_HOME'
CRYOFORUM_PYTHON = 'CRYOFORUM_PYTHON'
CRYOFORUM_ENGINE = 'CRYOFORUM_ENGINE'
CRYOFORUM_TORCH = 'CRYOFORUM_TORCH'

# Versions of the engine (distribution cryoforum-core) this plugin works with
V0_1_0 = '0.1.0'
ENGINE_VERSIONS = [V0_1_0]
DEFAULT_TORCH = 'torch==2.13.0'  # tested
ENGINE_DISTRIBUTION = 'cryoforum-core'
MINIMUM_ENGINE_PYTHON = (3, 11)

# Attributes of a predicted particle. Angles are in degrees, shifts in Angstrom.
EXPECTED_ERROR = '_cryoforumExpectedError'
ERROR_BOUND = '_cryoforumErrorBound'
EXPECTED_SHIFT_ERROR = '_cryoforumExpectedShiftError'
SHIFT_ERROR_BOUND = '_cryoforumShiftErrorBound'
REASON = '_cryoforumReason'
# rot, tilt and psi in degrees of another orientation that is about as likely, as a text
ALTERNATIVE = '_cryoforumAlternative'
PARTICLE_PROBABILITY = '_cryoforumParticleProbability'
# 1, or 2 for particles in the minor state; 0 for junk
STATE = '_cryoforumState'
MINOR_STATE_PROBABILITY = '_cryoforumMinorStateProbability'
FIGURE_OF_MERIT = '_cryoforumFigureOfMerit'
MATCH_SCORE = '_cryoforumMatchScore'
# rlnOrigin that centres the particle: its shift, or where an off-centre one really lies
CENTRE_X = '_cryoforumCentreX'
CENTRE_Y = '_cryoforumCentreY'
DISPERSION_MAX = '_cryoforumDispersionMax'
DISPERSION_TRACE = '_cryoforumDispersionTrace'
DISPERSION_WIGNER = '_cryoforumDispersionWigner'
REJECTION_REASON = '_cryoforumRejectionReason'
# the half set (1 or 2) of a particle, as RELION's plugin calls it
HALF_SET = '_rlnRandomSubset'

PARTICLE_ATTRIBUTES = [EXPECTED_ERROR, ERROR_BOUND, REASON, PARTICLE_PROBABILITY, STATE, MINOR_STATE_PROBABILITY,
                       FIGURE_OF_MERIT, MATCH_SCORE, ALTERNATIVE, EXPECTED_SHIFT_ERROR, SHIFT_ERROR_BOUND, CENTRE_X,
                       CENTRE_Y, DISPERSION_MAX, DISPERSION_TRACE, DISPERSION_WIGNER]
TEXT_ATTRIBUTES = (REASON, ALTERNATIVE)

SYMMETRY_HELP = ('Point group of the molecule in RELION notation: c1, c2, ..., d1, d2, ..., t, o, i (or i1 to i4). '
                 'See [[https://relion.readthedocs.io/en/latest/Reference/Conventions.html#symmetry]'
                 '[RELION conventions]].')
