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
"""The engine's command line: how it is built and run, how a run is continued, what it reports."""

import hashlib
import json
import os
import shlex
import shutil

BUDGET_OPTIONS = ('max_minutes', 'max_steps', 'train_minutes')


def buildArguments(job, options):
    """ ``train --particles X --no-augment ...`` for a dict of options; an option that is None is left out. """
    words = [job]
    for name, value in options.items():
        flag = name.replace('_', '-')
        if value is None:
            continue
        if isinstance(value, bool):
            words.append('--%s' % flag if value else '--no-%s' % flag)
        elif isinstance(value, (list, tuple)):
            words += ['--%s' % flag, *map(str, value)]
        else:
            words += ['--%s' % flag, str(value)]
    return ' '.join(map(shlex.quote, words))


def buildProgram(python, useGpu, threads):
    """ The engine's program with what it may use: GPUs (Scipion fills in %(GPU)s, renumbered in a queue) or none. """
    visible = '%(GPU)s' if useGpu else "''"
    return 'CUDA_VISIBLE_DEVICES=%s OMP_NUM_THREADS=%d %s -m cryoforum_core' % (visible, max(1, threads),
                                                                                shlex.quote(python))


def escapePercent(arguments, useGpu):
    """ Scipion formats the arguments with % where it fills in a GPU; a % of a path must survive that. """
    return arguments.replace('%', '%%') if useGpu else arguments


def prepareRun(runDirectory, options, inputFiles):
    """ True where the run in ``runDirectory`` can go on, which the engine then does from its checkpoint.

    A run made with other options or input is removed: only the budget (minutes, steps) may change in between. What
    the run was made with is kept beside the run directory, which is the engine's own. Where the project lies is no part
    of that: its results stay when it is moved. Nor are options left to the engine (None), so that a parameter that the
    form gets later costs nobody a run.
    """
    record = runDirectory.rstrip('/') + '_options.json'
    fixed = {name: str(value) for name, value in options.items() if name not in BUDGET_OPTIONS and value is not None}
    fixed['checksums'] = {os.path.basename(path): _checksum(path) for path in inputFiles}
    known = None
    if os.path.exists(record):
        with open(record) as file:
            known = {name: value for name, value in json.load(file).items() if value != str(None)}
    if known != fixed and os.path.isdir(runDirectory):
        shutil.rmtree(runDirectory)
    with open(record, 'w') as file:
        json.dump(fixed, file, indent=1)
    return os.path.isdir(runDirectory) and bool(os.listdir(runDirectory))


def _checksum(path):
    """ Of a file's content; a STAR file holds absolute paths, of which those in the project count as relative. """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        if path.endswith('.star'):
            project = ('@' + os.path.join(projectFolder(), '')).encode()
            for line in file:
                digest.update(line.replace(project, b'@'))
        else:
            for block in iter(lambda: file.read(1 << 20), b''):
                digest.update(block)
    return digest.hexdigest()


def projectFolder():
    """ The project's folder, in which Scipion runs everything. A step that writes absolute paths has it among its
    arguments, so that Continue repeats it when the project was moved. """
    return os.path.abspath('')


def readSummary(runDirectory):
    """ summary.json, which the engine writes last. In a queue this is the only sign of success. """
    path = os.path.join(runDirectory, 'summary.json')
    if not os.path.exists(path):
        raise RuntimeError('cryoforum did not finish: %s is missing. See logs/run.stderr; Continue goes on from the '
                           'last checkpoint.' % path)
    with open(path) as file:
        return json.load(file)


def readProgress(runDirectory):
    """ progress.json, which the engine rewrites while it runs; None where there is none yet. """
    try:
        with open(os.path.join(runDirectory, 'progress.json')) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def isFinished(runDirectory):
    return os.path.exists(os.path.join(runDirectory, 'summary.json'))


def tail(path, lines=12):
    """ The last lines of a log file. """
    if not os.path.exists(path):
        return ''
    with open(path, errors='replace') as file:
        return ''.join(file.readlines()[-lines:]).strip()
