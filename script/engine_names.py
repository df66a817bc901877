"""Writes what of the engine's names and limits others show: the Scipion plugin's ``engine_names.py``, and the lists of
junk in docs/file_formats.md. Run it after a change of cryoforum_core/catalogue.py: ``python script/engine_names.py``.
"""

import inspect
import sys
from pathlib import Path
from pprint import pformat
from textwrap import wrap

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from cryoforum_core import catalogue  # noqa: E402

PLUGIN_FILE = REPOSITORY / "scipion-em-cryoforum/cryoforum/engine_names.py"
LICENCE_OF = REPOSITORY / "scipion-em-cryoforum/cryoforum/constants.py"
DOCUMENT = REPOSITORY / "docs/file_formats.md"
START, END = "<!-- made from cryoforum_core/catalogue.py -->", "<!-- end -->"

DOCSTRING = '''"""Names and limits of the engine, which the plugin cannot import.

Made from cryoforum_core/catalogue.py by script/engine_names.py: do not edit.
"""

import math
from collections import namedtuple
'''
RECORDS = {"REASONS": ("Reason", ("label", "meaning", "question", "form_name", "is_junk")),
           "ENCODERS": ("Encoder", ("name", "meaning", "pooling")),
           "HEADS": ("Head", ("name", "meaning")),
           "MEASURES": ("Measure", ("name", "label", "column", "higher_is_better", "unit", "usual_limit", "own_limit"))}
CHOICES = ("LOSSES", "POOLINGS", "ACTIVATIONS", "PRECISIONS", "HALF_SETS", "REFINEMENTS", "AB_INITIO_METHODS", "CONTRASTS",
           "CTF_STATES", "JUNK_REASONS", "CHOSEN_REASONS")
NAMES = ("NOT_A_PARTICLE", "OVERLAP", "OFF_CENTRE", "OTHER_OBJECT", "AMBIGUOUS", "BEYOND_LIMIT", "NO_REASON",
         "PARTICLE_PROBABILITY", "MATCH_SCORE", "EXPECTED_ERROR", "ERROR_BOUND")


def plugin_source() -> str:
    """The plugin's module, for Python 3.8 or later; its licence is that of the file beside it."""
    licence = "".join(line + "\n" for line in LICENCE_OF.read_text().splitlines() if line.startswith("# *"))
    lines = [f"{name} = {getattr(catalogue, name)!r}" for name in NAMES]
    lines += [f"{name} = {getattr(catalogue, name)!r}" for name in CHOICES]
    for name, (record, attributes) in RECORDS.items():
        lines += ["", f"{record} = namedtuple({record!r}, {' '.join(attributes)!r})",
                  f"{name} = {{record[0]: record for record in ("]
        for each in getattr(catalogue, name).values():
            values = ",\n        ".join(_literal(getattr(each, attribute)) for attribute in attributes)
            lines += [f"    {record}(\n        {values}),"]
        lines += [")}"]
    for name, limit in _limits().items():
        lines += ["", *(f"# {line}" for line in wrap(limit.reason, 118)), f"{name} = {limit.value!r}"]
    # the formula itself, so that form and engine cannot differ
    formula = inspect.getsource(catalogue.fewest_known).replace(".value", "")
    return f"{licence}{DOCSTRING}\n" + "\n".join(lines) + f"\n\n\n{formula}"


def _literal(value) -> str:
    """Python's notation; a long text in several lines."""
    return pformat(value, width=100).replace("\n", "\n        ")


def _limits() -> dict[str, catalogue.Limit]:
    return {name: value for name, value in vars(catalogue).items() if isinstance(value, catalogue.Limit)}


def document() -> str:
    """docs/file_formats.md with the lists as the catalogue has them."""
    before, rest = DOCUMENT.read_text().split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{junk_lists()}{END}{after}"


def junk_lists() -> str:
    """Markdown tables of the reasons and of the kinds of junk that simulate makes."""
    lines = ["| `rlnCryoforumReason` | meaning | remedy |", "|---|---|---|", "| `none` | a particle | |"]
    lines += [f"| `{reason.label}` | {reason.meaning} | {reason.remedy} |" for reason in catalogue.REASONS.values()]
    lines += ["", "| `rlnCryoforumJunkKind` | meaning | found as |", "|---|---|---|", "| `none` | a particle | |"]
    lines += [f"| `{kind.name}` | {kind.meaning} | `{kind.reason}` |" for kind in catalogue.SIMULATED_JUNK.values()]
    return "".join(line + "\n" for line in lines)


def main() -> None:
    for path, text in ((PLUGIN_FILE, plugin_source()), (DOCUMENT, document())):
        path.write_text(text)


if __name__ == "__main__":
    main()
