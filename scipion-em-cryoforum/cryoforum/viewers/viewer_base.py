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
"""What the viewers of cryoforum have in common: pages, histograms of particles, and new subsets with another limit."""

import os
import webbrowser

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

import pyworkflow.protocol.params as params
from pwem.viewers import EmPlotter, EmProtocolViewer
from pwem.viewers.mdviewer.viewer import MDView
from pyworkflow.viewer import View

from ..constants import PARTICLE_PROBABILITY
from ..convert import readAttributes
from ..protocols import CryoForumProtSubset
from ..protocols.protocol_subset import (BOUND_MEASURE, ERROR_MEASURE, MATCH_MEASURE, MAX_BOUND, MAX_ERROR,
                                         PROBABILITY_MEASURE, THRESHOLD, measureIndex)

# of a limit that is set in a viewer; errors come first
LIMITED = [ERROR_MEASURE, BOUND_MEASURE, PROBABILITY_MEASURE, MATCH_MEASURE]
BLUE, ORANGE = '#0072B2', '#E69F00'


class PageView(View):
    """ A page of the engine, in the user's browser. """
    def __init__(self, path):
        self.path = path

    def show(self):
        webbrowser.open_new_tab('file://%s' % os.path.abspath(self.path))


class ParticlesViewer(EmProtocolViewer):
    """ Histograms and tables of the particles of a run, and new subsets of them.

    Each viewer says which: ``_allParticles()``, the set that a new limit chooses from (None where there is none yet),
    ``_newSubset()``, a protocol with these particles as input, and ``_usualLimit()``, in degrees. """

    def _defineLimitParams(self, form):
        group = form.addGroup('New subset with another limit')
        group.addParam('limitMeasure', params.EnumParam, choices=[measure.label for measure in LIMITED], default=0,
                       label='Limit of',
                       help='Particles are kept whose error or error bound is at most the limit, or whose particle '
                            'probability or match score is at least the limit.')
        group.addParam('limit', params.FloatParam, default=self._usualLimit(), label='Limit',
                       help='In degrees for the expected error and the error bound; between 0 and 1 for the particle '
                            'probability (0.5 is usual); about -4 for the match score.')
        group.addParam('showLimit', params.LabelParam, label='Show the particles within the limit',
                       help='Histogram of all particles with the limit, and how many of them are within it.')
        group.addParam('makeSubset', params.LabelParam, label='Make the subset (new run)',
                       help='Starts a new *uncertainty subset* of the same particles with this limit. Orientations are '
                            'not computed again. With a limit of the error or its bound, junk is rejected, too.')

    def _getLimitDict(self):
        return {'showLimit': self._showLimit, 'makeSubset': self._makeSubset}

    # ------------------------------ limits ------------------------------
    def _showLimit(self, _=None):
        measure, limit = LIMITED[self.limitMeasure.get()], self.limit.get()
        title = 'Limit of the %s' % measure.label
        groups = self._groups(self._allParticles(), measure.attribute)
        if groups is None:
            return self._missing(measure.label, title)
        within = {name: int((values >= limit if measure.higherIsBetter else values <= limit).sum())
                  for name, values in groups.items()}
        label = 'within: ' + ', '.join('%d of %d %s' % (count, len(groups[name]), name)
                                       for name, count in within.items())
        return self._histogram(groups, title, measure.label, measure in (ERROR_MEASURE, BOUND_MEASURE),
                               {label: limit})

    def _groups(self, particles, attribute):
        """ dict name -> values of particles, and of junk where that is known; None without any. """
        if particles is None:
            return None
        values = readAttributes(particles, [attribute, PARTICLE_PROBABILITY])[1]
        if attribute not in values:
            return None
        probability = values.get(PARTICLE_PROBABILITY)
        isJunk = np.zeros(len(values[attribute]), bool) if probability is None else probability < 0.5
        groups = {'particles': values[attribute][~isJunk], 'junk': values[attribute][isJunk]}
        return {name: x[np.isfinite(x)] for name, x in groups.items() if np.isfinite(x).any()} or None

    def _makeSubset(self, _=None):
        title = 'New subset'
        if self._allParticles() is None:
            return self._notReady(title)
        protocol = self._newSubset()
        measure, limit = LIMITED[self.limitMeasure.get()], self.limit.get()
        if measure in (ERROR_MEASURE, BOUND_MEASURE):
            protocol.criterion.set(MAX_ERROR if measure == ERROR_MEASURE else MAX_BOUND)
            (protocol.maxError if measure == ERROR_MEASURE else protocol.maxBound).set(limit)
            protocol.rejectJunk.set(True)  # a subset that was copied may have kept it
        else:
            protocol.criterion.set(THRESHOLD)
            protocol.measure.set(measureIndex(measure))
            protocol.threshold.set(limit)
        protocol.setObjLabel(protocol.rule())
        problems = protocol.validate()
        if problems:
            return [self.errorMessage('\n'.join(problems), title)]
        self._project.launchProtocol(protocol)
        return [self.infoMessage('"%s" was started: a new protocol box in the project tree, with its own outputs and report.'
                                 % protocol.getObjLabel(), title)]

    # ------------------------------ histograms and tables ------------------------------
    def _histogram(self, groups, title, label, logarithmic=False, marks=None):
        """ Stacked histograms of groups of values, with named vertical lines. """
        everything = np.concatenate(list(groups.values()))
        plotter = EmPlotter(x=1, y=1, windowTitle=title)
        axes = plotter.createSubPlot(title, label, 'particles')
        nBins = int(np.clip(3 * len(everything) ** (1 / 3), 10, 80))
        if logarithmic:
            everything = np.maximum(everything, 0.01)
            bins = np.geomspace(everything.min(), max(everything.max(), 1.01 * everything.min()) * 1.0001, nBins)
            axes.set_xscale('log')
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda value, _: '%g' % value)
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            bins = np.linspace(np.percentile(everything, 0.5), everything.max() + 1e-6, nBins)
        # the first bar holds whatever is worse
        values = [np.clip(group, bins[0], bins[-1]) for group in groups.values()]
        axes.hist(values, bins=bins, stacked=True, color=[BLUE, ORANGE][:len(values)], label=list(groups))
        for name, value in (marks or {}).items():
            axes.axvline(value, color='k', label=name)
        axes.legend()
        return [plotter]

    def _table(self, name):
        particles = getattr(self.protocol, name, None)
        if particles is None:
            return [self.infoMessage('The run has no %s.' % name, 'Table of particles')]
        return [MDView(particles, self.protocol, self._project.port)]

    def _missing(self, label, title):
        return [self.infoMessage('The particles have no %s.' % label.split(' (')[0], title)]

    def _notReady(self, title):
        return [self.infoMessage('The protocol has no output yet.', title)]


def newSubsetOf(project, protocol):
    """ An uncertainty subset of the output of a protocol that finds orientations. """
    subset = project.newProtocol(CryoForumProtSubset)
    subset.inputParticles.set(protocol)
    subset.inputParticles.setExtended('outputParticles')
    return subset
