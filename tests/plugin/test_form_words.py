"""The engine's sentences, which speak of its command line, in the words of the forms."""

import ast
import re
from pathlib import Path

import pytest
from engine_data import engine_defaults

ENGINE = Path(__file__).resolve().parents[2] / "cryoforum_core"
# modules whose sentences a protocol's summary shows
SAID_IN = ["ab_initio/hybrid.py", "ab_initio/end_to_end.py", "inference/applicability.py", "inference/mismatch.py"]


@pytest.fixture(scope="module")
def words(project):
    from cryoforum.protocols import form_words

    return form_words


@pytest.mark.parametrize("engines, forms", [
    ("Run again with another --seed, more --seeds or more --search-steps.",
     'Run again with another "Random seed", more "Random starts" or more "Search steps".'),
    ("protein is dark in these images, not bright: give --contrast dark",
     'protein is dark in these images, not bright: give "Contrast of the images": dark protein'),
    ("give --ctf-state phase-flipped (or multiplied, if so)",
     'give "CTF correction of the images": phases flipped (or multiplied, if so)'),
    ("Use --refinement adaptive, or train the network longer",
     'Use "Refinement": adaptive, or train the network longer'),
    ("Give the map's own --symmetry, or turn the map", "Give the map's own \"Symmetry\", or turn the map"),
    ("correct it (rlnImagePixelSize, or --pixel-size-angstrom 3.14), or the map's",
     "correct it (the sampling rate at their import: 3.14 Å), or the map's"),
    ("Give a map with --reference, or use --unknown more.", 'Give a map with "Reference map", or use --unknown more.'),
    ("No option at all - nothing changes.", "No option at all - nothing changes.")])
def test_options_become_labels(words, engines, forms):
    assert words.inFormWords(engines) == forms


def test_every_label_is_one_of_a_form(words, project):
    import pyworkflow as pw

    labels = set()
    for name, Protocol in pw.Config.getDomain().getProtocols().items():
        if name.startswith("CryoForumProt"):
            labels |= {parameter.label.get() for _, parameter in
                       project.newProtocol(Protocol).getDefinition().iterParams()}
    assert {label for label in words.LABELS.values()
            if label not in labels and label + " (optional)" not in labels} == set()


def test_every_option_is_one_of_the_engine(words):
    known = set().union(*(engine_defaults(name) for name in ("TrainConfig", "AbInitioConfig")))
    known |= {"model", "refinement", "calibration_particles"}  # of predict, which needs a model to have defaults
    assert {name.replace("-", "_") for name in words.LABELS} <= known


@pytest.mark.parametrize("path", SAID_IN)
def test_no_option_is_left_in_what_a_summary_shows(words, path):
    """Errors of options that no form has (InputError) are not shown by a protocol."""
    tree = ast.parse((ENGINE / path).read_text())
    raised = {id(node) for error in ast.walk(tree) if isinstance(error, ast.Raise) for node in ast.walk(error)}
    texts = [node.value for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in raised]
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree)
                  if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)}
    options = {option for text in texts if text not in docstrings for option in re.findall(r"--([a-z][a-z-]*)", text)}
    assert options - {"pixel-size-angstrom"} <= set(words.LABELS)
