"""Scipion without a display and without its installer: the plugin's tests run in .venv/scipion with plain pytest."""

import os
import shutil
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCIPION_HOME = REPOSITORY / ".scipion" / "tests"

sys.path.insert(0, str(Path(__file__).parent))  # particle_sets.py; pytest's importlib mode adds no folders


def _prepare_scipion():
    """Scipion reads its configuration when it is imported, so this comes first."""
    (SCIPION_HOME / "config").mkdir(parents=True, exist_ok=True)
    (SCIPION_HOME / "config/hosts.conf").write_text(
        "[localhost]\nPARALLEL_COMMAND = mpirun -np %_(JOB_NODES)d %_(COMMAND)s\n")
    settings = {
        "SCIPION_HOME": SCIPION_HOME, "SCIPION_USER_DATA": SCIPION_HOME / "userdata", "SCIPION_DOMAIN": "pwem",
        "SCIPION_PYTHON": sys.executable, "SCIPION_HOSTS": SCIPION_HOME / "config/hosts.conf",
        "SCIPION_NOTIFY": "False", "SCIPION_TEST_NOSYNC": "True", "SCIPION_CANCEL_XMIPP_BINDING_WARNING": "True",
        "MPLBACKEND": "Agg", "NO_COLOR": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }
    os.environ.update({name: str(value) for name, value in settings.items()})
    os.environ.setdefault("CRYOFORUM_PYTHON", str(REPOSITORY / ".venv/engine/bin/python"))
    relion = shutil.which("relion_refine")
    if relion:
        os.environ.setdefault("RELION_HOME", str(Path(relion).parents[1]))


_prepare_scipion()


@pytest.fixture(scope="session")
def project():
    """A new Scipion project, which is the working directory from then on (Scipion's paths are relative to it)."""
    import pyworkflow as pw
    from pyworkflow.project import Manager

    pw.Config.getDomain().getProtocols()
    before = os.getcwd()
    manager = Manager()
    if manager.hasProject("cryoforum_tests"):
        manager.deleteProject("cryoforum_tests")
    scipion_project = manager.createProject("cryoforum_tests")
    os.chdir(scipion_project.path)
    yield scipion_project
    os.chdir(before)


@pytest.fixture(scope="session")
def launch(project):
    """Runs a protocol in a process of its own, as the GUI does; returns it finished, or shows its log."""

    def run(Protocol, label=None, **parameters):
        protocol = project.newProtocol(Protocol, **{
            name: value for name, value in parameters.items() if not isinstance(value, tuple)})
        for name, value in parameters.items():
            if isinstance(value, tuple):  # (protocol, name of its output), or (protocol,) itself
                getattr(protocol, name).set(value[0])
                if len(value) > 1:
                    getattr(protocol, name).setExtended(value[1])
        protocol.setObjLabel(label or Protocol.__name__)
        problems = protocol.validate()
        assert not problems, problems
        project.launchProtocol(protocol, wait=True)
        assert protocol.isFinished(), log_tail(protocol)
        return protocol

    return run


def log_tail(protocol, lines=40):
    """The end of a protocol's logs, for a message."""
    text = [f"{protocol.getObjLabel()}: {protocol.getStatus()} {protocol.getErrorMessage()}"]
    for name in ("run.stdout", "run.stderr"):
        path = Path(protocol._getLogsPath(name))
        if path.exists():
            text += [f"--- {name}", *path.read_text(errors="replace").splitlines()[-lines:]]
    return "\n".join(text)
