"""Who may import whom. Each rule is read from the source, so that a wrong import fails before it is ever run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "cryoforum_core"
PLUGIN = ROOT / "scipion-em-cryoforum" / "cryoforum"

LAYERS = [
    {"errors", "problems", "catalogue", "session_config", "config", "run_directory", "saved_state", "mrc", "interruption",
     "progress"},
    {"geometry", "imaging"},
    {"particles", "model", "matching"},
    {"training", "results"},
    {"uncertainty"},
    {"junk"},
    {"reconstruction"},
    {"selection", "evaluation", "states"},
    {"inference", "report"},
    {"ab_initio"},  # a job that needs training, inference and report together
    {"published_benchmarks"},  # runs of the others, judged
    {"jobs"},
    {"cli", "__init__", "__main__"},
]
PACKAGES = {"geometry", "imaging", "particles", "model", "matching", "training", "results", "uncertainty", "junk",
            "reconstruction", "selection", "evaluation", "states", "inference", "report", "ab_initio", "published_benchmarks"}
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}
# imaging slices maps along rotations: the one pair of a layer with an order
ALLOWED_WITHIN_LAYER = {("imaging", "geometry")}

ONE_IMPORTER = {
    "mrcfile": "mrc",
    "tqdm": "progress",
    "roma": "geometry.rotations",
    "torch_ctf": "imaging.ctf",
    "gemmi": "particles.atomic_model",
    "safetensors": "model.checkpoint",
    "matplotlib": "report.plots",
    "jinja2": "report.report",
    "tyro": "cli",
}
SCIPION = {"pyworkflow", "pwem", "scipion", "relion", "cryoforum"}
NEVER = {"pickle", "cPickle", "dill", "cloudpickle"}


def imports(path):
    """(absolute module, relative level, line) of every import of a file, those within functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((name, node.level, node.lineno) for name in names)


def module_name(path):
    """``particles.star`` for cryoforum_core/particles/star.py."""
    return ".".join(path.relative_to(ENGINE).with_suffix("").parts)


def engine_imports(path):
    """The parts of the engine that a file imports, as names relative to cryoforum_core."""
    here = module_name(path).split(".")
    for name, level, line in imports(path):
        if level:
            base = here[:len(here) - level]
            yield ".".join([*base, name]), line
        elif name.split(".")[0] == "cryoforum_core":
            yield name.partition(".")[2] or "__init__", line


ENGINE_FILES = sorted(ENGINE.rglob("*.py"))
PLUGIN_FILES = sorted(PLUGIN.rglob("*.py"))


@pytest.mark.parametrize("path", ENGINE_FILES, ids=module_name)
def test_module_imports_only_from_lower_layers(path):
    part = module_name(path).split(".")[0]
    assert part in LAYER_OF, f"{part} has no layer"
    for imported, line in engine_imports(path):
        other = imported.split(".")[0]
        if other not in LAYER_OF:
            other = "__init__"  # a name of the package itself, such as __version__
        if other == part and part in PACKAGES:
            continue
        if other == "__init__" and part in ("jobs", "cli"):
            continue  # __version__
        is_lower = LAYER_OF[other] < LAYER_OF[part]
        is_file_of_layer_0 = LAYER_OF[other] == LAYER_OF[part] == 0
        is_top = LAYER_OF[other] == LAYER_OF[part] == len(LAYERS) - 1
        assert is_lower or is_file_of_layer_0 or is_top or (part, other) in ALLOWED_WITHIN_LAYER, (
            f"{path.relative_to(ROOT)}:{line}: {part} (layer {LAYER_OF[part]}) imports {other} "
            f"(layer {LAYER_OF[other]})")


@pytest.mark.parametrize("library, home", ONE_IMPORTER.items())
def test_library_has_one_importer(library, home):
    importers = {module_name(path) for path in ENGINE_FILES for name, level, _ in imports(path)
                 if not level and name.split(".")[0] == library}
    assert importers <= {home}


@pytest.mark.parametrize("path", ENGINE_FILES, ids=module_name)
def test_engine_knows_no_scipion_and_no_pickle(path):
    for name, level, line in imports(path):
        assert level or name.split(".")[0] not in SCIPION | NEVER, (
            f"{path.relative_to(ROOT)}:{line} imports {name}")


@pytest.mark.parametrize("path", ENGINE_FILES, ids=module_name)
def test_files_are_never_loaded_as_objects(path):
    """numpy and torch run pickles of strangers unless they are told not to."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if getattr(node.func.value, "id", "") == "torch":
                assert keywords.get("weights_only") is True, f"{path.name}:{node.lineno}"
            if getattr(node.func.value, "id", "") in ("np", "numpy"):
                assert keywords.get("allow_pickle", False) is False, f"{path.name}:{node.lineno}"


def test_plugin_knows_no_torch_and_no_engine():
    assert PLUGIN_FILES
    for path in PLUGIN_FILES:
        for name, level, line in imports(path):
            root = name.split(".")[0]
            assert level or root not in {"torch", "cryoforum_core"} | NEVER, (
                f"{path.relative_to(ROOT)}:{line} imports {name}")
