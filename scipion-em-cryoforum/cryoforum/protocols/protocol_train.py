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
"""Protocol: train a network that finds orientations."""

from enum import Enum

import numpy as np

import pyworkflow.protocol.params as params
from pwem.protocols import EMProtocol

from .. import engine_names
from ..command import projectFolder, readSummary
from ..constants import HALF_SET, SYMMETRY_HELP
from ..convert import readAttributes
from ..engine_names import ACTIVATIONS, HALF_SETS, LABELLED_PARTICLES, LOSSES, POOLINGS, PRECISIONS
from ..objects import CryoForumNetwork
from .form_options import FormOption, meanings, newOnesLast
from .protocol_base import IMAGE_OPTIONS, PARTICLES, CryoForumBase

FROM_REFERENCE, FROM_ORIENTATIONS = 0, 1
# a stored protocol knows its choice by number: new ones come last
ENCODERS = newOnesLast(['compact', 'cryoforum', 'cryoposenet', 'polar'], engine_names.ENCODERS)
HEADS = newOnesLast(['qcqp', 'qcqp-psd', 's2s2', 'quaternion', 'euler'], engine_names.HEADS)
WITHOUT_POOLING = [place for place, name in enumerate(ENCODERS) if engine_names.ENCODERS[name].pooling is None]


class outputs(Enum):
    outputNetwork = CryoForumNetwork


class CryoForumProtTrain(EMProtocol, CryoForumBase):
    """ Trains a neural network that predicts the orientation and the shift of a particle image, and the uncertainty
    of the orientation.

    It learns from simulated projections of a reference map, made with the CTFs and the noise of your particles, or
    from particles whose orientations are known (a refined set). The network then predicts the orientations of any
    number of particles with the same box size in Å and a pixel size no coarser than that of the network: protocol
    *predict orientations*.
    """
    _label = 'train orientation network'
    _possibleOutputs = outputs
    OPTIONS = (PARTICLES,
               FormOption('reference', 'referenceVolume', getter='_referenceFile', evenHidden=True),
               FormOption('symmetry', 'symmetry', getter='_symmetry'),
               FormOption('max_minutes', 'maxMinutes'),
               FormOption('max_steps', 'maxSteps'),
               FormOption('from_checkpoint', 'startNetwork', getter='_startDirectory'),
               FormOption('encoder', 'encoder', ENCODERS),
               FormOption('network_box_size_px', 'networkBox', emptyIsAuto=True),
               FormOption('head', 'head', HEADS),
               FormOption('filter_channels', 'filterChannels'),
               FormOption('width', 'width', emptyIsAuto=True),
               FormOption('pooling', 'pooling', POOLINGS),
               FormOption('activation', 'activation', ACTIVATIONS),
               FormOption('dropout', 'dropout'),
               FormOption('augment', 'augment'),
               FormOption('particle_fraction', 'realFraction', getter='_realFraction', evenHidden=True),
               FormOption('shift_rms_angstrom', 'shiftRms', emptyIsAuto=True),
               FormOption('half_set', 'halfSet', HALF_SETS),
               FormOption('validation_fraction', 'validationFraction', evenHidden=True),
               FormOption('batch_size', 'batchSize'),
               FormOption('learning_rate', 'learningRate', emptyIsAuto=True),
               FormOption('precision', 'precision', PRECISIONS),
               FormOption('loss', 'loss', LOSSES),
               FormOption('bingham_weight', 'binghamWeight'),
               FormOption('shift_weight', 'shiftWeight'),
               FormOption('patience_evaluations', 'patience'),
               *IMAGE_OPTIONS)

    # -------------------------- DEFINE param functions -----------------------
    def _defineParams(self, form):
        self._defineGpuParams(form)
        form.addSection(label='Input')
        form.addParam('inputParticles', params.PointerParam, pointerClass='SetOfParticles', important=True,
                      label='Input particles',
                      help='Particles with CTF. When training on a reference map, only their CTFs and the spectrum '
                           'of their noise are used, so 1,000 to 10,000 of them are enough.')
        form.addParam('learnFrom', params.EnumParam, default=FROM_REFERENCE, display=params.EnumParam.DISPLAY_HLIST,
                      choices=['projections of a reference map', 'the particles and their orientations'],
                      label='Train on',
                      help='*projections of a reference map*: new simulated projections of the map below in every step, '
                           'with the CTFs and noise of the particles.\n'
                           '*the particles and their orientations*: the particles have orientations, for example from '
                           'RELION 3D auto-refine, which the network learns to reproduce.')
        form.addParam('referenceVolume', params.PointerParam, pointerClass='Volume', allowsNull=True,
                      condition='learnFrom == %d' % FROM_REFERENCE,
                      label='Reference map',
                      help='Its box and pixel size may differ from those of the particles: it is rescaled, and cropped '
                           'or padded. Its sampling rate must be correct; the scale of its grey values does not '
                           'matter.')
        form.addParam('symmetry', params.StringParam, default='c1', label='Symmetry', help=SYMMETRY_HELP)
        self._defineBudgetParams(form)
        self._defineNetworkParams(form)
        self._defineTrainingParams(form)
        self._defineThreads(form)

    def _defineBudgetParams(self, form):
        group = form.addGroup('Training budget')
        group.addParam('maxMinutes', params.FloatParam, default=60, validators=[params.Positive],
                       label='Time (minutes)',
                       help='Maximum training time; the learning-rate schedule is adapted to it. A few minutes are '
                            'enough, even on a CPU, if *predict orientations* refines the network\'s poses; a network '
                            'that is used alone improves for half an hour or longer.\n'
                            'An interrupted training resumes from its last checkpoint with *Continue*. To train a '
                            'finished network further, give it as *Start from network*.')
        group.addParam('maxSteps', params.IntParam, default=20000, validators=[params.Positive],
                       label='Training steps',
                       help='Maximum number of steps; one step processes one batch of images.')

    def _defineNetworkParams(self, form):
        form.addSection(label='Network')
        form.addParam('startNetwork', params.PointerParam, pointerClass='CryoForumNetwork', allowsNull=True,
                      label='Start from network (optional)',
                      help='A network trained before, to be trained further on these particles. It keeps its '
                           'architecture, its box and its symmetry. If empty, a new network is trained.')
        new = dict(condition='startNetwork is None')
        form.addParam('encoder', params.EnumParam, choices=ENCODERS, default=ENCODERS.index('polar'), **new,
                      label='Encoder',
                      help='Part of the network that processes the image; the default is *polar*.\n%s'
                           % meanings(engine_names.ENCODERS))
        form.addParam('networkBox', params.IntParam, default=0, validators=[params.GE(0)], **new,
                      label='Network box (px)',
                      help='The images are Fourier-cropped to this even size before they are passed to the network. '
                           '0: the particles\' own box, at most 128 on a GPU and 32 on a CPU. Smaller is faster.')
        advanced = dict(new, expertLevel=params.LEVEL_ADVANCED)
        form.addParam('head', params.EnumParam, choices=HEADS, default=0, label='Orientation head', **advanced,
                      help='Rotation parametrisation.\n%s' % meanings(engine_names.HEADS))
        form.addParam('filterChannels', params.IntParam, default=5, validators=[params.GE(0)], **advanced,
                      label='Filter channels',
                      help='Number of low-pass filtered copies of the image that the network receives along with the '
                           'image; 0 for none.')
        form.addParam('width', params.IntParam, default=0, validators=[params.GE(0)], **advanced,
                      label='Width', help="Channels of the encoder's first block; 0: the encoder's own number.")
        form.addParam('pooling', params.EnumParam, choices=POOLINGS, default=0, expertLevel=params.LEVEL_ADVANCED,
                      condition='startNetwork is None and encoder not in %s' % WITHOUT_POOLING, label='Pooling',
                      help='How the last feature maps become one vector (gem: generalised mean); auto: the encoder\'s '
                           'own. *polar* has none.')
        form.addParam('activation', params.EnumParam, choices=ACTIVATIONS, default=0, **advanced,
                      label='Activation', help="Non-linearity between the layers; auto: the encoder's own.")
        form.addParam('dropout', params.FloatParam, default=0., **advanced,
                      validators=[params.GE(0, error='must be 0 or more'), params.LT(1, error='must be below 1')],
                      label='Dropout', help='Fraction of features dropped at random in training.')

    def _defineTrainingParams(self, form):
        form.addSection(label='Training')
        form.addParam('augment', params.BooleanParam, default=True, label='Augment the images?',
                      help='Rotates, shifts and scales the training images and adds noise; their orientations and '
                           'shifts change accordingly.')
        form.addParam('realFraction', params.FloatParam, default=-1, expertLevel=params.LEVEL_ADVANCED,
                      condition='learnFrom == %d' % FROM_ORIENTATIONS, validators=[params.Range(-1, 1)],
                      label='Fraction of real images',
                      help='Fraction of the particles\' own images in each batch, between 0 and 1; the others are '
                           'simulated projections of the map reconstructed from the particles. -1: one half.')
        form.addParam('shiftRms', params.FloatParam, default=0, expertLevel=params.LEVEL_ADVANCED,
                      validators=[params.GE(0)],
                      label='Simulated shifts (Å)',
                      help='Standard deviation of the shift of simulated projections along x and y. '
                           '0: 4 % of the box.')
        form.addParam('halfSet', params.EnumParam, choices=['all particles', 'half 1', 'half 2'], default=0,
                      label='Particles to train with',
                      help='Train on one half set only (rlnRandomSubset of a refinement), so that the other stays '
                           'independent.')
        form.addParam('validationFraction', params.FloatParam, default=0.1, validators=[params.Range(0.01, 0.9)],
                      condition='learnFrom == %d and realFraction != 0' % FROM_ORIENTATIONS,
                      label='Held-out fraction',
                      help='Fraction of the particles that the network is not trained on: the errors in the summary '
                           'are measured on these.')
        self._defineImageParams(form)
        advanced = dict(expertLevel=params.LEVEL_ADVANCED)
        form.addParam('batchSize', params.IntParam, default=128, validators=[params.GE(2)], **advanced,
                      label='Batch size', help='Images in one training step.')
        form.addParam('learningRate', params.FloatParam, default=0, validators=[params.GE(0)], **advanced,
                      label='Learning rate',
                      help="Maximum learning rate of the one-cycle schedule. 0: the encoder's own.")
        form.addParam('precision', params.EnumParam, choices=PRECISIONS, default=0, **advanced,
                      label='Precision',
                      help='Number format of the encoder in training; auto: bfloat16 on GPUs and on CPUs '
                           'with hardware support (AMX), where it is faster; float32 on others.')
        form.addParam('loss', params.EnumParam, choices=LOSSES, default=0, **advanced,
                      label='Orientation loss',
                      help='*pairwise-to-own*: first *pairwise*, later *own* (Chung 2023).\n'
                           '*own*: the angle between the predicted and the true orientation of each image.\n'
                           '*pairwise*: for all pairs of images, the error of the angle between their two '
                           'orientations. It does not determine a common rotation or the hand.\n'
                           '*chordal*: the squared distance between the rotation matrices.')
        form.addParam('binghamWeight', params.FloatParam, default=1., validators=[params.GE(0)], **advanced,
                      label='Weight of the Bingham likelihood',
                      help='This term of the loss makes the network predict its uncertainty in degrees; training is '
                           'faster with it.')
        form.addParam('shiftWeight', params.FloatParam, default=1., validators=[params.GE(0)], **advanced,
                      label='Weight of the shift loss', help='0: the network does not learn shifts.')
        form.addParam('patience', params.IntParam, default=10, validators=[params.Positive], **advanced,
                      label='Patience (evaluations)',
                      help='Training stops early after this many evaluations without a better held-out loss.')

    # -------------------------- INSERT steps functions -----------------------
    def _insertAllSteps(self):
        self._insertEngineSteps(self._inputKey(), self.trainStep)

    def _inputKey(self):
        """ What the converted input depends on: another value makes Continue convert again. """
        volume = self._reference()
        return '%s from %s in %s' % (self.inputParticles.get().getFileName(),
                                     'orientations' if volume is None else volume.getFileName(), projectFolder())

    # -------------------------- STEPS functions ------------------------------
    def convertInputStep(self, inputKey):
        self._convertInput(withPoses=self._reference() is None)

    def trainStep(self, inputKey, options):
        summary = self._runEngine('train')
        self.info('Median error on %s: %.2f degrees' % (testedOn(summary), summary['validation_median_error_deg']))

    def createOutputStep(self, inputKey, options):
        summary = readSummary(self._runDirectory())
        particles = self.inputParticles.get()
        network = CryoForumNetwork(runDirectory=self._runDirectory(), pixelSize=particles.getSamplingRate(),
                                   boxSize=particles.getXDim(), networkBoxSize=summary['network_box_size_px'],
                                   symmetry=self._symmetry(),
                                   encoder=self._readCheckpoint(self._runDirectory())['network']['encoder'],
                                   validationMedianError=summary['validation_median_error_deg'],
                                   validationMeanError=summary['validation_mean_error_deg'])
        self._defineOutputs(**{outputs.outputNetwork.name: network})
        self._defineSourceRelation(self.inputParticles, network)
        if self._reference() is not None:
            self._defineSourceRelation(self.referenceVolume, network)

    # --------------------------- INFO functions ------------------------------
    def _validate(self):
        errors = self._validateParticles() + self._validateGpu() + self._validateSymmetry(self._symmetry())
        particles = self.inputParticles.get()
        if self.learnFrom == FROM_REFERENCE and self.referenceVolume.get() is None:
            errors.append('Give a reference map, or train on the particles and their orientations.')
        if self.learnFrom == FROM_ORIENTATIONS and particles is not None and not particles.hasAlignmentProj():
            errors.append('The particles have no orientations (projection alignment) to train on: give a refined '
                          'set, or train on projections of a reference map.')
        errors += self._validateUsed()
        errors += self._validateVolume(self._reference())
        if self.startNetwork.get() is None:
            return errors + self._validateNetworkBox()
        return errors + self._validateNetwork(self.startNetwork.get()) + self._validateStartSymmetry()

    def _validateStartSymmetry(self):
        own, given = (self.startNetwork.get().getSymmetry() or 'c1').lower(), self._symmetry()
        # RELION's i is i2
        if own.replace('i2', 'i') == given.replace('i2', 'i'):
            return []
        return ['The network to start from was trained with symmetry %s, which it keeps, but %s was requested. Give %s, '
                'or train a new network.' % (own, given, own)]

    def _validateUsed(self):
        """ Problems of the part of the particles that is to be trained with. """
        particles, half = self.inputParticles.get(), HALF_SETS[self.halfSet.get()]
        if particles is None or not particles.getSize():
            return []
        n = particles.getSize()
        which = 'the set has %d' % n
        if half != HALF_SETS[0]:
            values = readAttributes(particles, [HALF_SET])[1]
            halves = values.get(HALF_SET, np.full(n, np.nan))
            lacking = int(np.isnan(halves).sum())
            if lacking:
                return ['%d of %d particles belong to no half set (%s): train with all particles, or give particles '
                        'from a refinement.' % (lacking, n, HALF_SET)]
            n = int((halves == int(half)).sum())
            which = 'half set %s has %d' % (half, n)
        if self.learnFrom == FROM_ORIENTATIONS and n < LABELLED_PARTICLES:
            return ['At least %d particles are needed to train on their orientations; %s. Give more, or train on '
                    'projections of a reference map.' % (LABELLED_PARTICLES, which)]
        return [] if n else ['Half set %s has no particles: train with all particles.' % half]

    def _warnings(self):
        volume, particles = self._reference(), self.inputParticles.get()
        if volume is None or particles is None or self._sameFieldOfView(volume.getXDim() * volume.getSamplingRate()):
            return []
        return ['The reference map (%d px at %.4g Å/px) does not have the box size in Å of the particles (%s); it will '
                'be cropped or padded. Are both sampling rates correct?'
                % (volume.getXDim(), volume.getSamplingRate(), self._fieldOfView())]

    def _summary(self):
        if not hasattr(self, outputs.outputNetwork.name):
            return self._unfinishedLines('The network is')
        summary = readSummary(self._runDirectory())
        return ['Median error: *%.2f°* (mean %.2f°), on %s.' % (summary['validation_median_error_deg'],
                                                               summary['validation_mean_error_deg'], testedOn(summary)),
                'Trained for %.1f minutes.' % (summary['seconds'] / 60)] + self._reportLines(self._runDirectory())

    def _methods(self):
        if not hasattr(self, outputs.outputNetwork.name):
            return []
        source = ('simulated projections of a reference map' if self._reference() is not None
                  else 'particles with refined orientations')
        return ['A neural network (encoder %s, symmetry %s) was trained with cryoforum on %s; its median error on %s '
                'was %.2f°.' % (self.outputNetwork.getEncoder(), self._symmetry(), source,
                            testedOn(readSummary(self._runDirectory())), self.outputNetwork.getValidationMedianError())]

    def _citations(self):
        return ['Chung2023', 'Nashed2021']

    # --------------------------- UTILS functions -----------------------------
    def _runDirectory(self):
        return self._getExtraPath('train')

    def _reference(self):
        return self.referenceVolume.get() if self.learnFrom == FROM_REFERENCE else None

    def _startDirectory(self):
        start = self.startNetwork.get()
        return None if start is None else start.getRunDirectory()

    def _realFraction(self):
        """ The engine decides where this is None. """
        given = self.learnFrom == FROM_ORIENTATIONS and self.realFraction.get() >= 0
        return self.realFraction.get() if given else None

    def _engineOptions(self):
        options = super()._engineOptions()
        if self.startNetwork.get() is None:
            # where the encoder has no pooling the form hides it; runs made before have this value then
            options.setdefault('pooling', POOLINGS[0])
        return options


def testedOn(summary):
    """ The images of which a summary of train gives the errors. """
    return '%s that it was not trained on' % summary.get('validation_source', 'images')
