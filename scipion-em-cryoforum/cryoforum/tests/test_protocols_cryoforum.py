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
"""Tests of the main chain, as Scipion runs them: ``scipion3 tests cryoforum.tests.test_protocols_cryoforum``.

The particles are simulated by the engine itself; nothing is downloaded. Takes about two minutes on two CPU cores.
"""

import json
import os
import subprocess

import numpy as np

from pwem.protocols import ProtImportParticles, ProtImportVolumes
from pyworkflow.tests import BaseTest, setupTestProject

from .. import Plugin
from ..constants import EXPECTED_ERROR, MATCH_SCORE, REASON
from ..protocols import CryoForumProtAbInitio, CryoForumProtPredict, CryoForumProtSubset, CryoForumProtTrain
from ..protocols.protocol_subset import KEEP_FRACTION, MATCH_MEASURE, MAX_ERROR, measureIndex

N_PARTICLES = 60
CPU = {'useGpu': False, 'numberOfThreads': 2}


class SimulatedData(BaseTest):
    """ A project with simulated particles. """

    @classmethod
    def _simulate(cls, *options):
        """ Particles made and imported. """
        setupTestProject(cls)
        cls.data = os.path.abspath(cls.proj.getTmpPath('simulated'))
        subprocess.check_call([Plugin.getPython(), '-m', 'cryoforum_core', 'simulate', '--out', cls.data, '--snr', '1',
                               '--device', 'cpu', *options], env=Plugin.getEnviron())
        with open(os.path.join(cls.data, 'summary.json')) as file:
            cls.pixelSize = json.load(file)['pixel_size_angstrom']
        cls.particles = cls._launch('import particles', ProtImportParticles,
                                    importFrom=ProtImportParticles.IMPORT_FROM_RELION,
                                    starFile=os.path.join(cls.data, 'particles.star'), samplingRate=cls.pixelSize,
                                    voltage=300., sphericalAberration=2.7, amplitudeContrast=0.1, magnification=50000)

    @classmethod
    def _launch(cls, label, Protocol, inputs=None, **parameters):
        protocol = cls.newProtocol(Protocol, **parameters)
        protocol.setObjLabel(label)
        for name, (source, output) in (inputs or {}).items():
            getattr(protocol, name).set(source)
            getattr(protocol, name).setExtended(output)
        cls.launchProtocol(protocol)
        return protocol


class TestCryoForumAbInitio(SimulatedData):
    """ import -> ab initio -> subset. A search as short as this one need not find the molecule. """

    def test_outputs(self):
        self._simulate('--n-particles', '200', '--box-size-px', '24')
        abInitio = self._launch('ab initio', CryoForumProtAbInitio,
                                {'inputParticles': (self.particles, 'outputParticles')}, searchSteps=60,
                                trainMinutes=0.1, **CPU)
        self.assertTrue(abInitio.outputVolume.hasHalfMaps())
        self.assertEqual(abInitio.outputVolume.getXDim(), 24)
        self.assertAlmostEqual(abInitio.outputVolume.getSamplingRate(), self.pixelSize, 3)
        self.assertSetSize(abInitio.outputParticles, 200)
        self.assertTrue(abInitio.outputParticles.hasAlignmentProj())
        self.assertTrue(abInitio.outputNetwork.exists())
        self.assertEqual(len(abInitio.outputFSC.getData()[0]), 13)
        subset = self._launch('subset', CryoForumProtSubset, {'inputParticles': (abInitio, 'outputParticles')},
                              criterion=KEEP_FRACTION, keepFraction=0.8)
        self.assertSetSize(subset.outputParticles, 160)


class TestCryoForum(SimulatedData):
    """ import -> train -> predict -> subset """

    @classmethod
    def setUpClass(cls):
        cls._simulate('--n-particles', str(N_PARTICLES), '--box-size-px', '32', '--junk-fraction', '0.1',
                      '--junk-kinds', 'noise')
        cls.reference = cls._launch('import map', ProtImportVolumes, filesPath=os.path.join(cls.data, 'map.mrc'),
                                    samplingRate=cls.pixelSize)
        cls.train = cls._launch('train', CryoForumProtTrain, {'inputParticles': (cls.particles, 'outputParticles'),
                                                              'referenceVolume': (cls.reference, 'outputVolume')},
                                maxSteps=20, batchSize=16, **CPU)
        cls.predict = cls._launch('predict', CryoForumProtPredict,
                                  {'inputParticles': (cls.particles, 'outputParticles'),
                                   'inputNetwork': (cls.train, 'outputNetwork')}, **CPU)

    def test_train(self):
        network = self.train.outputNetwork
        self.assertTrue(network.exists())
        self.assertEqual(network.getBoxSize(), 32)
        self.assertGreater(network.getValidationMedianError(), 0)

    def test_predict(self):
        particles = self.predict.outputParticles
        self.assertSetSize(particles, N_PARTICLES)
        self.assertTrue(particles.hasAlignmentProj())
        self.assertEqual(sorted(particles.getIdSet()), sorted(self.particles.outputParticles.getIdSet()))
        for particle in particles.iterItems():
            self.assertTrue(np.isfinite(particle.getAttributeValue(EXPECTED_ERROR)))
            self.assertTrue(particle.hasCTF())
            self.assertTrue(particle.getAttributeValue(REASON))

    def test_subset(self):
        subset = self._launch('subset', CryoForumProtSubset,
                              {'inputParticles': (self.predict, 'outputParticles')}, criterion=KEEP_FRACTION,
                              keepFraction=0.9, measure=measureIndex(MATCH_MEASURE), protectViews=False)
        self.assertSetSize(subset.outputParticles, 54)
        self.assertSetSize(subset.outputParticlesRejected, 6)
        worstKept = min(p.getAttributeValue(MATCH_SCORE) for p in subset.outputParticles.iterItems())
        bestRejected = max(p.getAttributeValue(MATCH_SCORE) for p in subset.outputParticlesRejected.iterItems())
        self.assertGreaterEqual(worstKept, bestRejected)

    def test_subset_by_error(self):
        errors = sorted(p.getAttributeValue(EXPECTED_ERROR) for p in self.predict.outputParticles.iterItems())
        limit = 0.5 * (errors[39] + errors[40])
        subset = self._launch('subset by error', CryoForumProtSubset,
                              {'inputParticles': (self.predict, 'outputParticles')}, criterion=MAX_ERROR,
                              maxError=limit, rejectJunk=False)
        self.assertSetSize(subset.outputParticles, 40)
