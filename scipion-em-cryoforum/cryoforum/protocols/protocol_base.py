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
"""What the protocols share: parameters, validation, and running the engine."""

import json
import os
import re
import subprocess

import pyworkflow.protocol.params as params
from pyworkflow.constants import NEW

from .. import Plugin
from ..command import buildArguments, buildProgram, escapePercent, prepareRun, readSummary, tail
from ..constants import SYMMETRY_HELP
from ..convert import validateStack, writeParticlesStar, writeReferenceMap
from ..engine_names import DEFAULT_COVERAGE, LARGEST_FORM_COVERAGE, NETWORK_BOX_PX
from .form_options import FormOption, inFormWords

SYMMETRY = re.compile(r'^(c[1-9]\d*|d[1-9]\d*|t|o|i[1-4]?)$', re.IGNORECASE)
TOLERANCE = 0.01  # of pixel sizes and box sizes in Angstrom
SMALLEST_BOX = NETWORK_BOX_PX
EXIT_NOT_CONVERGED = 3  # the engine wrote all files, but no reliable result was obtained from the data

# choices of the forms: the engine's name -> what the form says
CONTRAST = {'auto': 'automatic', 'bright': 'bright protein', 'dark': 'dark protein'}
CTF_STATE = {'auto': 'as the set says', 'raw': 'not corrected', 'phase-flipped': 'phases flipped',
             'multiplied': 'multiplied by the CTF'}
CTF_STATES = list(CTF_STATE)
CTF_STATE_AUTO = 0

# options of several protocols, with the parameters that CryoForumBase defines
PARTICLES = FormOption('particles', 'inputParticles', getter='_starFile')
COVERAGE = FormOption('coverage', 'coverage')
IMAGE_OPTIONS = (FormOption('contrast', 'contrast', list(CONTRAST)),
                 FormOption('ctf_state', 'ctfState', CTF_STATES, getter='_ctfStateName'),
                 FormOption('seed', 'seed'))


def ctfStateOf(particles):
    """ What Scipion knows of the CTF correction of a set, as the engine calls it. """
    if particles.isPhaseFlipped():
        return 'phase-flipped'
    return 'multiplied' if particles.isAmplitudeCorrected() else CTF_STATES[CTF_STATE_AUTO]


class CryoForumBase:
    """ Mixin of the protocols that run the engine on particles.

    Each has a method _runDirectory() and, if it may use a map, _reference(), the volume or None. """
    _devStatus = NEW
    # a FormOption for each parameter of the form that sets an option of the engine
    OPTIONS = ()

    # ------------------------------ parameters ------------------------------
    def _defineGpuParams(self, form):
        form.addHidden(params.USE_GPU, params.BooleanParam, default=True,
                       label='Use GPU?',
                       help='Without a GPU set this to No.')
        form.addHidden(params.GPU_LIST, params.StringParam, default='0',
                       label='GPU ID',
                       help='Number of the GPU to use; the first one is 0. One GPU is used. Without a GPU choose *No*.')

    def _defineCoverageParam(self, form):
        form.addParam('coverage', params.FloatParam, default=DEFAULT_COVERAGE,
                      validators=[params.Range(0.01, LARGEST_FORM_COVERAGE, error='must be between 0.01 and %s'
                                              % LARGEST_FORM_COVERAGE)],
                      expertLevel=params.LEVEL_ADVANCED,
                      label='Nominal coverage of the error bounds',
                      help='Every particle gets an expected error and an error bound, both in degrees. The nominal '
                           'coverage is the fraction of particles whose error should be within the bound: 0.9 means '
                           '9 in 10. A higher coverage makes larger bounds. The report also shows the empirical '
                           'coverage: the fraction of the calibration particles, whose orientations are known, that '
                           'actually had an error within the bound.')

    def _defineImageParams(self, form):
        form.addParam('contrast', params.EnumParam, choices=list(CONTRAST.values()),
                      default=0, expertLevel=params.LEVEL_ADVANCED,
                      label='Contrast of the images',
                      help='Whether protein is brighter or darker than its surroundings; RELION expects it to be '
                           'brighter. *automatic*: measured on the images, and written to the log.')
        form.addParam('ctfState', params.EnumParam,
                      choices=list(CTF_STATE.values()),
                      default=CTF_STATE_AUTO, expertLevel=params.LEVEL_ADVANCED,
                      label='CTF correction of the images',
                      help='Correction that the images already have. *as the set says*: the correction that is stored '
                           'with the set in Scipion; where there is none, it is measured on the images.')
        form.addParam('seed', params.IntParam, default=0, expertLevel=params.LEVEL_ADVANCED,
                      label='Random seed', help='Seed of all random numbers: the same seed repeats the same run.')

    def _defineThreads(self, form):
        form.addParallelSection(threads=4, mpi=0)

    # ------------------------------ steps ------------------------------
    def _insertEngineSteps(self, inputKey, engineStep):
        """ Conversion of the input, the engine's job with its options, outputs.

        Continue repeats the steps whose own arguments have changed, and from pyworkflow 3.11 on no others: so each has
        those of the steps before it, too.
        """
        options = str(sorted(self._engineOptions().items()))
        self._insertFunctionStep(self.convertInputStep, inputKey, needsGPU=False)
        self._insertFunctionStep(engineStep, inputKey, options)
        self._insertFunctionStep(self.createOutputStep, inputKey, options, needsGPU=False)

    def _starFile(self):
        return self._getExtraPath('input_particles.star')

    def _referenceFile(self):
        """ The converted map; None where there is none. """
        return None if self._reference() is None else self._getExtraPath('reference.mrc')

    def _inputFiles(self):
        """ Converted input: a run that was made from other files is not continued. """
        return list(filter(None, [self._starFile(), self._referenceFile()]))

    def _convertInput(self, withPoses):
        particles = self.inputParticles.get()
        n = writeParticlesStar(particles, self._starFile(), self._getExtraPath('stacks'), withPoses=withPoses)
        self.info('%d particles written to %s' % (n, self._starFile()))
        if self._reference() is not None:
            writeReferenceMap(self._reference(), self._referenceFile())

    def _engineOptions(self):
        """ The engine's options (command line without the dashes). """
        return {option.name: option.value(self) for option in self.OPTIONS if option.isGiven(self)}

    def _ctfStateName(self):
        if self.ctfState.get() == CTF_STATE_AUTO:
            return ctfStateOf(self.inputParticles.get())
        return CTF_STATES[self.ctfState.get()]

    def _symmetry(self):
        """ What the form says; '' where that is nothing. """
        return (self.symmetry.get() or '').strip().lower()

    def _inFormWords(self, text):
        """ A sentence of the engine with the labels of this form in the place of its options. """
        return inFormWords(text, self)

    def _runEngine(self, job):
        """ Runs a job of the engine; goes on with an earlier run where that fits. Returns the summary. """
        runDirectory, options, useGpu = self._runDirectory(), self._engineOptions(), self.usesGpu()
        resume = prepareRun(runDirectory, options, self._inputFiles())
        options.update(out=runDirectory, device='cuda' if useGpu else 'cpu')
        arguments = buildArguments(job, options) + (' --resume' if resume else '')
        if resume and not os.path.exists(os.path.join(runDirectory, 'summary.json')):
            self.info('Going on with the unfinished run in %s' % runDirectory)
        try:
            self.runJob(buildProgram(Plugin.getPython(), useGpu, self.numberOfThreads.get()),
                        escapePercent(arguments, useGpu), env=Plugin.getEnviron(), numberOfMpi=1)
        except subprocess.CalledProcessError as error:
            if error.returncode == EXIT_NOT_CONVERGED:
                return readSummary(runDirectory)
            message = self._inFormWords(tail(self._getLogsPath('run.stderr')))
            raise RuntimeError('cryoforum %s stopped (exit code %d).\n%s' % (job, error.returncode, message)) from None
        return readSummary(runDirectory)

    @staticmethod
    def _readCheckpoint(runDirectory):
        """ What describes the network of a finished run; None where there is none. """
        path = os.path.join(runDirectory, 'checkpoint', 'checkpoint.json')
        if not os.path.exists(path):
            return None
        with open(path) as file:
            return json.load(file)

    @staticmethod
    def _boundLines(summary):
        """ Nominal and empirical coverage of the error bounds, and the error that the images themselves show. """
        lines = []
        if summary.get('particles_observed_error_deg') is not None:
            lines.append("Median error without junk: expected *%.2f°*; by the agreement of orientations from two halves of "
                         "each image's Fourier pixels *%.2f°*."
                         % (summary['particles_expected_error_deg'], summary['particles_observed_error_deg']))
        if summary.get('error_bound_coverage') is not None:
            lines.append('Error bounds: nominal coverage %.3g %% of the particles; empirical coverage on %s: *%.3g %%*.'
                         % (100 * summary['error_bound_coverage'], summary['calibration_source'],
                            100 * summary['error_bound_held']))
        return lines

    def _unfinishedLines(self, what):
        """ For the summary of a run without output; what: its subject and verb, "The map is". """
        if self.isAborted():
            return ['The run was stopped. To continue from where it was: *Edit*, run mode *Continue*, *Execute*.']
        if self.isFailed():
            return ['The run failed, and the error below says why. After the cause is fixed, it continues from '
                    'where it was: *Edit*, run mode *Continue*, *Execute*.']
        return ['%s not ready yet. The Output Log shows the progress and the time left.' % what]

    def _reportLines(self, runDirectory):
        """ A link to the engine's report, for the summary. """
        report = os.path.abspath(os.path.join(runDirectory, 'report.html'))
        return ['Report with figures: [[file://%s][%s]]' % (report, report)] if os.path.exists(report) else []

    # ------------------------------ outputs ------------------------------
    def _dropOutput(self, name):
        """ Removes an output of an earlier run that this one does not make: Scipion itself does so at Restart only. """
        output = getattr(self, name, None)
        if output is not None:
            self.deleteOutput(output)

    def copy(self, other, *args, **kwargs):
        """ This is how the project takes over what its run has done, but outputs that the run dropped would stay. """
        for name in (getattr(each, 'name', each) for each in self._possibleOutputs):
            if hasattr(self, name) and not hasattr(other, name):
                self._dropOutput(name)
        return super().copy(other, *args, **kwargs)

    # ------------------------------ validation ------------------------------
    def _validateParticles(self, minimum=1):
        """ Problems of the input particles, all of them; minimum: how many there must be. """
        particles = self.inputParticles.get()
        if particles is None:
            return []  # Scipion itself reports an empty input
        errors = []
        if particles.getSize() == 0:
            errors.append('The input set is empty: give a set with particles.')
        elif particles.getSize() < minimum:
            errors.append('At least %d particles are needed; the set has %d.' % (minimum, particles.getSize()))
        else:
            errors += validateStack(particles.getFirstItem().getFileName())
        if not particles.getSamplingRate():
            errors.append('The particles have no pixel size: give the sampling rate at their import.')
        if not particles.hasCTF():
            errors.append('The particles have no CTF: import them with CTF columns, or estimate the CTF and extract '
                          'them with it.')
        acquisition = particles.getAcquisition()
        for name, value in (('voltage', acquisition.getVoltage()),
                            ('spherical aberration', acquisition.getSphericalAberration()),
                            ('amplitude contrast', acquisition.getAmplitudeContrast())):
            if value is None:
                errors.append('The particles have no %s: set it in the acquisition of the import.' % name)
        if particles.getXDim() % 2:
            errors.append('The box must be even; the particles have %d px. Window or rescale them to an even box '
                          '(RELION preprocess particles).' % particles.getXDim())
        return errors

    def _validateVolume(self, volume, sameFieldOfView=False):
        """ Problems of a reference map beside the particles. """
        particles = self.inputParticles.get()
        if volume is None or particles is None:
            return []
        errors = []
        x, y, z = volume.getDim()
        if not x == y == z:
            errors.append('The reference must be a cube; it is %d x %d x %d voxels.' % (x, y, z))
        elif x % 2:
            errors.append('The reference must have an even box; it has %d px. Crop it by one (RELION crop/resize '
                          'volumes).' % x)
        if not volume.getSamplingRate():
            errors.append('The reference has no pixel size: give the sampling rate at its import.')
        elif sameFieldOfView and not self._sameFieldOfView(x * volume.getSamplingRate()):
            errors.append('The reference must have the box size in Å of the particles, %s; it has %d px at %.4g Å/px. '
                          'Rescale and crop it (RELION crop/resize volumes), or correct its sampling rate.'
                          % (self._fieldOfView(), x, volume.getSamplingRate()))
        return errors

    def _fieldOfView(self):
        particles = self.inputParticles.get()
        return '%d px at %.4g Å/px' % (particles.getXDim(), particles.getSamplingRate())

    def _sameFieldOfView(self, side):
        """ side: of another box, Angstrom. """
        particles = self.inputParticles.get()
        return abs(side / (particles.getXDim() * particles.getSamplingRate()) - 1) <= TOLERANCE

    def _validateNetwork(self, network, matchesOwnMap=False):
        """ Problems of a trained network beside the particles; matchesOwnMap: it is used with the map it was made
        from, which has its box size in Angstrom. """
        particles = self.inputParticles.get()
        if network is None or particles is None:
            return []
        errors = []
        if not network.exists():
            errors.append('The files of the network are gone: %s. Train it again.' % network.getRunDirectory())
        if particles.getSamplingRate() > network.getNetworkPixelSize() * (1 + TOLERANCE):
            errors.append('The network sees pixels of %.3f Å and cannot use coarser images; these particles have '
                          '%.3f Å. Extract them with less binning, correct their sampling rate, or train a network '
                          'for them.' % (network.getNetworkPixelSize(), particles.getSamplingRate()))
        if matchesOwnMap and not self._sameFieldOfView(network.getFieldOfView()):
            errors.append('The network was trained on particles of %d px at %.4g Å/px; these have another box size in '
                          'Å, %s. Extract them with that box, correct their sampling rate, train a network for '
                          'them, or give a reference map with their box size.'
                          % (network.getBoxSize(), network.getPixelSize(), self._fieldOfView()))
        return errors

    def _validateNetworkBox(self):
        """ Problems of the box of a network that is to be trained, which are those of the form's *Network box*. """
        box, particles = self.networkBox.get(), self.inputParticles.get()
        if box and (box % 2 or box < SMALLEST_BOX or (particles is not None and box > particles.getXDim())):
            return ['The network box must be even, at least %d px and at most the box of the particles; it is %d px. '
                    'Give another, or 0 for the usual one.' % (SMALLEST_BOX, box)]
        if particles is not None and 0 < particles.getXDim() < SMALLEST_BOX:
            return ['A network needs images of at least %d px; the particles have %d px. Extract them with less '
                    'binning or a larger box.' % (SMALLEST_BOX, particles.getXDim())]
        return []

    def _validateSymmetry(self, symmetry):
        if SYMMETRY.match(symmetry or ''):
            return []
        return ['Unknown symmetry "%s". %s' % (symmetry, SYMMETRY_HELP.split('. See')[0] + '.')]

    def _validateGpu(self):
        """ Problems of the GPU asked for; in a queue nobody knows yet which computer will have to have it. """
        if not self.usesGpu():
            return []
        if not re.match(r'^\s*\d+\s*$', self.gpuList.get() or ''):
            return ['One GPU is used; the list of GPU IDs is "%s". Give one number, 0 for the first GPU.'
                    % (self.gpuList.get() or '')]
        if not self.useQueue() and not Plugin.hasGpu():
            return ['No NVIDIA GPU was found on this computer: set "GPU IDs" to No (slower), or run in a queue.']
        return []
