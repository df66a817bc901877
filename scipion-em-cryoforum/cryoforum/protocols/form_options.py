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
"""How a form and the engine's options belong together: parameter and option, label and flag, choices and values.

Each protocol has a table of these, OPTIONS. From it follow what the protocol passes on to the engine, and the words of the
form for the engine's sentences, which speak of the options of its command line.
"""

import re
from dataclasses import dataclass
from typing import Sequence

# no parameters of a form: a set says its pixel size itself, and the GPU is Scipion's own line of the form
PIXEL_SIZE = re.compile(r'\(rlnImagePixelSize, or --pixel-size-angstrom ([\d.]*\d)\)')
NO_GPU = '--device cpu'
OPTION = re.compile(r'--([a-z]+(?:-[a-z]+)*)(?: ([a-z0-9]+(?:-[a-z0-9]+)*))?')


@dataclass(frozen=True)
class FormOption:
    """ An option of the engine that a parameter of the form sets. Where the form's condition hides the parameter, the
    option is not given, and the engine uses its default.

    name: of the option, as in the engine's config.py.
    param: name of the parameter. Its label stands for the option in what the user reads.
    choices: of an EnumParam: the engine's values, in the order of the form's choices.
    emptyIsAuto: 0 or an empty text leaves the value to the engine.
    getter: name of the protocol's method that gives the value, where it is not what the parameter holds.
    evenHidden: given although the form hides the parameter. Not for new ones: an earlier run has it among its options, and
        Continue runs the job again from the start where these differ.
    """
    name: str
    param: str
    choices: Sequence[str] = ()
    emptyIsAuto: bool = False
    getter: str = ''
    evenHidden: bool = False

    def isShown(self, protocol):
        return bool(protocol.evalParamCondition(self.param))

    def isGiven(self, protocol):
        return self.evenHidden or self.isShown(protocol)

    def value(self, protocol):
        """ What the engine is given; None leaves the value to it. """
        if self.getter:
            value = getattr(protocol, self.getter)()
        else:
            value = getattr(protocol, self.param).get()
            value = self.choices[value] if self.choices else value
        return (value or None) if self.emptyIsAuto else value

    def words(self, protocol, value=None):
        """ The option, or one of its values, as the form calls it. """
        param = protocol.getParam(self.param)
        label = '"%s"' % param.label.get().replace(' (optional)', '')
        if value in self.choices:
            return '%s: %s' % (label, param.choices[self.choices.index(value)])
        return label if value is None else '%s %s' % (label, value)


def inFormWords(text, protocol):
    """ Sentences of the engine with the form's labels and choices in the place of options and their values. """
    # of several parameters for one option the last counts, which is the one that the form shows
    options = {option.name.replace('_', '-'): option
               for option in sorted(protocol.OPTIONS, key=lambda option: option.isShown(protocol))}

    def inForm(match):
        flag, value = match.groups()
        return options[flag].words(protocol, value) if flag in options else match.group()

    text = PIXEL_SIZE.sub(r'(the sampling rate at their import: \1 Å)', text).replace(NO_GPU, '"GPU IDs": No')
    return OPTION.sub(inForm, text)


def newOnesLast(known, names):
    """ The choices ``names`` of an engine in the order of a form: stored protocols know their choice by its place, so those
    that were there first (known) stay where they are. """
    return [*known, *(name for name in names if name not in known)]


def meanings(records):
    """ Lines "*name*: meaning" of a help text. """
    return '\n'.join('*%s*: %s' % (record.name, record.meaning) for record in records.values())
