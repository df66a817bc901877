"""What script/demo_workflow.py makes of a protocol's state: Scipion can call a run failed that has ended well."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from particle_sets import make_particles

SCRIPT = Path(__file__).resolve().parents[2] / "script/demo_workflow.py"


@pytest.fixture(scope="module")
def workflow(project):
    """The demo's, in the tests' project instead of one of its own."""
    spec = importlib.util.spec_from_file_location("demo_workflow", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flow = object.__new__(module.Workflow)
    flow.project = project
    return flow


@pytest.fixture(scope="module")
def started(project):
    """An import of particles, in a process of its own."""
    from pwem.protocols import ProtImportParticles

    folder = Path(project.getTmpPath("demo")).absolute()
    folder.mkdir()
    sqlite = make_particles(folder, n=1500).getFileName()  # enough to be caught at it

    def start():
        protocol = project.newProtocol(ProtImportParticles, importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                                       sqliteFile=os.path.abspath(sqlite), magnification=50000, samplingRate=4.0)
        project.launchProtocol(protocol, wait=False)
        return protocol

    return start


def ended(workflow, protocol):
    deadline = time.monotonic() + 120
    while protocol.isActive() or protocol.getStatus() in ("launched", "scheduled"):
        assert time.monotonic() < deadline, protocol.getStatus()
        time.sleep(0.2)
        workflow._update(protocol)
    return protocol


def test_a_run_that_ended_between_two_looks_is_not_called_failed(project, workflow, started):
    protocol = ended(workflow, started())
    assert protocol.isFinished(), protocol.getErrorMessage()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    def as_seen_before_it_ended():
        protocol.setStatus("running")
        protocol.setPid(gone.pid)

    as_seen_before_it_ended()
    project._updateProtocol(protocol)
    assert protocol.isFailed() and "not found running" in protocol.getErrorMessage()
    as_seen_before_it_ended()
    workflow._update(protocol)
    assert protocol.isFinished() and not protocol.getErrorMessage()


def test_a_run_that_was_killed_is_called_failed(workflow, started):
    protocol = started()
    deadline = time.monotonic() + 120
    while protocol.getStatus() != "running":
        assert time.monotonic() < deadline, "it has not started"
        time.sleep(0.02)
        workflow._update(protocol)
    os.kill(protocol.getPid(), signal.SIGKILL)
    assert ended(workflow, protocol).isFailed()
