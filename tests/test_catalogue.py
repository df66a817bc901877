"""Names that command line, files, reports and Scipion's forms share: one place, and everywhere the same."""

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cryoforum_core import catalogue, config

ROOT = Path(__file__).parents[1]
ENGINE, PLUGIN = ROOT / "cryoforum_core", ROOT / "scipion-em-cryoforum" / "cryoforum"
GENERATED = PLUGIN / "engine_names.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("engine_names", ROOT / "script/engine_names.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plugin():
    """The names of the plugin's module."""
    return runpy.run_path(str(GENERATED))


def files_with(name):
    """Hand-written Python files of engine and plugin in which the name stands as a text of its own."""
    return {str(path.relative_to(ROOT)) for folder in (ENGINE, PLUGIN) for path in folder.rglob("*.py") if path != GENERATED
            and any(isinstance(node, ast.Constant) and node.value == name for node in ast.walk(ast.parse(path.read_text())))}


def test_what_the_plugin_and_the_documents_show_is_up_to_date(script):
    """Otherwise run ``python script/engine_names.py``."""
    assert GENERATED.read_text() == script.plugin_source()
    assert script.DOCUMENT.read_text() == script.document()


def test_the_catalogue_needs_nothing_but_python():
    code = "import sys; import cryoforum_core.catalogue; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_plugin_knows_what_the_catalogue_holds(plugin):
    for name in ("ENCODERS", "HEADS", "MEASURES", "REASONS"):
        records = getattr(catalogue, name)
        assert list(plugin[name]) == list(records)
        for key, record in plugin[name].items():
            assert record._asdict() == {field: getattr(records[key], field) for field in record._fields}
    assert plugin["AB_INITIO_PARTICLES"] == catalogue.AB_INITIO_PARTICLES.value


@pytest.mark.parametrize("coverage, fewest", [(0.5, 100), (0.9, 100), (0.99, 124), (0.995, 249), (0.999, 1249)])
def test_form_and_engine_ask_for_as_many_labelled_particles(plugin, coverage, fewest):
    assert plugin["fewest_known"](coverage) == catalogue.fewest_known(coverage) == fewest


def test_the_formula_of_the_plugin_is_that_of_the_engine(plugin):
    for coverage in np.linspace(0.01, 0.999, 200):
        assert plugin["fewest_known"](coverage) == catalogue.fewest_known(coverage)


@pytest.mark.parametrize("path", ["cryoforum_core/ab_initio/convergence.py", "cryoforum_core/report/ab_initio_page.py",
                                  "scipion-em-cryoforum/cryoforum/protocols/protocol_ab_initio.py"])
def test_two_starts_agree_alike_for_engine_report_and_plugin(plugin, path):
    """Each compares with the one limit, which is imported."""
    assert plugin["STARTS_AGREE_DEG"] == catalogue.STARTS_AGREE_DEG.value == 20
    imported = {alias.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.ImportFrom)
                for alias in node.names}
    assert "STARTS_AGREE_DEG" in imported


def test_each_kind_of_simulated_junk_has_a_reason():
    assert {kind.reason for kind in catalogue.SIMULATED_JUNK.values()} == set(catalogue.JUNK_REASONS)


def test_maps_are_compared_in_groups_of_ten():
    assert catalogue.MAP_PARTICLES.value == 10 * catalogue.MAP_GROUPS.value


@pytest.mark.parametrize("name", [name for name in (*catalogue.REASONS, *catalogue.SIMULATED_JUNK) if "-" in name])
def test_a_kind_of_junk_is_named_in_few_files(name):
    """In the catalogue, and where its images are made."""
    files = files_with(name)
    assert "cryoforum_core/catalogue.py" in files and len(files) <= 3


@pytest.mark.parametrize("name", catalogue.ENCODERS)
def test_the_layers_of_an_encoder_are_in_one_file(name):
    assert {"cryoforum_core/catalogue.py"} <= files_with(name)
    assert name == "compact" or "cryoforum_core/model/encoder.py" in files_with(name)


@pytest.mark.parametrize("model, field, names", [
    ("SimulateConfig", "junk_kinds", catalogue.SIMULATED_JUNK), ("TrainConfig", "encoder", catalogue.ENCODERS),
    ("TrainConfig", "head", catalogue.HEADS), ("SelectConfig", "reasons", catalogue.CHOSEN_REASONS),
    ("SelectConfig", "measure", catalogue.MEASURES)])
def test_the_command_line_shows_the_choices(model, field, names):
    job = getattr(config, model).model_fields["job"].default
    text = subprocess.run([sys.executable, "-m", "cryoforum_core", job, "--help"], capture_output=True, text=True,
                          check=True, cwd=ROOT).stdout
    shown = re.search(rf"--{field.replace('_', '-')} .*?\{{(.*?)\}}", re.sub(r"[│\s]+", " ", text)).group(1)
    choices = re.split(r"[,|]", shown.replace(" ", ""))
    assert [choice for choice in choices if choice != "auto"] == list(names)


@pytest.mark.parametrize("job, option", [("train", "encoder"), ("train", "head"), ("simulate", "junk_kinds")])
def test_each_choice_is_explained(job, option):
    model = {"train": config.TrainConfig, "simulate": config.SimulateConfig}[job]
    records = {"encoder": catalogue.ENCODERS, "head": catalogue.HEADS, "junk_kinds": catalogue.SIMULATED_JUNK}[option]
    description = model.model_fields[option].description
    assert all(f"{name}: {record.meaning}" in description for name, record in records.items())


@pytest.mark.parametrize("option, value", [("encoder", "resnet"), ("head", "matrix"), ("encoder", "Polar")])
def test_other_names_are_refused(option, value):
    with pytest.raises(ValueError, match="Input should be"):
        config.TrainConfig(out="x", particles="p", **{option: value})
