"""The words, titles and commands of a page, and its HTML, for tests to look at."""

import html
import re
import shlex

from cryoforum_core.report.report import write_report


def page_of(run, path, **options) -> tuple[str, dict]:
    """Text of the report that is written to ``path``, and its summary."""
    summary = write_report(run, path, **options)
    return html.unescape(path.read_text(encoding="utf-8")), summary


def words(page) -> str:
    return " ".join(page.assessment.sentences)


def titles_of(page) -> list[str]:
    return [picture.title for picture in page.pictures]


def commands_in(text: str) -> list[str]:
    return [" ".join(shlex.split(command.replace("\\\n", "")))
            for command in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]
