"""How large the parts are, that imports make no circle, and that tests are found by the name of what they test."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE, BENCHMARKS, PLUGIN, TESTS = (ROOT / "cryoforum_core", ROOT / "benchmarks", ROOT / "scipion-em-cryoforum/cryoforum",
                                     ROOT / "tests")
FOLDERS = {"engine": ENGINE, "benchmarks": BENCHMARKS, "plugin": PLUGIN}

# A reader holds a class of this size in mind; before there was a limit, 98 of 100 classes of the engine kept to it.
MAX_CLASS_LINES, MAX_METHODS = 150, 15
# A protocol of Scipion is one class by design: form, checks, steps and summary are methods of it.
MAX_PROTOCOL_LINES, MAX_PROTOCOL_METHODS = 350, 32
# Besides self. What belongs together is a dataclass; its fields do not count.
MAX_PARAMETERS = 8
MAX_MODULE_LINES = 450

LARGE_CLASSES = {
    "particles/table.py:ParticleTable": "one short method for each kind of access to a table, which share its blocks",
}
MANY_PARAMETERS = {
    "training/autoencoder.py:fine_tune_end_to_end": "each is an object of its own that the caller has made already",
    "training/simulated_projections.py:__init__": "each is an object of its own that the caller has made already",
    "training/streams.py:__init__": "each is an object of its own that the caller has made already",
    "report/plots.py:scatter": "the options of one figure, keywords with defaults",
    "benchmarks/real_input.py:run_chain": "the arguments of its command line",
    "benchmarks/accuracy.py:record_figures": "the figures of one row",
}
LONG_MODULES = {
    "report/plots.py": "every figure of the reports: the only module that imports matplotlib",
    "plugin/convert.py": "the only module that exchanges tables with Scipion's sets",
}


# tests/<name>: what it tests where that is no module of the same name
SUBJECTS = {
    "test_bad_input.py": "input that every job must refuse or survive",
    "test_layers.py": "imports of all modules",
    "test_documents.py": "links of the documents, and paths to them in the code",
    "test_static.py": "undefined and unused names in all modules",
    "test_structure.py": "this file",
    "gpu/test_gpu.py": "all jobs on a GPU; skipped where there is none",
    "plugin/test_ab_initio.py": "the ab initio protocol, run in a Scipion project",
    "plugin/test_train.py": "the training protocol, run in a Scipion project",
    "plugin/test_subset.py": "the subset protocol, run in a Scipion project",
    "plugin/test_chain.py": "all protocols one after another, with RELION's between them",
    "plugin/test_validation.py": "what the forms refuse before a protocol is started",
    "plugin/test_plugin.py": "the package itself: installation, variables, environment",
    "plugin/test_demo_workflow.py": "script/demo_workflow.py",
}
# engine module without a test file of its name -> where it is tested, and why there
TESTED_ELSEWHERE = {}


def name_of(path):
    """``ab_initio/plan.py`` in the engine, ``benchmarks/junk.py`` and ``plugin/convert.py`` elsewhere."""
    if path.is_relative_to(ENGINE):
        return path.relative_to(ENGINE).as_posix()
    folder = "benchmarks" if path.is_relative_to(BENCHMARKS) else "plugin"
    return f"{folder}/{path.relative_to(FOLDERS[folder]).as_posix()}"


FILES = {name_of(path): path for folder in FOLDERS.values() for path in sorted(folder.rglob("*.py"))}


def nodes(kinds):
    """(file, node) of all classes or functions."""
    return [(name, node) for name, path in FILES.items() for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, kinds)]


def class_size(node):
    """Its lines and its methods; accessors of one property count each."""
    methods = sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)
    return node.end_lineno - node.lineno + 1, methods


def n_parameters(node):
    arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    return len([argument for argument in arguments if argument.arg not in ("self", "cls")])


def too_large_classes():
    found = {}
    for name, node in nodes(ast.ClassDef):
        is_protocol = name.startswith("plugin/protocols/")
        limits = (MAX_PROTOCOL_LINES, MAX_PROTOCOL_METHODS) if is_protocol else (MAX_CLASS_LINES, MAX_METHODS)
        size = class_size(node)
        if any(value > limit for value, limit in zip(size, limits, strict=True)):
            found[f"{name}:{node.name}"] = size
    return found


def functions_of_many_parameters():
    found = {}
    for name, node in nodes(ast.FunctionDef | ast.AsyncFunctionDef):
        if n_parameters(node) > MAX_PARAMETERS:
            found[f"{name}:{node.name}"] = n_parameters(node)
    return found


def too_long_modules():
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    return {name: length for name, length in lengths.items() if length > MAX_MODULE_LINES}


@pytest.mark.parametrize("found, exceptions", [(too_large_classes, LARGE_CLASSES),
                                               (functions_of_many_parameters, MANY_PARAMETERS),
                                               (too_long_modules, LONG_MODULES)],
                         ids=lambda value: getattr(value, "__name__", ""))
def test_parts_are_of_a_size_to_be_read(found, exceptions):
    beyond = found()
    assert not {name: size for name, size in beyond.items() if name not in exceptions}
    assert set(exceptions) <= set(beyond), "an exception that is not needed any more: remove it"


def imported_modules(name, path, modules):
    """Those of ``modules`` (dotted names) that a file imports, within functions too; without its own parent packages, which
    Python has loaded before."""
    here = name.split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            candidates = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        else:
            continue
        yield from (c for c in candidates if c in modules and not f"{name}.".startswith(f"{c}."))


def circle(graph):
    """Modules that import each other in a ring, first and last the same; None where there is no such ring."""
    finished, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module):], module]
        if module in finished:
            return None
        path.append(module)
        found = next((ring for ring in map(visit, sorted(graph[module])) if ring), None)
        path.pop()
        finished.add(module)
        return found

    return next((ring for ring in map(visit, sorted(graph)) if ring), None)


def graph_of(folder, prefix):
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        modules[".".join([*prefix, *(part for part in parts if part != "__init__")])] = path
    return {name: {other for other in imported_modules(name, path, modules)}
            for name, path in modules.items()}


@pytest.mark.parametrize("folder, prefix", [(ENGINE, ["cryoforum_core"]), (BENCHMARKS, []), (PLUGIN, ["cryoforum"])],
                         ids=FOLDERS)
def test_imports_make_no_circle(folder, prefix):
    graph = graph_of(folder, prefix)
    assert sum(map(len, graph.values())) > 5  # imports are seen
    ring = circle(graph)
    assert ring is None, " imports ".join(ring)


def test_a_circle_would_be_found(tmp_path):
    """Also by a relative import within a function."""
    (tmp_path / "a.py").write_text("from .b import value\n")
    (tmp_path / "b.py").write_text("def f():\n    from . import c\n    return c\n")
    (tmp_path / "c.py").write_text("import package.a\n")
    (tmp_path / "d.py").write_text("from . import a, b, c\n")
    ring = circle(graph_of(tmp_path, ["package"]))
    assert ring == ["package.a", "package.b", "package.c", "package.a"]


def has_module(test):
    """The module of a test's name: in the engine's package of the same name, in benchmarks, or anywhere in the plugin."""
    folder, name = test.parent.as_posix(), test.name.removeprefix("test_")
    if folder == "benchmarks":
        return (BENCHMARKS / name).is_file()
    if folder == "plugin":
        return any(PLUGIN.rglob(name))
    return (ENGINE / folder / name).is_file()


def test_tests_are_found_by_the_name_of_what_they_test():
    tests = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    nameless = {name for name in tests if not has_module(Path(name))}
    assert not nameless - set(SUBJECTS)
    assert set(SUBJECTS) <= nameless, "an exception that is not needed any more: remove it"


def modules_without_test_file():
    modules = {path.relative_to(ENGINE) for path in ENGINE.rglob("*.py") if not path.name.startswith("__")}
    return {path.as_posix() for path in modules if not (TESTS / path.parent / f"test_{path.name}").is_file()}


def test_every_module_of_the_engine_has_a_test_file_of_its_name():
    without = modules_without_test_file()
    assert not without - set(TESTED_ELSEWHERE)
    assert set(TESTED_ELSEWHERE) <= without, "an exception that is not needed any more: remove it"


def test_every_test_file_has_tests():
    empty = [path for path in TESTS.rglob("test_*.py") if not re.search(r"^\s*def test_", path.read_text(), re.M)]
    assert not empty


def test_what_the_documents_name_is_there():
    """Files in backticks, relative to the repository or to any of its packages, and modules in the table of layers."""
    text = (ROOT / "docs/architecture.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    named = {name for name in re.findall(r"`([\w/.-]+\.(?:py|md|txt|svg))`", text)}
    layers = text.split("## Layers")[1].split("## Ab initio")[0]
    rows = re.findall(r"^\| \d.*$", layers, re.M)
    named |= {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[2])}
    homes = [ROOT, ENGINE, PLUGIN, ENGINE / "ab_initio", PLUGIN / "protocols", PLUGIN.parent]

    def is_there(name):
        return any((home / name).exists() or (home / f"{name}.py").exists() for home in homes)

    assert len(named) > 50
    assert not {name for name in named if not is_there(name)}


def test_the_picture_of_the_data_flow_is_drawn_from_its_script():
    specification = importlib.util.spec_from_file_location("data_flow", ROOT / "script/data_flow.py")
    data_flow = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(data_flow)
    assert data_flow.PICTURE.read_text() == data_flow.svg(), "run python script/data_flow.py"
