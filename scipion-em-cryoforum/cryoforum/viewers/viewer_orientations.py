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
import webbrowser

import mrcfile
import numpy as np

import pyworkflow.protocol.params as params
from pwem.viewers import EmPlotter, EmProtocolViewer
from pwem.viewers.mdviewer.viewer import MDView
from pwem.viewers.plotter import PLOT_EULER_ANGLES
from pwem.viewers.viewer_angular_dist import AngularDistributionViewer
from pwem.viewers.viewer_chimera import Chimera, ChimeraView
from pwem.viewers.viewer_fsc import FscViewer
from pyworkflow.viewer import DESKTOP_TKINTER, View

from ..command import isFinished
from ..constants import EXPECTED_ERROR, MATCH_SCORE
from ..convert import readAttributes
from ..protocols import CryoForumProtAbInitio, CryoForumProtPredict

COLOR_MAP = 'cividis'


class PageView(View):
    """ A page of the engine, in the user's browser. """
    def __init__(self, path):
        self.path = path

    def show(self):
        webbrowser.open_new_tab('file://%s' % os.path.abspath(self.path))


class CryoForumOrientationsViewer(EmProtocolViewer):
    """ The report, and what the uncertainties of the particles look like. """
    _label = 'orientations and their uncertainty'
    _targets = [CryoForumProtPredict]
    _environments = [DESKTOP_TKINTER]

    def _defineParams(self, form):
        form.addSection(label='Results')
        self._definePageParams(form)
        self._defineParticleParams(form)

    def _definePageParams(self, form):
        form.addParam('showReport', params.LabelParam, important=True, label='Report (browser)',
                      help='Verdict, what to do next, and figures: one page, which can be sent around.')

    def _defineParticleParams(self, form):
        group = form.addGroup('Particles')
        group.addParam('showErrors', params.LabelParam, label='Expected errors',
                       help='Histogram of how far off the orientations are expected to be, in degrees. Look for one '
                            'hill at small angles.')
        group.addParam('showScores', params.LabelParam, label='Match with the map',
                       help='Histogram of the match score: particles form the hill at the right, junk the tail or '
                            'hill at its left.')
        group.addParam('showDirections', params.LabelParam, label='View directions',
                       help='How many particles there are along each viewing direction.')
        group.addParam('showTable', params.LabelParam, label='Table of particles',
                       help='Images with their uncertainties, to be sorted and selected.')

    def _getVisualizeDict(self):
        return {'showReport': self._showReport, 'showErrors': self._showErrors, 'showScores': self._showScores,
                'showDirections': self._showDirections, 'showTable': self._showTable}

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

    def _showErrors(self, _=None):
        return self._histogram(EXPECTED_ERROR, 'Expected errors', 'expected error (degrees)', logarithmic=True)

    def _showScores(self, _=None):
        return self._histogram(MATCH_SCORE, 'Match with the map', 'match score')

    def _histogram(self, attribute, title, label, logarithmic=False):
        values = self._values(attribute)
        if values is None:
            return [self.infoMessage('The particles have no %s.' % label.split(' (')[0], title)]
        plotter = EmPlotter(x=1, y=1, windowTitle=title)
        axes = plotter.createSubPlot(title, label, 'particles')
        nBins = int(np.clip(3 * len(values) ** (1 / 3), 10, 80))
        if logarithmic:
            values = np.maximum(values, 0.01)
            bins = np.geomspace(values.min(), max(values.max(), 1.01 * values.min()), nBins)
            axes.set_xscale('log')
            for setFormatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
                setFormatter(lambda value, _: '%g' % value)
        else:
            bins = np.linspace(np.percentile(values, 0.5), values.max() + 1e-6, nBins)
            values = np.maximum(values, bins[0])  # the first bar holds whatever is worse
        axes.hist(values, bins=bins, color='#0072B2')
        axes.axvline(np.median(values), color='k', label='median %.3g' % np.median(values))
        axes.legend()
        return [plotter]

    def _values(self, attribute):
        """ Values (n,) of the output particles; None without any. """
        particles = self._particles()
        if particles is None:
            return None
        values = readAttributes(particles, [attribute])[1].get(attribute)
        values = None if values is None else values[np.isfinite(values)]
        return values if values is not None and len(values) else None

    def _showDirections(self, _=None):
        if self._particles() is None:
            return self._notReady('View directions')
        return AngularDistributionViewer.plotAngularDistribution(self._particles(), COLOR_MAP, PLOT_EULER_ANGLES)

    def _showTable(self, _=None):
        if self._particles() is None:
            return self._notReady('Table of particles')
        return [MDView(self._particles(), self.protocol, self._project.port)]

    def _notReady(self, title):
        return [self.infoMessage('The protocol has no output yet.', title)]


class CryoForumAbInitioViewer(CryoForumOrientationsViewer):
    """ The live page of a running search, and at the end its report, the map and the particles. """
    _label = 'ab initio map and orientations'
    _targets = [CryoForumProtAbInitio]

    def _definePageParams(self, form):
        form.addParam('showReport', params.LabelParam, important=True, label='Report, or live page (browser)',
                      help='While the protocol runs: the stage, the time left, and the map so far, on a page that '
                           'reloads itself. At the end: verdict, what to do next, and figures.')
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
