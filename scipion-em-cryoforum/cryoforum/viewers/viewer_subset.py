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
"""What "Analyze results" opens for an uncertainty subset: what was kept and rejected, and another limit."""

import os

import numpy as np

import pyworkflow.protocol.params as params
from pwem.viewers import EmPlotter
from pwem.viewers.plotter import PLOT_EULER_ANGLES
from pyworkflow.viewer import DESKTOP_TKINTER

from ..convert import readAttributes
from ..protocols import CryoForumProtSubset
from ..protocols.protocol_subset import ERROR_MEASURE, MAX_ERROR, THRESHOLD
from ..protocols.source import findSource
from .viewer_base import PageView, ParticlesViewer

COLOR_MAP = 'cividis'
KEPT, REJECTED, RECENTRE = CryoForumProtSubset._possibleOutputs


class CryoForumSubsetViewer(ParticlesViewer):
    """ Kept and rejected particles, and new subsets with another limit. """
    _label = 'uncertainty subset'
    _targets = [CryoForumProtSubset]
    _environments = [DESKTOP_TKINTER]

    def _defineParams(self, form):
        form.addSection(label='Results')
        form.addParam('showReport', params.LabelParam, important=True, label='Report (browser)',
                      help='How many were rejected for which reason, the measure with its limit, viewing directions '
                           'before and after, and examples of kept and rejected particles beside the projections of '
                           'the map that match them best.')
        form.addParam('showReliability', params.LabelParam, label='Reliability of the errors (browser)',
                      help='The report of the run that found the orientations: stated errors beside those measured on '
                           'particles whose orientations are known.')
        group = form.addGroup('Particles')
        group.addParam('showErrors', params.LabelParam, label='Expected errors',
                       help='Histogram of kept and rejected particles, with the limit where there is one.')
        group.addParam('showDirections', params.LabelParam, label='Viewing directions before and after',
                       help='How many particles there are along each viewing direction: of all, and of those kept.')
        group.addParam('showKept', params.LabelParam, label='Table: kept',
                       help='Images with their uncertainties, to be sorted and selected.')
        group.addParam('showRejected', params.LabelParam, label='Table: rejected', help='With the reason for each.')
        group.addParam('showRecentre', params.LabelParam, label='Table: to be recentred',
                       help='Off-centre particles, with the shift that centres them: for *extract coordinates* with '
                            'shifts applied.')
        self._defineLimitParams(form)

    def _getVisualizeDict(self):
        return {'showReport': self._showReport, 'showReliability': self._showReliability,
                'showErrors': self._showErrors, 'showDirections': self._showDirections,
                'showKept': lambda _: self._table(KEPT), 'showRejected': lambda _: self._table(REJECTED),
                'showRecentre': lambda _: self._table(RECENTRE), **self._getLimitDict()}

    # ------------------------------ pages ------------------------------
    def _showReport(self, _=None):
        return self._page(self.protocol._selectedFile('report.html'), 'There is no report yet.')

    def _showReliability(self, _=None):
        source = findSource(self.protocol)
        if source is None:
            return [self.infoMessage('The run that found the orientations is not in this project.', 'Reliability')]
        return self._page(source.file('report.html'), 'The run that found the orientations has no report.')

    def _page(self, path, otherwise):
        return [PageView(path) if os.path.exists(path) else self.infoMessage(otherwise, 'Report')]

    # ------------------------------ particles ------------------------------
    def _usualLimit(self):
        return self.protocol.maxError.get()

    def _allParticles(self):
        return self.protocol.inputParticles.get()

    def _newSubset(self):
        return self._project.copyProtocol(self.protocol)

    def _showErrors(self, _=None):
        title, outputs = 'Expected errors', {'kept': KEPT, 'rejected': REJECTED}
        groups = {}
        for name, output in outputs.items():
            if hasattr(self.protocol, output):
                values = readAttributes(getattr(self.protocol, output), [ERROR_MEASURE.attribute])[1]
                groups[name] = values[ERROR_MEASURE.attribute][np.isfinite(values[ERROR_MEASURE.attribute])]
        if not groups:
            return self._notReady(title)
        return self._histogram(groups, title, ERROR_MEASURE.label, logarithmic=True, marks=self._limitMark())

    def _limitMark(self):
        """ The limit of the expected error, where the protocol had one. """
        protocol = self.protocol
        if protocol.criterion == MAX_ERROR:
            limit = protocol.maxError.get()
        elif protocol.criterion == THRESHOLD and protocol._measure() == ERROR_MEASURE:
            limit = protocol.threshold.get()
        else:
            return {}
        return {'limit %.4g°' % limit: limit}

    def _showDirections(self, _=None):
        if not hasattr(self.protocol, KEPT):
            return self._notReady('Viewing directions')
        return [self._directions(self._allParticles(), 'before'),
                self._directions(getattr(self.protocol, KEPT), 'after')]

    @staticmethod
    def _directions(particles, when):
        title = 'Viewing directions %s (%d particles)' % (when, particles.getSize())
        plotter = EmPlotter(x=1, y=1, windowTitle=title)
        plotter.plotAngularDistributionFromSet(particles, title, type=PLOT_EULER_ANGLES, colormap=COLOR_MAP)
        return plotter
