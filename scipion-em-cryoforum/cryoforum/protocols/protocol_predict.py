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
"""Protocol: orientations, shifts and their uncertainty for every particle."""

import os
from enum import Enum

import pyworkflow.protocol.params as params
from pwem.objects import SetOfParticles
from pwem.protocols import EMProtocol

from ..command import projectFolder, readSummary
from ..constants import SYMMETRY_HELP
from ..convert import copyWithPredictions, readPredictions, writeParticlesStar
from ..engine_names import DEFAULT_COVERAGE, REFINEMENTS, fewest_known
from .form_options import FormOption
from .protocol_base import COVERAGE, IMAGE_OPTIONS, PARTICLES, TOLERANCE, CryoForumBase

REFINE_NONE, REFINE_LOCAL, REFINE_ADAPTIVE = range(3)


class outputs(Enum):
    outputParticles = SetOfParticles


class CryoForumProtPredict(EMProtocol, CryoForumBase):
    """ Finds the orientation and the shift of every particle with a trained network, and gives each particle an
    error bound for its orientation, in degrees.

    The network's pose can be refined by projection matching to a map. The output keeps all attributes of the input
    particles; it can be used in RELION (reconstruct, 3D auto-refine with local searches) and in the protocol
    *uncertainty subset*, which removes particles without a reliable orientation.
    """
    _label = 'predict orientations'
    _possibleOutputs = outputs
    OPTIONS = (PARTICLES,
               FormOption('model', 'inputNetwork', getter='_networkDirectory'),
               FormOption('reference', 'referenceVolume', getter='_referenceFile', evenHidden=True),
               FormOption('refinement', 'refinement', REFINEMENTS),
               FormOption('resolution_angstrom', 'resolution', emptyIsAuto=True, evenHidden=True),
               FormOption('max_shift_angstrom', 'maxShift', emptyIsAuto=True, evenHidden=True),
               FormOption('symmetry', 'symmetry', getter='_symmetry', emptyIsAuto=True),
               COVERAGE,
               FormOption('calibration_particles', 'calibrationParticles', getter='_knownFile'),
               FormOption('batch_size', 'batchSize'),
               *IMAGE_OPTIONS)

    # -------------------------- DEFINE param functions -----------------------
    def _defineParams(self, form):
        self._defineGpuParams(form)
        form.addSection(label='Input')
        form.addParam('inputParticles', params.PointerParam, pointerClass='SetOfParticles', important=True,
                      label='Input particles',
                      help='Particles with CTF. Existing orientations are ignored and replaced.')
        form.addParam('inputNetwork', params.PointerParam, pointerClass='CryoForumNetwork', important=True,
                      label='Network',
                      help='Output of *train orientation network* or *ab initio*. The network must have been trained on '
                           'particles with the same box size in Å; otherwise give a reference map below.')
        form.addParam('refinement', params.EnumParam, choices=REFINEMENTS, default=REFINE_ADAPTIVE,
                      display=params.EnumParam.DISPLAY_HLIST,
                      label='Refinement',
                      help='*none*: the network alone; fastest.\n'
                           '*local*: each particle is matched against the map, starting from the network\'s '
                           'orientation.\n'
                           '*adaptive*: local for all, and a new search over all orientations and shifts for '
                           'particles for which the network is uncertain or the match is poor; the most accurate.')
        form.addParam('referenceVolume', params.PointerParam, pointerClass='Volume', allowsNull=True,
                      condition='refinement != %d' % REFINE_NONE,
                      label='Reference map (optional)',
                      help='Map to match against. If empty, the map the network was trained with is used. It must have '
                           'the box size in Å of the particles.')
        form.addSection(label='Matching')
        matching = dict(condition='refinement != %d' % REFINE_NONE)
        form.addParam('resolution', params.FloatParam, default=0, validators=[params.GE(0)], **matching,
                      label='High-resolution limit (Å)',
                      help='Information beyond this resolution is not used in matching. Set it to the resolution of the '
                           'map, so that the noise of the map is not used. 0: the Nyquist limit of the particles.')
        form.addParam('maxShift', params.FloatParam, default=0, validators=[params.GE(0)], **matching,
                      label='Maximum shift (Å)',
                      help='Maximum distance of a particle from the centre of its image. 0 means one eighth of the '
                           'box.')
        form.addParam('symmetry', params.StringParam, default='', expertLevel=params.LEVEL_ADVANCED,
                      label='Symmetry', help='If empty, the symmetry the network was trained with is used. '
                           + SYMMETRY_HELP)
        self._defineCoverageParam(form)
        form.addParam('calibrationParticles', params.PointerParam, pointerClass='SetOfParticles', allowsNull=True,
                      pointerCondition='hasAlignmentProj', expertLevel=params.LEVEL_ADVANCED,
                      label='Particles with known orientations (optional)',
                      help='Particles on which the errors are calibrated: at least %d (more for a coverage of 0.988 or '
                           'more), not used in training, of the same box and pixel size as the input particles, with '
                           'reliable orientations in the frame of the reference map. If empty, the errors are '
                           'calibrated on your own images, from which the particle is subtracted and replaced by a '
                           'projection of the map in a known orientation; if too few orientations are certain, or '
                           'without refinement, on simulated images.' % fewest_known(DEFAULT_COVERAGE))
        form.addParam('batchSize', params.IntParam, default=256, validators=[params.Positive],
                      expertLevel=params.LEVEL_ADVANCED,
                      label='Batch size', help='Number of images processed at once; fewer take less memory.')
        self._defineImageParams(form)
        self._defineThreads(form)

    # -------------------------- INSERT steps functions -----------------------
    def _insertAllSteps(self):
        self._insertEngineSteps(self._inputKey(), self.predictStep)

    def _inputKey(self):
        """ What the converted input depends on: another value makes Continue convert again. """
        volume, known = self._reference(), self.calibrationParticles.get()
        return '%s, %s, %s, %s' % (self.inputParticles.get().getFileName(), volume and volume.getFileName(),
                                   known and known.getFileName(), projectFolder())

    # -------------------------- STEPS functions ------------------------------
    def convertInputStep(self, inputKey):
        self._convertInput(withPoses=False)
        if self.calibrationParticles.get() is not None:
            writeParticlesStar(self.calibrationParticles.get(), self._knownFile(), self._getExtraPath('stacks'))

    def predictStep(self, inputKey, options):
        summary = self._runEngine('predict')
        if not summary['model_applies']:
            self.error('This network does not fit these particles: %s'
                       % self._inFormWords(summary['model_applies_reason']))

    def createOutputStep(self, inputKey, options):
        particles = self.inputParticles.get()
        predictions = readPredictions(os.path.join(self._runDirectory(), 'orientation_posterior.npz'),
                                      particles.getSamplingRate())
        output = self._createSetOfParticles()
        copyWithPredictions(particles, output, predictions)
        self._defineOutputs(**{outputs.outputParticles.name: output})
        self._defineTransformRelation(self.inputParticles, output)
        self._defineSourceRelation(self.inputNetwork, output)
        if self._reference() is not None:
            self._defineSourceRelation(self.referenceVolume, output)
        if self.calibrationParticles.get() is not None:
            self._defineSourceRelation(self.calibrationParticles, output)

    # --------------------------- INFO functions ------------------------------
    def _validate(self):
        errors = self._validateParticles() + self._validateGpu()
        volume = self._reference()
        errors += self._validateVolume(volume, sameFieldOfView=True)
        errors += self._validateNetwork(self.inputNetwork.get(),
                                        matchesOwnMap=self.refinement != REFINE_NONE and volume is None)
        if self._symmetry():
            errors += self._validateSymmetry(self._symmetry()) or self._validateNetworkSymmetry()
        return errors + self._validateKnown()

    def _validateKnown(self):
        """ Problems of the particles with known orientations. """
        particles, known = self.inputParticles.get(), self.calibrationParticles.get()
        if particles is None or known is None:
            return []
        errors = []
        coverage = self.coverage.get()
        # one out of range has a message of its own
        fewest = fewest_known(coverage if 0 < coverage < 1 else DEFAULT_COVERAGE)
        if known.getSize() < fewest:
            errors.append('At least %d particles with known orientations are needed to calibrate error bounds with a '
                          'nominal coverage of %g; the set has %d. Give more, lower the coverage, or leave the field '
                          'empty.'
                          % (fewest, coverage, known.getSize()))
        if not known.hasAlignmentProj():
            errors.append('The set "Particles with known orientations" has no projection alignment: give the output of '
                          'a 3D refinement, or leave the field empty.')
        if (known.getXDim() != particles.getXDim()
                or abs(known.getSamplingRate() / particles.getSamplingRate() - 1) > TOLERANCE):
            errors.append('The particles with known orientations must have the same box and pixel size as the input '
                          'particles, %s; they have %d px at %.4g Å/px. Extract them with the same box and pixel size.'
                          % (self._fieldOfView(), known.getXDim(), known.getSamplingRate()))
        return errors

    def _validateNetworkSymmetry(self):
        """ Problems of the symmetry asked for beside the one the network was trained with. """
        network = self.inputNetwork.get()
        if network is None or self._symmetry() in ('c1', (network.getSymmetry() or 'c1').lower()):
            return []
        return ['The network was trained with symmetry %s, but %s was requested. Leave the symmetry empty, give c1, or '
                'train a network with %s.' % (network.getSymmetry(), self._symmetry(), self._symmetry())]

    def _summary(self):
        if not hasattr(self, outputs.outputParticles.name):
            return self._unfinishedLines('The orientations are')
        summary = readSummary(self._runDirectory())
        lines = ['%d particles with orientations (refinement: %s), %.0f images per second.'
                 % (summary['n_particles'], REFINEMENTS[self.refinement.get()], summary['images_per_second']),
                 'Median expected error: *%.2f°*' % summary['median_expected_error_deg'], *self._boundLines(summary)]
        if not summary['model_applies']:
            # Scipion's summary knows no colours: the alarm is its first line, in bold and with a red sign
            lines.insert(0, '\U0001F534 *THIS NETWORK DOES NOT FIT THESE PARTICLES (%s)*: %s.'
                         % (summary.get('model_applies_cause', 'cause unknown'),
                            self._inFormWords(summary['model_applies_reason'].rstrip('.'))))
        lines += ['To check: %s' % self._inFormWords(doubt) for doubt in summary.get('model_applies_doubts', [])]
        return lines + self._reportLines(self._runDirectory())

    def _methods(self):
        if not hasattr(self, outputs.outputParticles.name):
            return []
        local = ' and local projection matching to a map'
        how = {REFINE_NONE: '', REFINE_LOCAL: local,
               REFINE_ADAPTIVE: local + ' and, for particles with an uncertain network pose or a poor match, an '
                                        'exhaustive search over orientations'}[self.refinement.get()]
        return ['Orientations of %d particles were determined with cryoforum by a neural network%s.'
                % (self.outputParticles.getSize(), how)]

    def _citations(self):
        return ['Chung2023', 'Nashed2021']

    # --------------------------- UTILS functions -----------------------------
    def _runDirectory(self):
        return self._getExtraPath('predict')

    def _reference(self):
        return None if self.refinement == REFINE_NONE else self.referenceVolume.get()

    def _networkDirectory(self):
        return self.inputNetwork.get().getRunDirectory()

    def _knownFile(self):
        """ The converted particles with known orientations; None where there are none. """
        return None if self.calibrationParticles.get() is None else self._getExtraPath('known_particles.star')

    def _inputFiles(self):
        known = filter(None, [self._knownFile()])
        return [*super()._inputFiles(), os.path.join(self._networkDirectory(), 'summary.json'), *known]
