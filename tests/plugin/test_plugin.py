"""The plugin as Scipion sees it: discovery, place in the tree, citations, installation, and what it must not import."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGIN = REPOSITORY / "scipion-em-cryoforum" / "cryoforum"
PROTOCOLS = ["CryoForumProtAbInitio", "CryoForumProtTrain", "CryoForumProtPredict", "CryoForumProtSubset"]


@pytest.fixture(scope="module")
def domain(project):
    import pyworkflow as pw

    return pw.Config.getDomain()


def test_scipion_finds_the_protocols_and_the_network_object(domain):
    assert set(PROTOCOLS) <= set(domain.getProtocols())
    assert "CryoForumNetwork" in domain.getObjects()


def test_each_protocol_has_its_place_in_the_spa_tree(project):
    import pwem
    from pyworkflow.gui.project.viewprotocols_extra import ProtocolTreeConfig

    def values(node, path=()):
        for child in node:
            if child.value:
                yield child.value, path
            yield from values(child, (*path, child.text))

    views = ProtocolTreeConfig.load(pwem.Domain, str(Path(pwem.__file__).parent / "protocols.conf"))
    places = dict(values(views["Protocols SPA"]))
    assert places["CryoForumProtAbInitio"][:2] == ("3D", "Initial volume")
    assert places["CryoForumProtTrain"][:2] == ("3D", "Refine")
    assert places["CryoForumProtPredict"][:2] == ("3D", "Refine")
    assert "CryoForumProtSubset" in places


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_citation_can_be_resolved(project, domain, name):
    protocol = project.newProtocol(domain.getProtocols()[name])
    citations = protocol.getCitations()
    assert "Chung2023" in citations
    assert all(text != key for key, text in citations.items()), "a key that bibtex.py does not hold"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_parameter_has_a_label_and_a_help_text(project, domain, name):
    protocol = project.newProtocol(domain.getProtocols()[name])
    ours = {parameter_name: parameter for parameter_name, parameter in protocol.getDefinition().iterParams()
            if parameter_name not in ("runName", "runMode", "hostName", "gpuList", "useGpu", "numberOfThreads")}
    assert len(ours) >= 6
    for parameter_name, parameter in ours.items():
        assert parameter.label.get(), parameter_name
        assert len(parameter.help.get() or "") > 15, f"{parameter_name} has no help"


def test_uncertainties_are_visible_in_the_table_of_any_particle_set(domain):
    """Beside the image, in the table that Scipion opens for a set; other columns stay."""
    from pwem.objects import SetOfParticles
    from pwem.viewers.mdviewer.viewer import MDView

    domain.getViewers()
    visible, order, _ = (labels.split() for labels in MDView(SetOfParticles(filename=":memory:")).
                         getVisibleAndOrderLabels())
    for labels in (visible, order):
        after = labels.index("_filename") + 1
        assert labels[after] == "_cryoforumExpectedError" and "_cryoforumMatchScore" in labels
        assert "_ctfModel._defocusU" in labels and len(labels) == len(set(labels))


def test_the_plugin_imports_neither_torch_nor_the_engine():
    """Also true where both are installed beside Scipion: the words do not occur in an import."""
    for path in PLUGIN.rglob("*.py"):
        assert not re.search(r"^\s*(import|from)\s+(torch|cryoforum_core)", path.read_text(), re.MULTILINE), path


def test_every_source_file_carries_the_licence():
    for path in PLUGIN.rglob("*.py"):
        if path.name != "bibtex.py":  # Scipion reads this one as a citation file: a docstring and nothing else
            assert "GNU General Public License" in path.read_text(), path


def validate_with(tmp_path, **variables):
    """Plugin.validateInstallation() in a process whose configuration differs: variables are read at import."""
    code = ("import pyworkflow as pw; pw.Config.getDomain().getProtocols(); from cryoforum import Plugin; "
            "print('\\n'.join(Plugin.validateInstallation()))")
    environment = dict(os.environ, **{name: str(value) for name, value in variables.items()})
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True,
                          check=True).stdout.strip()


def test_an_existing_environment_is_used_as_it_is(tmp_path):
    assert validate_with(tmp_path, CRYOFORUM_PYTHON=REPOSITORY / ".venv/engine/bin/python") == ""


def test_an_interpreter_that_is_not_there_is_named_with_the_remedy(tmp_path):
    message = validate_with(tmp_path, CRYOFORUM_PYTHON="/nowhere/bin/python")
    assert "/nowhere/bin/python" in message
    assert "installb cryoforum" in message and "CRYOFORUM_PYTHON" in message


def test_an_interpreter_without_the_engine_is_named_with_the_remedy(tmp_path):
    """Scipion's own Python has no engine."""
    message = validate_with(tmp_path, CRYOFORUM_PYTHON=sys.executable)
    assert "does not have cryoforum" in message and "-m pip install" in message


def test_an_engine_that_is_installed_later_is_found(domain, tmp_path):
    """Scipion is open while its user installs what the message asks for: nothing but a good version is remembered."""
    from cryoforum import engineVersion

    python = tmp_path / "python"
    for answer, version in (("exit 1", None), ("echo 0.0.1", "0.0.1"), ("echo 0.1.0", "0.1.0")):
        python.write_text(f"#!/bin/sh\n{answer}\n")
        python.chmod(0o755)
        assert engineVersion(str(python)) == version
    python.unlink()
    assert engineVersion(str(python)) == "0.1.0"


def test_sets_are_copied_with_what_the_oldest_scipion_knows():
    """The arguments of EMSet.copyItems in scipion-em 3.8: Scipion itself would only tell when a run is nearly done."""
    known = {"updateItemCallback", "itemDataIterator", "copyDisabled", "doClone", "itemSelectedCallback"}
    calls = [node for path in PLUGIN.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "copyItems"]
    assert calls
    for call in calls:
        assert {keyword.arg for keyword in call.keywords} <= known


def test_the_engine_does_not_see_scipions_modules(domain, monkeypatch):
    from cryoforum import Plugin

    monkeypatch.setenv("PYTHONPATH", "/scipion/modules")
    assert "PYTHONPATH" not in Plugin.getEnviron()


class Recorder:
    """Takes the place of Scipion's installer: keeps what defineBinaries asks for."""

    def addPackage(self, name, **arguments):
        self.name, self.arguments = name, arguments


@pytest.mark.parametrize("conda", [True, False])
def test_binaries_are_one_environment_with_the_engine_only(domain, monkeypatch, tmp_path, conda):
    from cryoforum import Plugin

    monkeypatch.setattr(Plugin, "_condaActivationCmd", ". /opt/conda/etc/profile.d/conda.sh &&" if conda else "")
    monkeypatch.setenv("PATH", str(tmp_path))  # no conda to be found there
    recorder = Recorder()
    Plugin.defineBinaries(recorder)
    (command, flag), = recorder.arguments["commands"]
    assert ("conda create" in command) is conda and ("-m venv" in command) is not conda
    assert "scipion-em-cryoforum" not in command.replace(str(REPOSITORY), "")
    assert "touch " + flag in command and "import cryoforum_core" in command


def test_scipions_own_test_command_runs_the_plugins_tests(tmp_path):
    """``scipion3 tests cryoforum.tests...`` from a clean user's folder; it fails with exit code 1."""
    environment = dict(os.environ, SCIPION_USER_DATA=str(tmp_path), VIRTUAL_ENV=sys.prefix,
                       PATH=f"{sys.prefix}/bin:{os.environ['PATH']}")
    result = subprocess.run([sys.executable, "-m", "scipion", "test", "cryoforum.tests.test_protocols_cryoforum"],
                            env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "5 tests" in result.stdout + result.stderr and "OK" in result.stdout + result.stderr
