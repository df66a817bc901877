"""Names that are not defined, and imports that nothing uses, in every file: no test need reach the line."""

from pathlib import Path

import pytest
from pyflakes.api import checkPath
from pyflakes.messages import ForwardAnnotationSyntaxError
from pyflakes.reporter import Reporter

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("cryoforum_core", "scipion-em-cryoforum", "tests", "benchmarks", "script")


class _Messages(Reporter):
    def __init__(self):
        self.found = []

    def flake(self, message):
        # the shapes of annotations, as in Float[Tensor, "n 4"], are text and no code
        if not isinstance(message, ForwardAnnotationSyntaxError):
            self.found.append(str(message))

    def unexpectedError(self, filename, message):
        self.found.append(f"{filename}: {message}")

    def syntaxError(self, filename, message, *_):
        self.found.append(f"{filename}: {message}")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_name_is_defined_and_every_import_used(folder):
    messages = _Messages()
    files = list((REPOSITORY / folder).rglob("*.py"))
    # what a package imports for its users
    for path in (path for path in files if path.name != "__init__.py"):
        checkPath(str(path), messages)
    assert files and not messages.found
