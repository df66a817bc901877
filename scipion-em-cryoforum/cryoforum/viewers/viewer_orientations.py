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
"""What "Analyze results" opens for a run that found orientations: its report, plots and tables."""

import os

import mrcfile
import numpy as np

import pyworkflow.protocol.params as params
from pwem.viewers import EmPlotter
from pwem.viewers.plotter import PLOT_EULER_ANGLES
from pwem.viewers.viewer_angular_dist import AngularDistributionViewer
from pwem.viewers.viewer_chimera import Chimera, ChimeraView
from pwem.viewers.viewer_fsc import FscViewer
from pyworkflow.viewer import DESKTOP_TKINTER

from ..command import isFinished
from ..constants import EXPECTED_ERROR, MATCH_SCORE
from ..protocols import CryoForumProtAbInitio, CryoForumProtPredict
from .viewer_base import PageView, ParticlesViewer, newSubsetOf

COLOR_MAP = 'cividis'


class CryoForumOrientationsViewer(ParticlesViewer):
    """ The report, and what the uncertainties of the particles look like. """
    _label = 'orientations and their uncertainty'
    _targets = [CryoForumProtPredict]
    _environments = [DESKTOP_TKINTER]

    def _defineParams(self, form):
        form.addSection(label='Results')
        self._definePageParams(form)
        self._defineParticleParams(form)
        self._defineLimitParams(form)

    def _definePageParams(self, form):
        form.addParam('showReport', params.LabelParam, important=True, label='Report (browser)',
                      help='One page, which can be passed on: assessment of the run, what to do next, how reliable the '
                           'stated errors are, and figures.')

    def _defineParticleParams(self, form):
        group = form.addGroup('Particles')
        group.addParam('showErrors', params.LabelParam, label='Expected errors',
                       help='Histogram of the expected errors of the orientations, in degrees. A good set has one '
                            'peak, at small angles.')
        group.addParam('showScores', params.LabelParam, label='Match with the map',
                       help='Histogram of the match score: particles form the peak on the right, junk a tail or a '
                            'peak to the left of it.')
        group.addParam('showDirections', params.LabelParam, label='Viewing directions',
                       help='How many particles there are along each viewing direction.')
        group.addParam('showTable', params.LabelParam, label='Table of particles',
                       help='Images with their uncertainties, to be sorted and selected.')

    def _getVisualizeDict(self):
        return {'showReport': self._showReport, 'showErrors': self._showErrors, 'showScores': self._showScores,
                'showDirections': self._showDirections, 'showTable': self._showTable, **self._getLimitDict()}

    # ------------------------------ pages ------------------------------
    def _runFile(self, name):
        return os.path.join(self.protocol._runDirectory(), name)

    def _showReport(self, _=None):
        """ The report; before there is one, the page that the running engine keeps. """
        pages = ['report.html', 'live.html']
        for name in pages if isFinished(self.protocol._runDirectory()) else reversed(pages):
            if os.path.exists(self._runFile(name)):
                return [PageView(self._runFile(name))]
        return [self.infoMessage('There is no report yet.', 'Report')]

    # ------------------------------ particles ------------------------------
    def _particles(self):
        return getattr(self.protocol, 'outputParticles', None)

    def _usualLimit(self):
        return 10

    def _allParticles(self):
        return self._particles()

    def _newSubset(self):
        return newSubsetOf(self._project, self.protocol)

    def _showErrors(self, _=None):
        return self._distribution(EXPECTED_ERROR, 'Expected errors', 'expected error (degrees)', logarithmic=True)

    def _showScores(self, _=None):
        return self._distribution(MATCH_SCORE, 'Match with the map', 'match score')

    def _distribution(self, attribute, title, label, logarithmic=False):
        groups = self._groups(self._particles(), attribute)
        if groups is None:
            return self._missing(label, title)
        median = np.median(np.concatenate(list(groups.values())))
        return self._histogram(groups, title, label, logarithmic, {'median %.3g' % median: median})

    def _showDirections(self, _=None):
        if self._particles() is None:
            return self._notReady('Viewing directions')
        return AngularDistributionViewer.plotAngularDistribution(self._particles(), COLOR_MAP, PLOT_EULER_ANGLES)

    def _showTable(self, _=None):
        return self._table('outputParticles')


class CryoForumAbInitioViewer(CryoForumOrientationsViewer):
    """ The live page of a running search, and at the end its report, the map and the particles. """
    _label = 'ab initio map and orientations'
    _targets = [CryoForumProtAbInitio]

    def _definePageParams(self, form):
        form.addParam('showReport', params.LabelParam, important=True, label='Report, or live page (browser)',
                      help='While the protocol runs: the stage, the time left, and the map so far, on a page that '
                           'reloads itself. At the end: assessment, what to do next, and figures.')
        group = form.addGroup('Map')
        group.addParam('showMap', params.LabelParam, label='Slices and projections', help='Of the map, along x, y, z.')
        group.addParam('showVolume', params.LabelParam, label='Surface (ChimeraX)', help='The map in ChimeraX.')
        group.addParam('showFsc', params.LabelParam, label='Fourier shell correlation',
                       help='Of the half maps, with the resolution at 0.143.')

    def _getVisualizeDict(self):
        return {**super()._getVisualizeDict(), 'showMap': self._showMap, 'showVolume': self._showVolume,
                'showFsc': self._showFsc}

    def _showMap(self, _=None):
        if not hasattr(self.protocol, 'outputVolume'):
            return self._notReady('Map')
        with mrcfile.open(self.protocol.outputVolume.getFileName(), permissive=True) as mrc:
            volume = np.array(mrc.data)
        plotter = EmPlotter(x=2, y=3, figsize=(10, 7), windowTitle='Map')
        middle = len(volume) // 2
        low, high = np.percentile(volume, [1, 99.9])
        for axis, name in enumerate('zyx'):
            axes = plotter.createSubPlot('slice across %s' % name, None, None, xpos=axis + 1, ypos=1)
            axes.imshow(volume.take(middle, axis=axis), cmap='gray', vmin=low, vmax=high, interpolation='bilinear')
            axes.set_axis_off()
        for axis, name in enumerate('zyx'):
            axes = plotter.createSubPlot('projection along %s' % name, None, None, xpos=axis + 4, ypos=1)
            axes.imshow(volume.sum(axis=axis), cmap='gray', interpolation='bilinear')
            axes.set_axis_off()
        return [plotter]

    def _showVolume(self, _=None):
        if not hasattr(self.protocol, 'outputVolume'):
            return self._notReady('Map')
        program = Chimera.getProgram()
        if not program or not os.path.exists(program):
            return [self.infoMessage('ChimeraX was not found: install scipion-em-chimera, or open %s elsewhere.'
                                     % self.protocol.outputVolume.getFileName(), 'ChimeraX')]
        return [ChimeraView(self.protocol.outputVolume.getFileName())]

    def _showFsc(self, _=None):
        if not hasattr(self.protocol, 'outputFSC'):
            return self._notReady('Fourier shell correlation')
        viewer = FscViewer(project=self._project, protocol=self.protocol, figure=None)
        viewer.plotFsc(self.protocol.outputFSC, label='half maps')
        return [viewer.plotter]
