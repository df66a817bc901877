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
"""Names and limits of the engine, which the plugin cannot import.

Made from cryoforum_core/catalogue.py by script/engine_names.py: do not edit.
"""

import math
from collections import namedtuple

NOT_A_PARTICLE = 'not-a-particle'
OVERLAP = 'overlapping-neighbour'
OFF_CENTRE = 'off-centre'
OTHER_OBJECT = 'another-object'
AMBIGUOUS = 'ambiguous-orientation'
BEYOND_LIMIT = 'error-beyond-limit'
NO_REASON = 'none'
PARTICLE_PROBABILITY = 'particle-probability'
MATCH_SCORE = 'match-score'
EXPECTED_ERROR = 'expected-error'
ERROR_BOUND = 'error-bound'
LOSSES = ('pairwise-to-own', 'own', 'pairwise', 'chordal')
POOLINGS = ('auto', 'gem', 'average', 'max', 'flatten')
ACTIVATIONS = ('auto', 'prelu', 'relu', 'silu')
PRECISIONS = ('auto', 'float32', 'bfloat16')
HALF_SETS = ('all', '1', '2')
REFINEMENTS = ('none', 'local', 'adaptive')
AB_INITIO_METHODS = ('hybrid', 'end-to-end')
CONTRASTS = ('auto', 'bright', 'dark')
CTF_STATES = ('auto', 'raw', 'phase-flipped', 'multiplied', 'none')
JUNK_REASONS = ('not-a-particle', 'overlapping-neighbour', 'off-centre', 'another-object')
CHOSEN_REASONS = ('not-a-particle', 'overlapping-neighbour', 'off-centre', 'another-object', 'ambiguous-orientation')

Reason = namedtuple('Reason', 'label meaning question form_name is_junk')
REASONS = {record[0]: record for record in (
    Reason(
        'not-a-particle',
        ('No signal above the noise, or signal that does not look like a particle: ice contamination, '
         'carbon, an edge, or an empty image.'),
        'Images without a particle?',
        'rejectNoParticle',
        True),
    Reason(
        'overlapping-neighbour',
        'The particle matches, but a neighbour overlaps it.',
        'Overlapping neighbours?',
        'rejectOverlap',
        True),
    Reason(
        'off-centre',
        'Nothing matches at the centre of the box; a particle lies off-centre.',
        'Off-centre particles?',
        'rejectOffCentre',
        True),
    Reason(
        'another-object',
        'There is an object at the centre, but it is not this molecule in any orientation.',
        'Other objects?',
        'rejectOtherObject',
        True),
    Reason(
        'ambiguous-orientation',
        'A good match, but another orientation is about as likely. This is not junk.',
        'Ambiguous orientations?',
        'rejectAmbiguous',
        False),
    Reason(
        'error-beyond-limit',
        'A good match, but its expected error is above the limit that was set.',
        None,
        None,
        False),
)}

Encoder = namedtuple('Encoder', 'name meaning pooling')
ENCODERS = {record[0]: record for record in (
    Encoder(
        'polar',
        ("convolutions in polar coordinates about the particle's centre, which it finds itself; "
         'equivariant to in-plane rotation and mirroring, so it needs the least training'),
        None),
    Encoder(
        'compact',
        'a plain, fast convolutional network',
        'flatten'),
    Encoder(
        'cryoforum',
        'low-pass filter channels and a VGG-like network (Chung 2023)',
        'gem'),
    Encoder(
        'cryoposenet',
        'three blocks of 3x3 convolutions (Nashed 2021)',
        'flatten'),
)}

Head = namedtuple('Head', 'name meaning')
HEADS = {record[0]: record for record in (
    Head(
        'qcqp',
        ('a symmetric 4x4 matrix: the eigenvector of its smallest eigenvalue is the rotation, its '
         'eigenvalues give the uncertainty (Chung 2023)')),
    Head(
        'qcqp-psd',
        'the same, with a positive semi-definite matrix'),
    Head(
        's2s2',
        'two 3-vectors, made orthonormal (Nashed 2021)'),
    Head(
        'quaternion',
        'a quaternion'),
    Head(
        'euler',
        'three Euler angles'),
)}

Measure = namedtuple('Measure', 'name label column higher_is_better unit usual_limit own_limit')
MEASURES = {record[0]: record for record in (
    Measure(
        'particle-probability',
        'particle probability',
        'rlnCryoforumParticleProbability',
        True,
        '',
        None,
        0.5),
    Measure(
        'match-score',
        'match score',
        'rlnCryoforumMatchScore',
        True,
        '',
        -4.0,
        None),
    Measure(
        'expected-error',
        'expected error',
        'rlnCryoforumExpectedError',
        False,
        'degrees',
        None,
        None),
    Measure(
        'error-bound',
        'error bound',
        'rlnCryoforumErrorBound',
        False,
        'degrees',
        None,
        None),
    Measure(
        'figure-of-merit',
        'figure of merit',
        'rlnCryoforumFigureOfMerit',
        True,
        '',
        None,
        None),
    Measure(
        'dispersion-max',
        'largest dispersion',
        'rlnCryoforumDispersionMax',
        False,
        '',
        None,
        None),
    Measure(
        'dispersion-trace',
        'sum of dispersions',
        'rlnCryoforumDispersionTrace',
        False,
        '',
        None,
        None),
    Measure(
        'dispersion-wigner',
        'Wigner log-likelihood of the dispersions',
        'rlnCryoforumDispersionWigner',
        False,
        '',
        None,
        None),
)}

# one particle in ten may exceed its bound; 100 known particles are enough to calibrate it
DEFAULT_COVERAGE = 0.9

# the form's highest; a bound for more would need thousands of known particles
LARGEST_FORM_COVERAGE = 0.999

# with fewer, the empirical coverage of a bound for 90 % is known to no better than 3 %
FEWEST_KNOWN = 100

# from fewer than c / (1 - c) known particles no bound for a coverage c follows; a quarter more for the models that are
# cross-validated on a part of them
KNOWN_PER_ODDS = 1.25

# fewer images determine no map at the noise of electron micrographs
AB_INITIO_PARTICLES = 200

# a map is made of them, and a part is held out to test the network
LABELLED_PARTICLES = 50

# of fewer images the shares of the kinds of junk cannot be estimated
JUNK_PARTICLES = 60

# subsets are compared in steps of one sixteenth of the set
MAP_GROUPS = 16

# ten particles in each of the sixteen groups of which maps are made
MAP_PARTICLES = 160

# the smallest box that every encoder is built for
NETWORK_BOX_PX = 16

# within this median angle two searches found the same map
STARTS_AGREE_DEG = 20.0


def fewest_known(coverage: float) -> int:
    """Fewest particles with known poses from which an error bound of this ``coverage`` (0 to 1) can be calibrated."""
    return max(FEWEST_KNOWN, math.ceil(KNOWN_PER_ODDS * coverage / (1 - coverage)))
