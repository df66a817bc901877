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
"""Protocol: an initial map and orientations from particles alone."""

import os
from enum import Enum

import pyworkflow.protocol.params as params
from pwem.objects import FSC, SetOfParticles, Volume
from pwem.protocols import ProtInitialVolume

from .. import engine_names
from ..command import isFinished, projectFolder, readProgress, readSummary
from ..constants import HALF_SET, SYMMETRY_HELP
from ..convert import copyWithPredictions, readFsc, readHalfSets, readPoses, readPredictions
from ..engine_names import AB_INITIO_METHODS, AB_INITIO_PARTICLES, STARTS_AGREE_DEG
from ..objects import CryoForumNetwork
from .form_options import FormOption, meanings, newOnesLast
from .protocol_base import COVERAGE, IMAGE_OPTIONS, PARTICLES, CryoForumBase

METHODS = AB_INITIO_METHODS
HYBRID, END_TO_END = range(2)
# the published ones come first
ENCODERS = newOnesLast(['cryoposenet', 'cryoforum', 'compact', 'polar'], engine_names.ENCODERS)
HEADS = newOnesLast(['s2s2', 'qcqp', 'qcqp-psd', 'quaternion', 'euler'], engine_names.HEADS)
UNDETERMINED = 'undetermined'
HALF_SET_COLUMN = 'rlnRandomSubset'  # where the engine says it has its half sets from, if not drawn


class outputs(Enum):
    outputVolume = Volume
    outputParticles = SetOfParticles
    outputNetwork = CryoForumNetwork
    outputFSC = FSC


class CryoForumProtAbInitio(CryoForumBase, ProtInitialVolume):
    """ Makes an initial map from particles and their CTF alone, and finds the orientation and the shift of every
    particle, with an error bound in degrees. No reference, no orientations and no 2D classes are needed.

    The outputs can be used directly: the map with half maps (RELION post-processing, a reference for refinement), the
    particles with orientations and uncertainties (*uncertainty subset*, RELION reconstruct and 3D auto-refine), and a
    network that predicts orientations of further particles (*predict orientations*).
    """
    _label = 'ab initio'
    _possibleOutputs = outputs
    OPTIONS = (PARTICLES,
               FormOption('method', 'method', METHODS),
               FormOption('symmetry', 'symmetry', getter='_symmetry'),
               FormOption('seeds', 'seeds'),
               FormOption('particle_diameter_angstrom', 'particleDiameter', emptyIsAuto=True),
               FormOption('max_shift_angstrom', 'maxShift', emptyIsAuto=True),
               FormOption('resolution_angstrom', 'resolution', emptyIsAuto=True),
               FormOption('hand_reference', 'handReference', getter='_referenceFile'),
               FormOption('train_minutes', 'trainMinutes', emptyIsAuto=True),
               FormOption('epochs', 'epochs'),
               FormOption('encoder', 'encoder', ENCODERS),
               FormOption('head', 'head', HEADS),
               FormOption('symmetric_loss', 'symmetricLoss'),
               FormOption('n_heads', 'nHeads'),
               FormOption('frequency_marching', 'frequencyMarching'),
               FormOption('random_pose_weight', 'randomPoseWeight'),
               FormOption('per_image_after_epoch', 'perImageAfterEpoch', emptyIsAuto=True),
               FormOption('search_steps', 'searchSteps'),
               FormOption('network_box_size_px', 'networkBox', emptyIsAuto=True),
               FormOption('batch_size', 'batchSize'),
               FormOption('learning_rate', 'learningRate', emptyIsAuto=True),
               COVERAGE,
               *IMAGE_OPTIONS)

    # -------------------------- DEFINE param functions -----------------------
    def _defineParams(self, form):
        self._defineGpuParams(form)
        form.addSection(label='Input')
        form.addParam('inputParticles', params.PointerParam, pointerClass='SetOfParticles', important=True,
                      label='Input particles',
                      help='Particles with CTF, at least %d; some thousands are better. Existing orientations are not '
                           'used. Sets with up to 15 %% junk were tested. Particles binned to a pixel size of 4 to 8 Å '
                           'are enough for an initial map, and much faster.' % AB_INITIO_PARTICLES)
        form.addParam('method', params.EnumParam, choices=METHODS, default=HYBRID,
                      display=params.EnumParam.DISPLAY_HLIST,
                      label='Method',
                      help='*hybrid*: searches from several random starts, then half maps, a network trained on them, '
                           'and refinement of every orientation by projection matching. Recommended.\n'
                           '*end-to-end*: a network and the map are trained together from random weights, as in '
                           'CryoPoseNet (Nashed 2021). It needs a GPU and images with a high signal-to-noise '
                           'ratio.')
        form.addParam('symmetry', params.StringParam, default='c1', label='Symmetry',
                      help=SYMMETRY_HELP + ' The hybrid method searches without symmetry first, finds the axes in the '
                           'map, and then imposes them. If in doubt, use c1.')
        form.addParam('seeds', params.IntParam, default=2, validators=[params.Positive],
                      condition='method == %d' % HYBRID,
                      label='Random starts',
                      help='Number of independent searches; the best is chosen by its fit to held-out images. Agreement '
                           'between searches indicates a correct map. The run time grows with the number of searches. '
                           'If none finds a convincing map, more searches are made, up to four in total.')
        form.addParam('particleDiameter', params.FloatParam, default=0, validators=[params.GE(0)],
                      label='Particle diameter (Å)',
                      help='Diameter of the spherical solvent mask. 0: 90 % of the box.')
        form.addParam('maxShift', params.FloatParam, default=0, validators=[params.GE(0)],
                      condition='method == %d' % HYBRID,
                      label='Maximum shift (Å)',
                      help='Maximum distance of a particle from the centre of its image. 0 means one eighth of the '
                           'box.')
        form.addParam('resolution', params.FloatParam, default=0, validators=[params.GE(0)],
                      label='High-resolution limit (Å)',
                      help='Information beyond this resolution is not used; a coarser limit is faster. 0: the Nyquist '
                           'limit of the particles. End-to-end trains at full resolution and applies this limit only '
                           'to the final map.')
        form.addParam('handReference', params.PointerParam, pointerClass='Volume', allowsNull=True,
                      condition='method == %d' % HYBRID,
                      label='Hand reference (optional)',
                      help='Projections cannot distinguish a molecule from its mirror image. If you give a map of known '
                           'hand, of the same or a similar molecule, the output takes its hand; the map is used for '
                           'nothing else. Without one the hand remains undetermined.')
        self._defineMethodParams(form)
        self._defineThreads(form)

    def _defineMethodParams(self, form):
        form.addSection(label='Method')
        form.addParam('trainMinutes', params.FloatParam, default=0, validators=[params.GE(0)],
                      label='Training time (minutes)',
                      help='Training time of the network. 0: half of the time of the preceding stages, at least '
                           '1 minute (hybrid), or as long as the epochs take (end-to-end).')
        self._defineEndToEndParams(form)
        advanced = dict(expertLevel=params.LEVEL_ADVANCED)
        form.addParam('searchSteps', params.IntParam, default=400, validators=[params.Positive], **advanced,
                      condition='method == %d' % HYBRID,
                      label='Search steps',
                      help='Steps of each search from a random start. More steps may help if the searches do not agree.')
        form.addParam('networkBox', params.IntParam, default=0, validators=[params.GE(0)], **advanced,
                      label='Network box (px)',
                      help='The images are Fourier-cropped to this even size before they are passed to the network. '
                           '0: the particles\' own box, at most 128 on a GPU and 32 on a CPU.')
        form.addParam('batchSize', params.IntParam, default=128, validators=[params.GE(2)], **advanced,
                      label='Batch size', help='Number of images processed at once; fewer take less memory.')
        form.addParam('learningRate', params.FloatParam, default=0, validators=[params.GE(0)], **advanced,
                      label='Learning rate', help="Maximum learning rate of the network. 0: the method's own.")
        self._defineCoverageParam(form)
        self._defineImageParams(form)

    def _defineEndToEndParams(self, form):
        endToEnd = dict(condition='method == %d' % END_TO_END)
        form.addParam('epochs', params.IntParam, default=30, validators=[params.Positive], **endToEnd,
                      label='Epochs', help='Passes over all images.')
        form.addParam('encoder', params.EnumParam, choices=ENCODERS, default=0, **endToEnd, label='Encoder',
                      help='Part of the network that processes the image. In a test on noise-free images, *polar* with '
                           '*Weight of random projections* 1 gave the smallest median error.\n%s'
                           % meanings(engine_names.ENCODERS))
        form.addParam('head', params.EnumParam, choices=HEADS, default=0, **endToEnd, label='Orientation head',
                      help='Rotation parametrisation.\n%s' % meanings(engine_names.HEADS))
        group = form.addGroup('Avoiding local minima', **endToEnd)
        group.addParam('symmetricLoss', params.BooleanParam, default=False, **endToEnd, label='Symmetric loss?',
                       help='Each image is also encoded after a rotation by 180 degrees, and the better of the two '
                            'predictions is used.')
        group.addParam('nHeads', params.IntParam, default=1, validators=[params.Positive], **endToEnd,
                       label='Hypotheses for each image',
                       help='Orientations that the network proposes for each image; only the best is trained.')
        group.addParam('frequencyMarching', params.BooleanParam, default=False, **endToEnd,
                       label='Low frequencies first?', help='Images and map are compared at low resolution first.')
        group.addParam('randomPoseWeight', params.FloatParam, default=0, validators=[params.GE(0)], **endToEnd,
                       label='Weight of random projections',
                       help='Weight of a loss on projections of the current map at random orientations, which the '
                            'network has to recover. 0: without this loss.')
        group.addParam('perImageAfterEpoch', params.IntParam, default=0, validators=[params.GE(0)], **endToEnd,
                       label='Optimise orientations directly after epoch',
                       help='After this many epochs the orientation of each image is optimised directly, without the '
                            'network; it then has no uncertainty. 0: never.')

    # -------------------------- INSERT steps functions -----------------------
    def _insertAllSteps(self):
        self._insertEngineSteps(self._inputKey(), self.abInitioStep)

    def _inputKey(self):
        """ What the converted input depends on: another value makes Continue convert again. """
        volume = self._reference()
        return '%s, %s, %s' % (self.inputParticles.get().getFileName(), volume and volume.getFileName(),
                               projectFolder())

    # -------------------------- STEPS functions ------------------------------
    def convertInputStep(self, inputKey):
        self._convertInput(withPoses=False)

    def abInitioStep(self, inputKey, options):
        summary = self._runEngine('ab-initio')
        if not summary['converged']:
            self.warning('Did not converge: %s' % self._reason())

    def createOutputStep(self, inputKey, options):
        made = {outputs.outputVolume.name: self._makeVolume(), outputs.outputParticles.name: self._makeParticles()}
        network, fsc = self._makeNetwork(), self._makeFsc()
        for name, output in ((outputs.outputNetwork.name, network), (outputs.outputFSC.name, fsc)):
            if output is None:
                self._dropOutput(name)
            else:
                made[name] = output
        self._defineOutputs(**made)
        for name, output in made.items():
            if name == outputs.outputParticles.name:
                self._defineTransformRelation(self.inputParticles, output)
            else:
                self._defineSourceRelation(self.inputParticles, output)
        if self._reference() is not None:
            self._defineSourceRelation(self.handReference, made[outputs.outputVolume.name])

    def _makeVolume(self):
        """ No origin, as RELION's volumes: Scipion then takes the middle of the box for all of them. """
        particles = self.inputParticles.get()
        volume = Volume()
        volume.setFileName(self._runFile('map.mrc'))
        volume.setSamplingRate(particles.getSamplingRate() * particles.getXDim() / volume.getXDim())
        halves = [self._runFile('map_half%d.mrc' % half) for half in (1, 2)]
        if all(map(os.path.exists, halves)):
            volume.setHalfMaps(halves)
        volume.setObjComment('' if self._converged() else 'Did not converge')
        return volume

    def _makeParticles(self):
        particles = self.inputParticles.get()
        posterior, star = self._runFile('orientation_posterior.npz'), self._runFile('particles.star')
        # orientations that no network gave have no uncertainties
        found = (readPredictions(posterior, particles.getSamplingRate()) if os.path.exists(posterior)
                 else readPoses(star, particles.getSamplingRate()))
        output = self._createSetOfParticles()
        copyWithPredictions(particles, output, found, readHalfSets(star))
        return output

    def _makeNetwork(self):
        """ The trained network; None where the method left none. """
        checkpoint = self._readCheckpoint(self._runDirectory())
        if checkpoint is None:
            return None
        summary = readSummary(self._runDirectory())
        particles = self.inputParticles.get()
        return CryoForumNetwork(runDirectory=self._runDirectory(), pixelSize=particles.getSamplingRate(),
                                boxSize=particles.getXDim(), networkBoxSize=checkpoint['network']['box_size_px'],
                                symmetry=self._symmetry(), encoder=checkpoint['network']['encoder'],
                                validationMedianError=summary.get('validation_median_error_deg'),
                                validationMeanError=summary.get('validation_mean_error_deg'))

    def _makeFsc(self):
        path = self._runFile('fsc.csv')
        if not os.path.exists(path):
            return None
        fsc = FSC()
        fsc.setData(*readFsc(path))
        return fsc

    # --------------------------- INFO functions ------------------------------
    def _validate(self):
        errors = self._validateParticles(AB_INITIO_PARTICLES) + self._validateGpu()
        errors += self._validateSymmetry(self._symmetry())
        return errors + self._validateVolume(self._reference()) + self._validateNetworkBox()

    def _warnings(self):
        warnings = []
        if self.method == END_TO_END and not self.usesGpu():
            warnings.append('The end-to-end method takes many hours without a GPU; hybrid takes minutes.')
        particles = self.inputParticles.get()
        if particles is not None and particles.getXDim():
            side = particles.getXDim() * particles.getSamplingRate()
            if self.particleDiameter.get() > side:
                warnings.append('The particle diameter, %.0f Å, is larger than the box, %.0f Å: is the sampling rate '
                                'right?' % (self.particleDiameter.get(), side))
        if self.isContinued() and not self._converged():
            warnings.append('The run did not converge: %s To search again, change the parameters (random starts, '
                            'diameter, maximum shift) or the random seed.' % self._reason())
        return warnings

    def checkSummaryWarnings(self):
        """ Puts a warning sign on the protocol's box. """
        super().checkSummaryWarnings()
        warning = None if self._converged() else '*Did not converge*: %s' % self._reason()
        if warning and warning not in self.summaryWarnings:
            self.addSummaryWarning(warning)

    def _summary(self):
        if not hasattr(self, outputs.outputVolume.name):
            return self._progressLines()
        summary = readSummary(self._runDirectory())
        lines = []
        if not summary['converged']:
            lines += ['*Did not converge*: %s' % self._reason(),
                      'Neither the map nor the orientations should be relied on.']
        lines.append('Map from %d particles, symmetry %s, resolution *%.1f Å* (FSC 0.143).'
                     % (summary['n_particles'], summary['symmetry'], summary['resolution_angstrom']))
        if summary.get('median_expected_error_deg') is not None:
            lines.append('Median expected error of the orientations: *%.2f°*' % summary['median_expected_error_deg'])
        lines += self._boundLines(summary)
        if self._keepsOtherHalfSets(summary):
            lines.append('The half sets of the input particles are incomplete, so the half maps were made from new '
                         'random half sets. The output particles keep their original half sets, which differ from '
                         'those of the half maps.')
        if summary.get('seeds_agreement_deg') is not None:
            agreement = summary['seeds_agreement_deg']
            lines.append('Another search agrees with the best one within %.1f°.' % agreement
                         if agreement <= STARTS_AGREE_DEG else
                         '*No other search agrees with the best one* (the nearest differs by %.0f°): another random '
                         'start may give a different map.' % agreement)
        near = summary.get('near_half_turn')
        if near is not None:
            lines.append('Pseudo-symmetry (C2) resolved: a rotation by 180° nearly superimposes the molecule on '
                         'itself, and each image was assigned one of the two poses.'
                         if near['is_told_apart'] else
                         '*Pseudo-symmetry (C2) not resolved*: a rotation by 180° superimposes the map on itself. '
                         'If the molecule has a two-fold axis, run again with its symmetry; otherwise orientations are '
                         'determined only up to that rotation.')
        if summary.get('validation_median_error_deg') is not None:
            lines.append('Median error of the network alone: %.1f°, on images that it was not trained on.'
                         % summary['validation_median_error_deg'])
        lines.append('Hand: %s%s' % (summary['hand'], ' (the map may be the mirror image)'
                                     if summary['hand'] == UNDETERMINED else ''))
        lines.append('Method: %s. Run time: %s.' % (summary['method'], duration(summary['seconds'])))
        return lines + self._reportLines(self._runDirectory())

    def _progressLines(self):
        """ How far the running engine is. """
        progress = readProgress(self._runDirectory())
        if progress is None:
            return self._unfinishedLines('The map is')
        if self.isAborted() or self.isFailed():
            return self._unfinishedLines('The map is') + ['It was in stage %d of %d: *%s* (%.0f %% done).' % (
                progress['stage_number'], progress['n_stages'], progress['stage'], 100 * progress['fraction'])]
        lines = ['Stage %d of %d: *%s*' % (progress['stage_number'], progress['n_stages'], progress['stage']),
                 '*%.0f %%* done in %s%s' % (100 * progress['fraction'], duration(progress['seconds']),
                                             ', about %s left' % duration(progress['seconds_left'])
                                             if progress.get('seconds_left') is not None else '')]
        if progress.get('resolution_angstrom') is not None:
            lines.append('Resolution so far: *%.1f Å*' % progress['resolution_angstrom'])
        if progress.get('message') not in (None, '', progress['stage']):
            lines.append(progress['message'])
        page = os.path.abspath(self._runFile('live.html'))
        return lines + (['Follow it in a browser: [[file://%s][%s]]' % (page, page)] if os.path.exists(page) else [])

    def _methods(self):
        if not hasattr(self, outputs.outputVolume.name) or not self._converged():
            return []
        summary = readSummary(self._runDirectory())
        search = ('a stochastic search from a random start' if len(summary.get('seeds', ())) == 1 else
                  'stochastic searches from random starts')
        how = ('%s, half-map refinement, a neural network trained on the half maps, and projection matching' % search
               if self.method == HYBRID else 'a neural network and a map that were trained together')
        return ['An ab initio map and the orientations of %d particles (symmetry %s) were determined with cryoforum by '
                '%s; the half maps agreed to %.1f Å (FSC 0.143).'
                % (self.outputParticles.getSize(), self._symmetry(), how, summary['resolution_angstrom'])]

    def _citations(self):
        return ['Chung2023', 'Nashed2021']

    # --------------------------- UTILS functions -----------------------------
    def _runDirectory(self):
        return self._getExtraPath('ab_initio')

    def _runFile(self, *names):
        return os.path.join(self._runDirectory(), *names)

    def _converged(self):
        """ False only where a finished run says so. The project asks this of every protocol that it shows. """
        return not isFinished(self._runDirectory()) or readSummary(self._runDirectory()).get('converged', True)

    def _reason(self):
        return self._inFormWords(readSummary(self._runDirectory()).get('converged_reason') or 'no reason is given.')

    def _keepsOtherHalfSets(self, summary):
        """ True where the engine could not use the half sets that particles came with: all of one half, or some of
        none. A set has a column where its first particle has the attribute. """
        if summary.get('half_sets', HALF_SET_COLUMN) == HALF_SET_COLUMN or self.inputParticles.get() is None:
            return False
        first = self.inputParticles.get().getFirstItem()
        return first is not None and first.hasAttribute(HALF_SET)

    def _reference(self):
        """ The map of known hand. The end-to-end method has no use for it, even where the form still holds one. """
        return self.handReference.get() if self.method == HYBRID else None


def duration(seconds):
    """ '45 s', '12 min', '3.5 h' """
    if seconds < 90:
        return '%.0f s' % seconds
    return '%.0f min' % (seconds / 60) if seconds < 5400 else '%.1f h' % (seconds / 3600)
