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
"""The engine's sentences in the words of Scipion's forms: it speaks of the options of its command line."""

import re

from ..engine_names import REFINEMENTS

# choices of the forms: the engine's name -> what the form says
CONTRAST = {'auto': 'automatic', 'bright': 'bright protein', 'dark': 'dark protein'}
CTF_STATE = {'auto': 'as the set says', 'raw': 'not corrected', 'phase-flipped': 'phases flipped',
             'multiplied': 'multiplied by the CTF'}
REFINEMENT = {name: name for name in REFINEMENTS}

# option -> label of the parameter, in whichever form has it
LABELS = {
    'batch-size': 'Batch size',
    'calibration-particles': 'Particles with known orientations',
    'contrast': 'Contrast of the images',
    'coverage': 'Confidence of the error bound',
    'ctf-state': 'CTF correction of the images',
    'epochs': 'Epochs',
    'from-checkpoint': 'Start from network',
    'half-set': 'Particles to train with',
    'hand-reference': 'Hand reference',
    'learning-rate': 'Learning rate',
    'max-minutes': 'Time (minutes)',
    'max-shift-angstrom': 'Largest shift (Å)',
    'max-steps': 'Training steps',
    'model': 'Network',
    'network-box-size-px': 'Network box (px)',
    'particle-diameter-angstrom': 'Particle diameter (Å)',
    'particles': 'Input particles',
    'reference': 'Reference map',
    'refinement': 'Refinement',
    'resolution-angstrom': 'Finest resolution (Å)',
    'search-steps': 'Search steps',
    'seed': 'Random seed',
    'seeds': 'Random starts',
    'symmetry': 'Symmetry',
    'train-minutes': 'Training time (minutes)',
}
CHOICES = {'contrast': CONTRAST, 'ctf-state': CTF_STATE, 'refinement': REFINEMENT}
# no parameter of a form: a set says it itself
PIXEL_SIZE = re.compile(r'\(rlnImagePixelSize, or --pixel-size-angstrom ([\d.]*\d)\)')
OPTION = re.compile(r'--([a-z]+(?:-[a-z]+)*)(?: ([a-z]+(?:-[a-z]+)*))?')


def newOnesLast(known, names):
    """ The choices ``names`` of an engine in the order of a form: stored protocols know their choice by its place, so those
    that were there first (known) stay where they are. """
    return [*known, *(name for name in names if name not in known)]


def meanings(records):
    """ Lines "*name*: meaning" of a help text. """
    return '\n'.join('*%s*: %s' % (record.name, record.meaning) for record in records.values())


def inFormWords(text):
    """ Sentences of the engine with labels, and the choices of the forms, in the place of options and their values. """
    return OPTION.sub(_inForm, PIXEL_SIZE.sub(r'(the sampling rate at their import: \1 Å)', text))


def _inForm(match):
    option, word = match.groups()
    if option not in LABELS:
        return match.group()
    label, choices = '"%s"' % LABELS[option], CHOICES.get(option, {})
    if word in choices:
        return '%s: %s' % (label, choices[word])
    return label if word is None else '%s %s' % (label, word)
