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
"""Protocol: keep the particles whose orientations can be trusted."""

import json
import os
from dataclasses import dataclass
from typing import Optional

import numpy as np

import pyworkflow.protocol.params as params
from pwem.objects import SetOfParticles
from pwem.protocols import EMProtocol
from pyworkflow.object import String

from ..constants import (DISPERSION_MAX, DISPERSION_TRACE, DISPERSION_WIGNER, ERROR_BOUND, EXPECTED_ERROR,
                         FIGURE_OF_MERIT, MATCH_SCORE, REJECTION_REASON)
from ..command import readSummary
from ..convert import readAttributes, reopen, setAttribute, writeParticlesStar
from .protocol_base import CryoForumBase

AUTOMATIC, KEEP_FRACTION, KEEP_COUNT, THRESHOLD, MAX_ERROR = range(5)


@dataclass(frozen=True)
class Measure:
    """ A measure of trust: its attribute, what a person and the engine call it, whether a higher value is better, and
    its array in the engine's results (None: made from others). """
    attribute: str
    label: str
    engineName: str
    higherIsBetter: bool
    array: Optional[str] = None


MEASURES = [
    Measure(MATCH_SCORE, 'match score', 'match-score', True, 'match_score'),
    Measure(EXPECTED_ERROR, 'expected error (degrees)', 'expected-error', False, 'expected_error_deg'),
    Measure(ERROR_BOUND, 'error bound (degrees)', 'error-bound', False, 'error_bound_deg'),
    Measure(FIGURE_OF_MERIT, 'figure of merit', 'figure-of-merit', True, 'figure_of_merit'),
    Measure(DISPERSION_MAX, 'largest dispersion', 'dispersion-max', False),
    Measure(DISPERSION_TRACE, 'sum of dispersions', 'dispersion-trace', False),
    Measure(DISPERSION_WIGNER, 'Wigner log-likelihood of the dispersions', 'dispersion-wigner', False)]
EXPECTED_ERROR_MEASURE = MEASURES[1]


class CryoForumProtSubset(EMProtocol, CryoForumBase):
    """ Keeps the particles whose orientations can be trusted, by an uncertainty that *predict orientations* or
    *ab initio* found.

    This is the clean-up at the 3-D level: junk, wrong molecules and images too noisy to be oriented have wide
    uncertainties or match the map poorly. Both sets are outputs, the particles kept and those rejected.
    """
    _label = 'uncertainty subset'
    _possibleOutputs = {'outputParticles': SetOfParticles, 'outputParticlesRejected': SetOfParticles}

    # -------------------------- DEFINE param functions -----------------------
    def _defineParams(self, form):
        form.addSection(label='Input')
        form.addParam('inputParticles', params.PointerParam, pointerClass='SetOfParticles', important=True,
                      label='Input particles',
                      help='Output of *predict orientations* or *ab initio*, also after filtering, joining or '
                           'exporting by other protocols: the uncertainties are attributes of the particles.')
        form.addParam('measure', params.EnumParam, choices=[measure.label for measure in MEASURES], default=0,
                      label='Measure',
                      help='*match score*: how well the image agrees with the map at its orientation, and how little '
                           'else is in it; finds junk best. 0 is a usual particle, below -4 it is hardly ever one. It '
                           'needs a prediction with refinement.\n'
                           '*expected error*: how far off the orientation is expected to be, degrees.\n'
                           '*error bound*: the orientation is within this angle at the stated coverage, degrees.\n'
                           '*figure of merit*: between 0 (no trust) and 1.\n'
                           '*dispersions*: the three measures of the Cryo-forum paper, from the network alone.')
        form.addParam('criterion', params.EnumParam, default=AUTOMATIC,
                      choices=['automatic', 'best fraction', 'best number', 'threshold', 'largest expected error'],
                      label='Keep by',
                      help='*automatic*: the border between particles and junk is found in the distribution of the '
                           'measure; where it shows one population only, all particles are kept. For the first four '
                           'measures.\n'
                           '*best fraction* or *best number* of the particles, ranked by the measure.\n'
                           '*threshold*: particles whose measure is at least (scores) or at most (errors and '
                           'dispersions) the value below.\n'
                           '*largest expected error*: particles whose expected error is at most so many degrees, '
                           'whatever the measure above.')
        form.addParam('keepFraction', params.FloatParam, default=0.8, validators=[params.Range(0, 1)],
                      condition='criterion == %d' % KEEP_FRACTION,
                      label='Fraction to keep', help='Between 0 and 1: 0.8 keeps the best 80 %.')
        form.addParam('keepCount', params.IntParam, default=10000, validators=[params.Positive],
                      condition='criterion == %d' % KEEP_COUNT,
                      label='Number to keep', help='The best so many particles.')
        form.addParam('threshold', params.FloatParam, default=-4,
                      condition='criterion == %d' % THRESHOLD,
                      label='Threshold',
                      help='A value of the measure: see its column in the table of the input set (Analyze results).')
        form.addParam('maxError', params.FloatParam, default=10, validators=[params.Positive],
                      condition='criterion == %d' % MAX_ERROR,
                      label='Largest expected error (degrees)',
                      help='About 10° still helps a map at 10 Å or worse; a few degrees for fine detail.')

    # -------------------------- INSERT steps functions -----------------------
    def _insertAllSteps(self):
        inputFile = self.inputParticles.get().getFileName()
        if self.criterion == AUTOMATIC:
            self._insertFunctionStep(self.findBorderStep, inputFile, self._measure().engineName)
        self._insertFunctionStep(self.createOutputStep, inputFile, self._rule())

    # -------------------------- STEPS functions ------------------------------
    def findBorderStep(self, inputFile, measureName):
        """ The engine's select finds the border, from the attributes of this set: other protocols may have filtered
        or joined it since it was predicted. """
        measured = self._getExtraPath('measured')
        self._writeMeasured(measured)
        options = {'run': measured, 'measure': measureName}
        self._runEngine('select', self._runDirectory(), options, [os.path.join(measured, 'particles.star'),
                                                                 os.path.join(measured, 'orientation_posterior.npz')])

    def _writeMeasured(self, folder):
        """ The set in the form of a run of the engine's predict. """
        particles = self.inputParticles.get()
        os.makedirs(folder, exist_ok=True)
        writeParticlesStar(particles, os.path.join(folder, 'particles.star'), self._getExtraPath('stacks'))
        ids, values = readAttributes(particles, [measure.attribute for measure in MEASURES if measure.array])
        arrays = {measure.array: values[measure.attribute] for measure in MEASURES if measure.attribute in values}
        np.savez(os.path.join(folder, 'orientation_posterior.npz'), particle_id=ids,
                 eigenvalues=np.zeros((len(ids), 4)), **arrays)
        for name in ('config.json', 'summary.json'):
            with open(os.path.join(folder, name), 'w') as file:
                json.dump({'job': 'predict'}, file)

    def createOutputStep(self, inputFile, rule):
        particles = self.inputParticles.get()
        measure = self._measure()
        ids, values = readAttributes(particles, [measure.attribute])
        values = values[measure.attribute]
        kept = self._keep(values)
        self.info('%s: %d of %d particles kept' % (rule, kept.sum(), len(ids)))
        self._writeSubset('outputParticles', '', ids[kept])
        reasons = dict(zip(ids[~kept].tolist(), values[~kept].tolist()))
        self._writeSubset('outputParticlesRejected', '_rejected', ids[~kept], reasons)

    def _keep(self, values):
        """ Mask (n,) of the particles to keep; equal values are ranked by id. """
        measure = self._measure()
        # ascending: surest first; a particle without a value cannot be trusted
        unsureness = np.where(np.isnan(values), np.inf, -values if measure.higherIsBetter else values)
        if self.criterion in (KEEP_FRACTION, KEEP_COUNT):
            count = (int(round(self.keepFraction.get() * len(values))) if self.criterion == KEEP_FRACTION
                     else self.keepCount.get())
            kept = np.zeros(len(values), dtype=bool)
            kept[np.argsort(unsureness, kind='stable')[:count]] = True
            return kept
        border = self._border()
        if border is None:
            return np.isfinite(unsureness)
        return unsureness <= (-border if measure.higherIsBetter else border)

    def _border(self):
        """ Worst value of the measure that is kept; None where everything is. """
        if self.criterion == AUTOMATIC:
            return readSummary(self._runDirectory())['threshold']
        return self.maxError.get() if self.criterion == MAX_ERROR else self.threshold.get()

    def _writeSubset(self, name, suffix, ids, reasons=None):
        """ One output with the particles of ``ids``; none where there are no ids (Scipion has no empty outputs). """
        if len(ids) == 0:
            self.warning('%s has no particles: it is no output.' % name)
            return
        wanted = set(ids.tolist())
        label = self._measure().label
        particles = self.inputParticles.get()
        output = self._createSetOfParticles(suffix)
        output.copyInfo(particles)

        def addReason(particle, _):
            value = reasons[particle.getObjId()]
            setAttribute(particle, REJECTION_REASON, '%s %.4g' % (label, value), String)

        output.copyItems(reopen(particles), doClone=False, rowFilter=lambda row: row['id'] in wanted,
                         updateItemCallback=None if reasons is None else addReason)
        self._defineOutputs(**{name: output})
        self._defineTransformRelation(self.inputParticles, output)

    # --------------------------- INFO functions ------------------------------
    def _validate(self):
        particles = self.inputParticles.get()
        if particles is None:
            return []
        first = particles.getFirstItem()
        if first is None:
            return ['The input set is empty: give a set with particles.']
        errors = []
        if not first.hasAttribute(EXPECTED_ERROR):
            errors.append('The particles have no uncertainties: give the output of "predict orientations" or '
                          '"ab initio".')
        elif not first.hasAttribute(self._measure().attribute):
            errors.append('The particles have no %s: predict their orientations with refinement, or choose another '
                          'measure.' % self._measure().label)
        if self.criterion == AUTOMATIC and self._measure().array is None:
            errors.append('The border cannot be found automatically for the %s: choose one of the first four measures, '
                          'or another way to keep particles.' % self._measure().label)
        return errors

    def _warnings(self):
        particles = self.inputParticles.get()
        if self.criterion == KEEP_COUNT and particles is not None and self.keepCount.get() >= particles.getSize():
            return ['The number to keep is not below the %d particles of the input: none will be rejected.'
                    % particles.getSize()]
        return []

    def _summary(self):
        kept = getattr(self, 'outputParticles', None)
        rejected = getattr(self, 'outputParticlesRejected', None)
        if kept is None and rejected is None:
            return ['The subset is not ready yet.']
        sizes = [0 if output is None else output.getSize() for output in (kept, rejected)]
        return ['Kept *%d* of %d particles (%.1f %%), rejected %d.' % (sizes[0], sum(sizes),
                                                                      100. * sizes[0] / sum(sizes), sizes[1]),
                self._explanation()]

    def _methods(self):
        kept = getattr(self, 'outputParticles', None)
        if kept is None:
            return []
        return ['%d particles were kept by the uncertainty of their orientations (%s) with cryoforum.'
                % (kept.getSize(), self._rule())]

    def _citations(self):
        return ['Chung2023']

    # --------------------------- UTILS functions -----------------------------
    def _runDirectory(self):
        return self._getExtraPath('select')

    def _explanation(self):
        """ How the border came about. """
        found = os.path.exists(os.path.join(self._runDirectory(), 'summary.json'))
        if found and self.criterion == AUTOMATIC:
            return readSummary(self._runDirectory())['explanation']
        return self._rule()

    def _measure(self):
        return EXPECTED_ERROR_MEASURE if self.criterion == MAX_ERROR else MEASURES[self.measure.get()]

    def _rule(self):
        """ The rule in words. """
        measure = self._measure()
        if self.criterion == AUTOMATIC:
            return '%s, border found automatically' % measure.label
        if self.criterion == KEEP_FRACTION:
            return 'best %.4g %% by %s' % (100 * self.keepFraction.get(), measure.label)
        if self.criterion == KEEP_COUNT:
            return 'best %d by %s' % (self.keepCount.get(), measure.label)
        if self.criterion == MAX_ERROR:
            return '%s at most %.4g' % (measure.label, self.maxError.get())
        return '%s at %s %.4g' % (measure.label, 'least' if measure.higherIsBetter else 'most', self.threshold.get())
