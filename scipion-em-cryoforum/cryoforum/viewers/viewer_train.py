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
"""What "Analyze results" opens for a training and for the network that came of it."""

import csv
import os

from pwem.viewers import EmPlotter
from pyworkflow.viewer import DESKTOP_TKINTER, Viewer

from ..command import isFinished
from ..objects import CryoForumNetwork
from ..protocols import CryoForumProtTrain
from .viewer_base import BLUE, ORANGE, PageView

STEP, MEDIAN_ERROR, MEAN_ERROR = 'step', 'validation_median_error_deg', 'validation_mean_error_deg'


class CryoForumTrainViewer(Viewer):
    """ The report; while the network still learns, how its error falls. """
    _label = 'training of an orientation network'
    _targets = [CryoForumProtTrain, CryoForumNetwork]
    _environments = [DESKTOP_TKINTER]

    def _visualize(self, obj, **kwargs):
        directory = obj.getRunDirectory() if isinstance(obj, CryoForumNetwork) else obj._runDirectory()
        report = os.path.join(directory or '', 'report.html')
        if directory and isFinished(directory) and os.path.exists(report):
            return [PageView(report)]
        evaluations = readEvaluations(os.path.join(directory or '', 'metrics.csv'))
        if evaluations:
            return [self._plot(evaluations)]
        return [self.infoMessage('There is neither a report nor a first test of the network yet. The Output Log shows '
                                 'the progress and the time left.', 'Training')]

    @staticmethod
    def _plot(evaluations):
        title = 'Error on images that the network was not trained on'
        plotter = EmPlotter(x=1, y=1, windowTitle=title)
        axes = plotter.createSubPlot(title, 'step', 'error (degrees)')
        steps, medians, means = zip(*evaluations)
        axes.plot(steps, medians, marker='o', color=BLUE, label='median, last %.3g°' % medians[-1])
        axes.plot(steps, means, marker='o', color=ORANGE, label='mean, last %.3g°' % means[-1])
        axes.set_ylim(bottom=0)
        axes.legend()
        return plotter


def readEvaluations(path):
    """ Step, median and mean error in degrees of each test in a run's metrics.csv; other rows have no errors. """
    if not os.path.exists(path):
        return []
    with open(path, newline='') as file:
        # the last row may be half written
        return [tuple(float(row[name]) for name in (STEP, MEDIAN_ERROR, MEAN_ERROR)) for row in csv.DictReader(file)
                if row.get(MEDIAN_ERROR) and row.get(MEAN_ERROR)]
