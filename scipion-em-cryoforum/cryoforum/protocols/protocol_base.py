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

import os
import re
import subprocess

import pyworkflow.protocol.params as params
from pyworkflow.constants import NEW

from .. import Plugin
from ..command import buildArguments, buildProgram, escapePercent, prepareRun, readSummary, tail
from ..constants import SYMMETRY_HELP
from ..convert import writeParticlesStar, writeReferenceMap

SYMMETRY = re.compile(r'^(c[1-9]\d*|d[1-9]\d*|t|o|i[1-4]?)$', re.IGNORECASE)
PIXEL_SIZE_TOLERANCE = 0.01

CONTRASTS = ['auto', 'bright', 'dark']
CTF_STATES = ['auto', 'raw', 'phase-flipped', 'multiplied']
CTF_STATE_AUTO = 0


class CryoForumBase:
    """ Mixin of the protocols that run the engine on particles. """
    _devStatus = NEW

    # ------------------------------ parameters ------------------------------
    def _defineGpuParams(self, form):
        form.addHidden(params.USE_GPU, params.BooleanParam, default=True,
                       label='Use GPU?',
                       help='Training on a GPU is 20 to 100 times faster than on a few CPU cores. Without a GPU set '
                            'this to No.')
        form.addHidden(params.GPU_LIST, params.StringParam, default='0',
                       label='GPU ID',
                       help='Number of the GPU to use (the first one is 0). One GPU is used.')

    def _defineImageParams(self, form):
        form.addParam('contrast', params.EnumParam, choices=['automatic', 'bright protein', 'dark protein'],
                      default=0, expertLevel=params.LEVEL_ADVANCED,
                      label='Contrast of the images',
                      help='RELION wants protein brighter than its surroundings. *automatic* measures it on the '
                           'images and writes to the log what it found.')
        form.addParam('ctfState', params.EnumParam,
                      choices=['as the set says', 'not corrected', 'phases flipped', 'multiplied by the CTF'],
                      default=CTF_STATE_AUTO, expertLevel=params.LEVEL_ADVANCED,
                      label='CTF correction of the images',
                      help='What was done to the images before. *as the set says*: phases flipped where Scipion '
                           'knows that they are; otherwise the engine measures it.')
        form.addParam('seed', params.IntParam, default=0, expertLevel=params.LEVEL_ADVANCED,
                      label='Random seed', help='The same seed repeats the same run.')

    def _defineThreads(self, form):
        form.addParallelSection(threads=4, mpi=0)

    # ------------------------------ steps ------------------------------
    def _starFile(self):
        return self._getExtraPath('input_particles.star')

    def _referenceFile(self):
        return self._getExtraPath('reference.mrc')

    def _convertInput(self, volume, withPoses):
        particles = self.inputParticles.get()
        n = writeParticlesStar(particles, self._starFile(), self._getExtraPath('stacks'), withPoses=withPoses)
        self.info('%d particles written to %s' % (n, self._starFile()))
        if volume is not None:
            writeReferenceMap(volume, self._referenceFile())

    def _imageOptions(self):
        particles = self.inputParticles.get()
        state = CTF_STATES[self.ctfState.get()]
        if self.ctfState.get() == CTF_STATE_AUTO and particles.isPhaseFlipped():
            state = 'phase-flipped'
        elif self.ctfState.get() == CTF_STATE_AUTO and particles.isAmplitudeCorrected():
            state = 'multiplied'
        return {'contrast': CONTRASTS[self.contrast.get()], 'ctf_state': state, 'seed': self.seed.get()}

    def _runEngine(self, job, runDirectory, options, inputFiles):
        """ Runs a job of the engine; goes on with an earlier run where that fits. Returns the summary. """
        resume = prepareRun(runDirectory, options, inputFiles)
        useGpu = self.usesGpu()
        options = dict(options, out=runDirectory, device='cuda' if useGpu else 'cpu')
        arguments = buildArguments(job, options) + (' --resume' if resume else '')
        if resume:
            self.info('Going on with the run in %s' % runDirectory)
        try:
            self.runJob(buildProgram(Plugin.getPython(), useGpu, self.numberOfThreads.get()),
                        escapePercent(arguments, useGpu), env=Plugin.getEnviron(), numberOfMpi=1)
        except subprocess.CalledProcessError as error:
            message = tail(self._getLogsPath('run.stderr'))
            raise RuntimeError('cryoforum %s stopped (exit code %d).\n%s' % (job, error.returncode, message)) from None
        return readSummary(runDirectory)

    # ------------------------------ validation ------------------------------
    def _validateParticles(self):
        """ Problems of the input particles, all of them. """
        particles = self.inputParticles.get()
        if particles is None:
            return []  # Scipion itself reports an empty input
        errors = []
        if particles.getSize() == 0:
            errors.append('The input set is empty: give a set with particles.')
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
            errors.append('The box must be even; the particles have %d px. Rescale or window them by one pixel '
                          '(RELION preprocess particles).' % particles.getXDim())
        return errors

    def _validateVolume(self, volume):
        """ Problems of a reference map beside the particles. """
        particles = self.inputParticles.get()
        if volume is None or particles is None:
            return []
        errors = []
        if len(set(volume.getDim())) > 1:
            errors.append('The reference must be a cube; it is %s x %s x %s voxels.' % tuple(volume.getDim()))
        elif volume.getDim()[0] != particles.getXDim():
            errors.append('The reference must have the box of the particles, %d px; it has %d px. Rescale the map '
                          '(RELION crop/resize volumes).' % (particles.getXDim(), volume.getDim()[0]))
        errors += self._pixelSizeProblem('reference', volume.getSamplingRate())
        return errors

    def _pixelSizeProblem(self, what, pixelSize):
        expected = self.inputParticles.get().getSamplingRate()
        if pixelSize is not None and abs(pixelSize / expected - 1) <= PIXEL_SIZE_TOLERANCE:
            return []
        return ['The %s must have the pixel size of the particles, %.3f Å; it has %s. Check the sampling rate that '
                'was given at its import, or rescale.' % (what, expected,
                                                          'none' if pixelSize is None else '%.3f Å' % pixelSize)]

    def _validateNetwork(self, network):
        """ Problems of a trained network beside the particles. """
        particles = self.inputParticles.get()
        if network is None or particles is None:
            return []
        errors = []
        if not network.exists():
            errors.append('The files of the network are gone: %s. Train it again.' % network.getRunDirectory())
        if network.getBoxSize() != particles.getXDim():
            errors.append('The network was trained for particles of %d px; these have %d px. Rescale them or train '
                          'a network for them.' % (network.getBoxSize(), particles.getXDim()))
        return errors + self._pixelSizeProblem('network', network.getPixelSize())

    def _validateSymmetry(self, symmetry):
        if SYMMETRY.match(symmetry or ''):
            return []
        return ['Unknown symmetry "%s". %s' % (symmetry, SYMMETRY_HELP.split('. See')[0] + '.')]

    def _validateGpu(self):
        if not self.usesGpu() or self.useQueue():
            return []
        if not Plugin.hasGpu():
            return ['No NVIDIA GPU was found on this computer: set "Use GPU" to No (slower), or run in a queue.']
        if len(self.getGpuList()) > 1:
            return ['One GPU is used; the list has %s. Give one number.' % self.gpuList.get()]
        return []
