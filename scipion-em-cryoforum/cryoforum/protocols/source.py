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
"""Where the orientations of a set come from: the run of the engine that found them."""

import json
import os
from dataclasses import dataclass
from typing import Any, Dict

from pwem.objects import SetOfClasses, SetOfParticles
from pyworkflow.protocol import Protocol

from ..command import isFinished, readSummary
from .protocol_ab_initio import CryoForumProtAbInitio
from .protocol_predict import CryoForumProtPredict


@dataclass(frozen=True)
class Source:
    """ A finished run of the engine's predict or ab-initio. """
    directory: str
    options: Dict[str, Any]
    symmetry: str

    def file(self, name):
        return os.path.join(self.directory, name)


def findSource(protocol):
    """ The run from which the input particles of a protocol come, through the protocols that filtered or joined them in
    between; None where it cannot be found. Of several, the first. """
    seen, waiting = set(), [protocol]
    while waiting:
        this = waiting.pop(0)
        if isinstance(this, (CryoForumProtPredict, CryoForumProtAbInitio)) and isFinished(this._runDirectory()):
            return _source(this._runDirectory())
        for _, pointer in this.iterInputAttributes():
            earlier = _producer(protocol, pointer)
            if earlier is not None and earlier.getObjId() not in seen:
                seen.add(earlier.getObjId())
                waiting.append(earlier)
    return None


def _producer(protocol, pointer):
    """ The protocol that made the particles of a pointer, or the classes they are in; None for other objects. """
    if not isinstance(pointer.get(), (SetOfParticles, SetOfClasses)):
        return None
    pointed = pointer.getObjValue()
    return pointed if isinstance(pointed, Protocol) else protocol.getProject().getProtocol(pointed.getObjParentId())


def _source(directory):
    with open(os.path.join(directory, 'config.json')) as file:
        options = json.load(file)
    return Source(directory, options, readSummary(directory).get('symmetry') or 'c1')
