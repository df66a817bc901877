"""Links of the documents, and the documents that comments of the engine name, lead to files that are there."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(path for path in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md",
                                     *(REPOSITORY / "docs").rglob("*.md")] if path.is_file())
DECISIONS = REPOSITORY / "docs" / "decisions"
HEADINGS = ["Context", "Decision", "Evidence", "What lost", "Status"]

_LINK = re.compile(r"\[[^]]*\]\(\s*([^)\s]+)\s*\)")
_WEB = re.compile(r"[a-z]+:")
# a folder may be named with its slash, and a sentence may end after the name
_NAMED = re.compile(r"\bdocs/[\w./-]*[\w/]")


def missing_links(text: str, folder: Path) -> list[str]:
    """Targets of relative links in Markdown that do not exist; of a link into a page only the page is looked for."""
    targets = [target for target in _LINK.findall(text) if not _WEB.match(target) and not target.startswith("#")]
    return [target for target in targets if not (folder / target.partition("#")[0]).exists()]


def missing_documents(text: str) -> list[str]:
    """Paths below ``docs/`` that a source file names and that do not exist."""
    return [name for name in _NAMED.findall(text) if not (REPOSITORY / name).exists()]


def test_missing_files_are_noticed():
    text = "[a](docs/images/demo.png), [broken\nline](docs/nowhere.md#part), [web](https://example.org/x), [here](#part)"
    assert missing_links(text, REPOSITORY) == ["docs/nowhere.md#part"]
    assert missing_documents("see ``docs/conventions.md``, docs/decisions.md, docs/decisions/.") == ["docs/decisions.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_relative_links_lead_somewhere(document):
    assert not missing_links(document.read_text(encoding="utf-8"), document.parent)


def test_documents_named_in_the_engine_exist():
    named = {path: missing_documents(path.read_text(encoding="utf-8"))
             for path in (REPOSITORY / "cryoforum_core").rglob("*.py")}
    assert named and not {path.name: names for path, names in named.items() if names}


def test_every_decision_has_its_headings_and_is_in_the_index():
    files = sorted(DECISIONS.glob("[0-9]*.md"))
    assert [path.name[:5] for path in files] == [f"{number:04d}-" for number in range(1, len(files) + 1)]
    for path in files:
        assert re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) == HEADINGS, path.name
    linked = _LINK.findall((DECISIONS / "README.md").read_text(encoding="utf-8"))
    assert sorted(link for link in linked if link[0].isdigit()) == [path.name for path in files]
