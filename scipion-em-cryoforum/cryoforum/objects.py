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
"""Objects of cryoforum that protocols pass on to each other."""

import os

from pwem.objects import EMObject
from pyworkflow.object import Float, Integer, String


class CryoForumNetwork(EMObject):
    """ A trained network that finds orientations. Its weights are in a run directory of the engine.

    The pixel size (Angstrom) and the box (pixels) are those of the particles it was trained for, whose images it sees
    Fourier-cropped to the network box; errors are angles in degrees on images held out of the training.
    """
    def __init__(self, **kwargs):
        EMObject.__init__(self, **kwargs)
        self._runDirectory = String(kwargs.get('runDirectory'))
        self._pixelSize = Float(kwargs.get('pixelSize'))
        self._boxSize = Integer(kwargs.get('boxSize'))
        self._networkBoxSize = Integer(kwargs.get('networkBoxSize'))
        self._symmetry = String(kwargs.get('symmetry', 'c1'))
        self._encoder = String(kwargs.get('encoder'))
        self._validationMedianError = Float(kwargs.get('validationMedianError'))
        self._validationMeanError = Float(kwargs.get('validationMeanError'))

    def getRunDirectory(self):
        """ Run directory of the engine, relative to the project. """
        return self._runDirectory.get()

    def getPixelSize(self):
        return self._pixelSize.get()

    def getBoxSize(self):
        return self._boxSize.get()

    def getNetworkPixelSize(self):
        """ Pixel size of the images that the network sees: it cannot use coarser ones. """
        return self.getPixelSize() * self.getBoxSize() / self._networkBoxSize.get()

    def getFieldOfView(self):
        """ Side of the box in Angstrom. """
        return self.getPixelSize() * self.getBoxSize()

    def getSymmetry(self):
        return self._symmetry.get()

    def getEncoder(self):
        return self._encoder.get()

    def getValidationMedianError(self):
        return self._validationMedianError.get()

    def getValidationMeanError(self):
        return self._validationMeanError.get()

    def exists(self):
        """ True where the files of the network are still there. """
        return bool(self.getRunDirectory()) and os.path.isdir(os.path.join(self.getRunDirectory(), 'checkpoint'))

    def getFiles(self):
        """ Files that belong to the network; Scipion's export asks for them. """
        return {os.path.join(folder, name)
                for folder, _, names in os.walk(self.getRunDirectory()) for name in names}

    def __str__(self):
        if not self._boxSize.hasValue():
            return 'CryoForumNetwork (not trained)'
        text = 'CryoForumNetwork (%d px, %0.2f Å/px, %s' % (self.getBoxSize(), self.getPixelSize(), self.getSymmetry())
        if self._validationMedianError.hasValue():
            text += ', median error %0.1f°' % self.getValidationMedianError()
        return text + ')'
