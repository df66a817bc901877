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
"""Scipion plugin for cryoforum: orientations of cryo-EM particles with calibrated errors, and removal of junk in 3D.

The engine (distribution cryoforum-core, with PyTorch) lives in an environment of its own: the plugin runs its command
there and exchanges files with it. Nothing here imports torch or the engine.
"""

import os
import shutil
import subprocess
import sys

import pwem
import pyworkflow.constants
import pyworkflow.utils as pwutils
from pyworkflow import VarTypes

from .constants import (CRYOFORUM_ENGINE, CRYOFORUM_HOME, CRYOFORUM_PYTHON, CRYOFORUM_TORCH, DEFAULT_TORCH,
                        ENGINE_DISTRIBUTION, ENGINE_VERSIONS, MINIMUM_ENGINE_PYTHON, V0_1_0)

__version__ = '0.1.0'
_logo = 'cryoforum_logo.png'
_references = ['Chung2023', 'Nashed2021']


class Plugin(pwem.Plugin):
    _homeVar = CRYOFORUM_HOME
    _pathVars = [CRYOFORUM_PYTHON]
    _supportedVersions = ENGINE_VERSIONS
    _url = 'https://github.com/scipion-em/scipion-em-cryoforum'
    # older pyworkflow versions have no processing fields
    _processingField = [getattr(pyworkflow.constants, 'SPA', 0)]

    @classmethod
    def _defineVariables(cls):
        cls._defineEmVar(CRYOFORUM_HOME, 'cryoforum-%s' % V0_1_0, var_type=VarTypes.FOLDER,
                         description='Folder in which Scipion installed cryoforum itself.')
        cls._defineVar(CRYOFORUM_PYTHON, os.path.join(cls.getHome('env'), 'bin', 'python'), var_type=VarTypes.PATH,
                       description='Absolute path of the Python interpreter of an environment in which cryoforum is '
                                   'installed (conda, venv, or a site-wide installation). It is called directly; no '
                                   'environment is activated.')
        cls._defineVar(CRYOFORUM_ENGINE, cls._defaultEngineSource(), var_type=VarTypes.STRING,
                       description='Pip requirement for cryoforum itself, or the path of a source checkout.')
        cls._defineVar(CRYOFORUM_TORCH, DEFAULT_TORCH, var_type=VarTypes.STRING,
                       description='Pip requirement for PyTorch; choose the CPU or a CUDA build with '
                                   'pip\'s own PIP_INDEX_URL.')

    @classmethod
    def _defaultEngineSource(cls):
        """ The checkout this plugin was installed from (developers), else the released engine. """
        checkout = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..'))
        if os.path.isfile(os.path.join(checkout, 'cryoforum_core', '__init__.py')):
            return checkout
        return '%s==%s' % (ENGINE_DISTRIBUTION, V0_1_0)

    # ------------------------------ running ---------------------------------
    @classmethod
    def getPython(cls):
        """ Interpreter of the engine's environment. """
        return cls.getVar(CRYOFORUM_PYTHON)

    @classmethod
    def getEnviron(cls):
        """ Environment of the engine: Scipion's own modules must not be seen by another Python. """
        environ = pwutils.Environ(os.environ)
        for name in ('PYTHONPATH', 'PYTHONHOME'):
            environ.pop(name, None)
        environ['PYTHONUNBUFFERED'] = '1'
        return environ

    @classmethod
    def validateInstallation(cls):
        python = cls.getPython()
        if not (os.path.isabs(python) and os.access(python, os.X_OK)):
            return ['cryoforum was not found: %s is no Python interpreter (variable %s).' % (python, CRYOFORUM_PYTHON),
                    'Install it with "scipion3 installb cryoforum", or set %s in the Scipion configuration to the '
                    'absolute path of a Python in which %s is installed.' % (CRYOFORUM_PYTHON, ENGINE_DISTRIBUTION)]
        version = engineVersion(python)
        if version is None:
            return ['The Python %s does not have cryoforum.' % python,
                    'Install it there: %s -m pip install %s' % (python, cls.getVar(CRYOFORUM_ENGINE))]
        if version not in ENGINE_VERSIONS:
            return ['This plugin works with cryoforum %s; %s has %s.' % (', '.join(ENGINE_VERSIONS), python, version),
                    'Install a matching one: scipion3 installb cryoforum']
        return []

    @classmethod
    def hasGpu(cls):
        """ True where this computer has an NVIDIA GPU with its driver. """
        return os.path.exists('/dev/nvidiactl') or os.path.exists('/dev/nvidia0')

    # ------------------------------ installing -------------------------------
    @classmethod
    def getDependencies(cls):
        return [] if cls._venvPython() else ['conda']

    @classmethod
    def defineBinaries(cls, env):
        """ An environment in $CRYOFORUM_HOME/env with the engine alone: by conda where it is, else as a venv. """
        flag = 'engine_installed'
        pip = './env/bin/python -m pip install'
        commands = [cls._createEnvironmentCommand(),
                    '%s --upgrade pip' % pip,
                    '%s "%s" "%s"' % (pip, cls.getVar(CRYOFORUM_TORCH), cls.getVar(CRYOFORUM_ENGINE)),
                    './env/bin/python -c "import cryoforum_core"',
                    'touch %s' % flag]
        env.addPackage('cryoforum', version=V0_1_0, tar='void.tgz', commands=[(' && '.join(commands), flag)],
                       neededProgs=cls.getDependencies(), vars=cls.getEnviron(), default=True)

    @classmethod
    def _createEnvironmentCommand(cls):
        if cls.getCondaActivationCmd() or shutil.which('conda'):
            return '%s conda create -y -p ./env python=3.11 pip' % cls.getCondaActivationCmd()
        return '%s -m venv ./env' % (cls._venvPython() or 'python3')

    @classmethod
    def _venvPython(cls):
        """ A Python new enough for the engine (Scipion's own may be older), or None. """
        if sys.version_info >= MINIMUM_ENGINE_PYTHON:
            return sys.executable
        names = ('python3.%d' % minor for minor in range(14, MINIMUM_ENGINE_PYTHON[1] - 1, -1))
        return next(filter(None, map(shutil.which, names)), None)


_usable = {}  # interpreter -> version of its engine


def engineVersion(python):
    """ Version of the engine that the interpreter ``python`` has, None without one. Takes 0.1 s.

    Only a version that works is remembered: who installs one as told must not have to start Scipion again.
    """
    if python not in _usable:
        version = _askVersion(python)
        if version not in ENGINE_VERSIONS:
            return version
        _usable[python] = version
    return _usable[python]


def _askVersion(python):
    code = 'import cryoforum_core; print(cryoforum_core.__version__)'
    try:
        # from the root folder: a checkout that happens to be the working directory must not pass for an installation
        result = subprocess.run([python, '-c', code], cwd='/', env=Plugin.getEnviron(), timeout=60,
                                capture_output=True, text=True, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return result.stdout.strip()
