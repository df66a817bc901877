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
"""Protocol: keep the particles with reliable orientations."""

import json
import os
import shutil
from dataclasses import dataclass

import numpy as np

import pyworkflow.protocol.params as params
from pwem.objects import SetOfParticles, Transform
from pwem.protocols import EMProtocol
from pyworkflow.object import String

from .. import engine_names
from ..command import projectFolder, readSummary
from ..constants import CENTRE_X, CENTRE_Y, EXPECTED_ERROR, MATCH_SCORE, REASON, REJECTION_REASON, SYMMETRY_HELP
from ..convert import (readAttributes, readIds, readReasons, reopen, setAttribute, shiftToTransform,
                       validateStack, writeParticlesStar, writePosterior)
from ..engine_names import CHOSEN_REASONS, JUNK_PARTICLES, MAP_PARTICLES, REASONS
from .form_options import FormOption
from .protocol_base import CryoForumBase, ctfStateOf
from .source import findSource

AUTOMATIC, BY_MAP, BY_REASON, KEEP_FRACTION, KEEP_COUNT, THRESHOLD, MAX_ERROR, MAX_BOUND = range(8)
# a stored protocol knows its choice by number: the order stays
CRITERIA = ['automatic (reject junk)', 'improvement of the map', 'reject chosen kinds of junk', 'best fraction',
            'best number', 'threshold', 'maximum expected error', 'maximum error bound']
# those that rank the particles by the measure that the form asks for
RANKED = (AUTOMATIC, BY_MAP, KEEP_FRACTION, KEEP_COUNT, THRESHOLD)
# those by which rare views can be protected: a limit is meant as it is
PROTECTING = (AUTOMATIC, BY_MAP, KEEP_FRACTION, KEEP_COUNT)


@dataclass(frozen=True)
class Measure:
    """ A measure of reliability: its attribute, its label in the form, its name in the engine, and whether a higher value is
    better. """
    attribute: str
    label: str
    engineName: str
    higherIsBetter: bool


def _measureOf(record):
    """ The attribute has the name of the engine's column, as Scipion writes it: rlnCryoforumX -> _cryoforumX. """
    return Measure('_c' + record.column[len('rlnC'):], record.label + (' (%s)' % record.unit if record.unit else ''),
                   record.name, record.higher_is_better)


# a stored protocol knows its choice by number: new ones come last
MEASURES = [_measureOf(record) for record in engine_names.MEASURES.values()]
PROBABILITY_MEASURE, MATCH_MEASURE, ERROR_MEASURE, BOUND_MEASURE = (
    next(measure for measure in MEASURES if measure.engineName == name) for name in (
        engine_names.PARTICLE_PROBABILITY, engine_names.MATCH_SCORE, engine_names.EXPECTED_ERROR,
        engine_names.ERROR_BOUND))
# the form's list starts with the choice of the first of these that the particles have
BEST_MEASURE = 0
PREFERRED = [PROBABILITY_MEASURE, MATCH_MEASURE, ERROR_MEASURE]
MEASURE_LABELS = ['best available'] + [measure.label for measure in MEASURES]
MEASURE_NAMES = ['auto'] + [measure.engineName for measure in MEASURES]

# kind of junk, or ambiguous orientation -> name of its parameter
REASON_PARAMS = {name: REASONS[name].form_name for name in CHOSEN_REASONS}


def measureIndex(measure):
    """ The place of a measure in the form's list. """
    return 1 + MEASURES.index(measure)


class CryoForumProtSubset(CryoForumBase, EMProtocol):
    """ Keeps the particles with reliable orientations, based on the results of *predict orientations* or *ab initio*.

    Particles are cleaned up in 3D: junk, other molecules and images too noisy to be oriented are recognised without 2D
    classification. Outputs: the particles kept, those rejected with the reason, and off-centre particles with the
    shift that centres them, for *extract coordinates* (with shifts applied) and a new extraction.
    """
    _label = 'uncertainty subset'
    _possibleOutputs = {'outputParticles': SetOfParticles, 'outputParticlesRejected': SetOfParticles,
                        'outputParticlesRecentre': SetOfParticles}
    OPTIONS = (FormOption('run', 'inputParticles', getter='_measuredFile'),
               FormOption('measure', 'measure', MEASURE_NAMES, getter='_measureName', evenHidden=True),
               FormOption('keep_fraction', 'keepFraction'),
               FormOption('keep_count', 'keepCount', getter='_keepCount'),
               FormOption('threshold', 'threshold'),
               FormOption('threshold', 'maxBound'),
               FormOption('max_error_deg', 'maxError'),
               FormOption('protect_views', 'protectViews'))

    # -------------------------- DEFINE param functions -----------------------
    def _defineParams(self, form):
        form.addSection(label='Input')
        form.addParam('inputParticles', params.PointerParam, pointerClass='SetOfParticles', important=True,
                      label='Input particles',
                      help='Output of *predict orientations* or *ab initio*. The set may have been filtered or joined by '
                           'other protocols, because the results are stored as attributes of each particle.')
        form.addParam('criterion', params.EnumParam, default=AUTOMATIC, choices=CRITERIA,
                      label='Selection criterion',
                      help='*automatic (reject junk)*: rejects images with a particle probability below 0.5. With any '
                           'other measure, its distribution decides: if it has two populations, the worse one is '
                           'rejected; if it has one, nothing is, except that for the match score images below -4 '
                           'are.\n'
                           '*improvement of the map*: half maps from the best particles are compared with half maps '
                           'from random subsets of the same size; particles are rejected only if the map gets better '
                           'than that of all particles. Reads all images twice.\n'
                           '*reject chosen kinds of junk*: rejects the kinds of junk that you choose, and particles of '
                           'ambiguous orientation if you choose them.\n'
                           '*best fraction* or *best number* of the particles, ranked by the measure.\n'
                           '*threshold*: keep particles whose measure is at or above the value (scores, probability) '
                           'or at or below it (errors, dispersions).\n'
                           '*maximum expected error*: keep particles whose expected error is at most this many '
                           'degrees.\n'
                           '*maximum error bound*: keep particles whose error bound is at most this many degrees. '
                           'Bounds have the nominal coverage that was chosen when the orientations were determined '
                           '(90 % by default).')
        form.addParam('measure', params.EnumParam, choices=MEASURE_LABELS, default=BEST_MEASURE,
                      condition='criterion in %s' % list(RANKED),
                      label='Measure',
                      help='*best available*: the particle probability, else the match score, else the '
                           'expected error.\n'
                           '*particle probability*: 0 to 1; best at identifying junk. Available after adaptive '
                           'refinement and ab initio.\n'
                           '*match score*: how well the image agrees with the projection of the map, and how little '
                           'signal remains unexplained. 0 is typical of particles; images below -4 are almost never '
                           'particles. Available after refinement.\n'
                           '*expected error*: expected error of the orientation, degrees.\n'
                           '*error bound*: upper bound of that error with the chosen nominal coverage, degrees.\n'
                           '*figure of merit*: 0 (orientation uncertain) to 1 (certain).\n'
                           '*dispersions*: the three measures of Chung (2023), from the network alone.')
        self._defineCriterionParams(form)
        form.addParam('protectViews', params.BooleanParam, default=True,
                      condition='criterion in %s' % list(PROTECTING),
                      label='Protect rare views?',
                      help='If x % of the images of a group of viewing directions are junk, the group\'s share of the '
                           'set falls by at most x %, so that the best particles of hard-to-orient views are kept. '
                           'Without this, a few easy views may dominate the map.')
        form.addParam('symmetry', params.StringParam, default='', expertLevel=params.LEVEL_ADVANCED,
                      label='Symmetry',
                      help='Symmetry-equivalent views count as one. If empty, the symmetry with which the '
                           'orientations were determined is used. ' + SYMMETRY_HELP)
        form.addParallelSection(threads=4, mpi=0)

    def _defineCriterionParams(self, form):
        line = form.addGroup('Reject', condition='criterion == %d' % BY_REASON)
        for reason, name in REASON_PARAMS.items():
            line.addParam(name, params.BooleanParam, default=REASONS[reason].is_junk, label=REASONS[reason].question,
                          help=REASONS[reason].meaning, condition='criterion == %d' % BY_REASON)
        form.addParam('keepFraction', params.FloatParam, default=0.8,
                      validators=[params.GT(0, error='must be above 0'), params.LE(1, error='must be at most 1')],
                      condition='criterion == %d' % KEEP_FRACTION,
                      label='Fraction to keep', help='Between 0 and 1: 0.8 keeps the best 80 %.')
        form.addParam('keepCount', params.IntParam, default=10000, validators=[params.Positive],
                      condition='criterion == %d' % KEEP_COUNT,
                      label='Number to keep', help='How many of the best particles are kept.')
        form.addParam('threshold', params.FloatParam, default=0.5,
                      condition='criterion == %d' % THRESHOLD,
                      label='Threshold',
                      help='Limit on the measure; see its column in the table of the input set (Analyze results). '
                           'Typical values: 0.5 for the particle probability, -4 for the match score.')
        form.addParam('maxError', params.FloatParam, default=10, validators=[params.Positive],
                      condition='criterion == %d' % MAX_ERROR,
                      label='Maximum expected error (degrees)',
                      help='An error of 10° moves a detail 100 Å from the centre by 17 Å, one of 3° by 5 Å: choose the '
                           'limit for the size of the particle and the resolution you want.')
        form.addParam('maxBound', params.FloatParam, default=20, validators=[params.Positive],
                      condition='criterion == %d' % MAX_BOUND,
                      label='Maximum error bound (degrees)',
                      help='Keeps particles whose error bound is at most this. 9 in 10 particles should have an error '
                           'within their bound, unless another coverage was chosen when the orientations were '
                           'determined.')
        form.addParam('rejectJunk', params.BooleanParam, default=True,
                      condition='criterion in %s' % str([MAX_ERROR, MAX_BOUND]),
                      label='Reject junk, too?',
                      help='Also rejects images with a particle probability below 0.5, whatever their error. It has no '
                           'effect if there is no particle probability.')

    # -------------------------- INSERT steps functions -----------------------
    def _insertAllSteps(self):
        inputKey = '%s, %s, %s' % (self.inputParticles.get().getFileName(), self._symmetry(), projectFolder())
        self._insertEngineSteps(inputKey, self.selectStep)

    # -------------------------- STEPS functions ------------------------------
    def convertInputStep(self, inputKey):
        """ The set in the form of a run of the engine's predict, from the attributes of its particles: other protocols
        may have filtered or joined them since their orientations were found. """
        particles = self.inputParticles.get()
        os.makedirs(self._measuredFile(), exist_ok=True)
        writeParticlesStar(particles, self._measuredFile('particles.star'), self._getExtraPath('stacks'))
        writePosterior(particles, self._measuredFile('orientation_posterior.npz'))
        source = findSource(self)
        options = {'ctf_state': ctfStateOf(particles)} if source is None else {
            name: source.options[name] for name in ('contrast', 'ctf_state', 'refinement') if name in source.options}
        self._writeMeasured('config.json', {**options, 'job': 'predict'})
        self._writeMeasured('summary.json', {'job': 'predict', 'symmetry': self._foundSymmetry(source)})
        if source is not None:
            self._copyGallery(source)
            self._copyPromises(source)

    def _writeMeasured(self, name, values):
        with open(self._measuredFile(name), 'w') as file:
            json.dump(values, file)

    def _copyPromises(self, source):
        """ What the error bounds promise and how often that held, for the report. """
        for name in ('calibration.npz', 'calibration.csv'):
            if os.path.exists(source.file(name)):
                shutil.copy(source.file(name), self._measuredFile(name))

    def _copyGallery(self, source):
        """ Examples that are still in the set: ids may have been given anew when sets were joined. """
        if not os.path.exists(source.file('gallery.npz')):
            return
        ids, values = readAttributes(self.inputParticles.get(), [MATCH_SCORE])
        scores = dict(zip(ids.tolist(), values.get(MATCH_SCORE, np.full(len(ids), np.nan)).tolist()))
        with np.load(source.file('gallery.npz'), allow_pickle=False) as arrays:
            same = [abs(scores.get(int(i), np.nan) - score) < 1e-3
                    for i, score in zip(arrays['particle_id'], arrays['match_score'])]
            np.savez(self._measuredFile('gallery.npz'), **{name: values[same] for name, values in arrays.items()})

    def selectStep(self, inputKey, options):
        self._runEngine('select')

    def createOutputStep(self, inputKey, options):
        summary = readSummary(self._runDirectory())
        self.info(summary['explanation'])
        reasons = readReasons(self._selectedFile('rejected.star'))
        self._writeSubset('outputParticles', '', readIds(self._selectedFile('selected.star')), self._clearReason)
        self._writeSubset('outputParticlesRejected', '_rejected', reasons,
                          lambda particle: self._addReason(particle, reasons))
        self._writeSubset('outputParticlesRecentre', '_recentre', readIds(self._selectedFile('recentre.star')),
                          self._recentre, is2D=True)

    def _writeSubset(self, name, suffix, ids, change, is2D=False):
        """ One output with the particles of ``ids``, each changed, in the end with a 2D alignment; none where there are
        no ids (Scipion has no empty outputs), also where an earlier run had some. """
        wanted = set(ids)
        if not wanted:
            self.info('No particles for %s: this output is not made.' % name)
            self._dropOutput(name)
            return
        particles = self.inputParticles.get()
        output = self._createSetOfParticles(suffix)
        output.copyInfo(particles)
        if is2D:
            output.setAlignment2D()
        # not by rowFilter, which Scipion has only since 3.10
        output.copyItems(reopen(particles), doClone=False,
                         itemSelectedCallback=lambda particle: particle.getObjId() in wanted,
                         updateItemCallback=lambda particle, _: change(particle))
        self._defineOutputs(**{name: output})
        self._defineTransformRelation(self.inputParticles, output)

    @staticmethod
    def _addReason(particle, reasons):
        setAttribute(particle, REJECTION_REASON, reasons[particle.getObjId()], String)

    @staticmethod
    def _clearReason(particle):
        """ The particle may come from a set that was rejected before. """
        if particle.hasAttribute(REJECTION_REASON):
            getattr(particle, REJECTION_REASON).set(None)

    def _recentre(self, particle):
        """ A 2D alignment that is a shift only: an orientation was not found where the particle is not. """
        self._clearReason(particle)
        shift, pixelSize = [particle.getAttributeValue(name) for name in (CENTRE_X, CENTRE_Y)], self._pixelSize()
        particle.setTransform(Transform(matrix=shiftToTransform(shift, pixelSize)))

    # --------------------------- INFO functions ------------------------------
    def _validate(self):
        particles = self.inputParticles.get()
        if particles is None:
            return []
        first = particles.getFirstItem()
        if first is None:
            return ['The input set is empty: give a set with particles.']
        if first.getAttributeValue(EXPECTED_ERROR) is None:
            return ['The particles have no uncertainties: give the output of "predict orientations" or "ab initio".']
        errors = validateStack(first.getFileName())
        if self.criterion == BY_REASON and first.getAttributeValue(REASON) is None:
            errors.append('The kinds of junk in this set are not known: predict the orientations with adaptive '
                          'refinement, or choose another selection criterion.')
        elif not self._has(self._measure()):
            remedy = 'predict their orientations with refinement'
            if self._measure() is PROBABILITY_MEASURE:
                remedy = 'predict the orientations of at least %d particles with adaptive refinement' % JUNK_PARTICLES
            errors.append('The particles have no %s: %s, or choose another measure.' % (self._measure().label, remedy))
        if self.criterion == BY_REASON and not self._reasons():
            errors.append('No kind of junk is selected: set at least one to Yes.')
        if self.criterion == BY_MAP:
            errors += self._validateMaps()
        if self._symmetry():
            errors += self._validateSymmetry(self._symmetry())
        return errors

    def _validateMaps(self):
        particles, errors = self.inputParticles.get(), []
        if not particles.hasAlignmentProj():
            errors.append('The particles have lost their orientations, so no maps can be made: choose a criterion '
                          'other than "improvement of the map".')
        if particles.getSize() < MAP_PARTICLES:
            errors.append('At least %d particles are needed to compare maps; the set has %d. Choose a criterion other '
                          'than "improvement of the map".' % (MAP_PARTICLES, particles.getSize()))
        return errors

    def _warnings(self):
        particles = self.inputParticles.get()
        if self.criterion == KEEP_COUNT and particles is not None and self.keepCount.get() >= particles.getSize():
            return ['The number to keep is not smaller than the input set (%d particles): no particle will be rejected.'
                    % particles.getSize()]
        return []

    def _summary(self):
        outputs = [getattr(self, name, None) for name in self._possibleOutputs]
        kept, rejected, recentre = [0 if output is None else output.getSize() for output in outputs]
        if not kept + rejected:
            return self._unfinishedLines('The subset is')
        summary = readSummary(self._runDirectory())
        lines = ['Kept *%d* of %d particles (%.1f %%), rejected %d.' % (kept, kept + rejected,
                                                                      100. * kept / (kept + rejected), rejected),
                 summary['explanation']]
        if summary['reasons']:
            lines.append('Reasons: ' + ', '.join('%d %s' % (count, inWords(reason)) for reason, count in sorted(
                summary['reasons'].items(), key=lambda item: -item[1])) + '.')
        if summary.get('n_short_of_view_shares'):
            lines.append('Some viewing directions lost more of their share of the set than junk explains: %d particles '
                         'are missing in all. See the report.' % summary['n_short_of_view_shares'])
        if recentre:
            lines.append('%d particles are off-centre. To recentre them: *extract coordinates* of '
                         'outputParticlesRecentre with "Apply particle shifts", then extract them again.' % recentre)
        return lines + self._reportLines(self._runDirectory())

    def _methods(self):
        kept = getattr(self, 'outputParticles', None)
        if kept is None:
            return []
        return ['%d particles were selected with cryoforum (%s).' % (kept.getSize(), self.rule())]

    def _citations(self):
        return ['Chung2023']

    # --------------------------- UTILS functions -----------------------------
    def _runDirectory(self):
        return self._getExtraPath('select')

    def _pixelSize(self):
        return self.inputParticles.get().getSamplingRate()

    def _selectedFile(self, name):
        return os.path.join(self._runDirectory(), name)

    def _measuredFile(self, *names):
        return self._getExtraPath('measured', *names)

    def _inputFiles(self):
        return [self._measuredFile(name) for name in ('particles.star', 'orientation_posterior.npz', 'config.json',
                                                      'summary.json')]

    def _foundSymmetry(self, source):
        """ The symmetry of the form, or else the one with which the orientations were found. """
        return self._symmetry() or (source.symmetry if source is not None else 'c1')

    def _reasons(self):
        """ Kinds of junk to reject. """
        return [reason for reason, name in REASON_PARAMS.items() if getattr(self, name).get()]

    def _measure(self):
        if self.criterion in (MAX_ERROR, MAX_BOUND, BY_REASON):
            return {MAX_ERROR: ERROR_MEASURE, MAX_BOUND: BOUND_MEASURE,
                    BY_REASON: PROBABILITY_MEASURE}[self.criterion.get()]
        if self.measure != BEST_MEASURE:
            return MEASURES[self.measure.get() - 1]
        return next((measure for measure in PREFERRED if self._has(measure)), ERROR_MEASURE)

    def _has(self, measure):
        particles = self.inputParticles.get()
        first = None if particles is None else particles.getFirstItem()
        return first is not None and first.getAttributeValue(measure.attribute) is not None

    def _measureName(self):
        return self._measure().engineName

    def _keepCount(self):
        return min(self.keepCount.get(), self.inputParticles.get().getSize())

    def _engineOptions(self):
        """ Beside those of single parameters: the criterion, and the kinds of junk. """
        options = super()._engineOptions()
        if self.criterion == BY_MAP:
            options['auto'] = True
        elif self.criterion == BY_REASON:
            options['reasons'] = self._reasons()
        elif self.criterion in (MAX_ERROR, MAX_BOUND) and not self.rejectJunk:
            options['reasons'] = []
        return options

    def rule(self):
        """ The rule in words. """
        criterion, measure = self.criterion.get(), self._measure()
        if criterion == AUTOMATIC:
            return ('%s of at least 0.5' if measure == PROBABILITY_MEASURE else '%s, limit from its distribution'
                    ) % measure.label
        if criterion == BY_MAP:
            return 'number of particles chosen for the best map, ranked by %s' % measure.label
        if criterion == BY_REASON:
            return 'rejected: %s' % ', '.join(inWords(reason) for reason in self._reasons())
        if criterion == KEEP_FRACTION:
            return 'best %.4g %% by %s' % (100 * self.keepFraction.get(), measure.label)
        if criterion == KEEP_COUNT:
            return 'best %d by %s' % (self.keepCount.get(), measure.label)
        limit = {THRESHOLD: self.threshold, MAX_ERROR: self.maxError, MAX_BOUND: self.maxBound}[criterion].get()
        return '%s at %s %.4g' % (measure.label, 'least' if measure.higherIsBetter else 'most', limit)


def inWords(reason):
    """ A reason of the engine for people: 'not-a-particle' -> 'not a particle'; rules with numbers stay. """
    return reason if any(sign in reason for sign in '<>=') else reason.replace('-', ' ')
