"""The content of a page, before it becomes HTML."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from . import plots

# characters that fit on a line of the page
_LONG_COMMAND = 120
Level = Literal["good", "caution", "poor"]


@dataclass(frozen=True)
class Assessment:
    """The result of a run in two or three sentences, for readers who read no further."""

    level: Level
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Alarm:
    """Why the results cannot be used, and the remedy; shown at the top of the page."""

    title: str
    text: str


@dataclass(frozen=True)
class NextStep:
    """A next step, its command line, and the Scipion protocol for it where there is one."""

    what: str
    command: str
    in_scipion: str | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with its title, and a caption that says what to look for. ``wide``: over both columns."""

    title: str
    caption: str
    figure: "plots.Figure"
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A few rows of text under a title, with a caption that says what to look for; ``marked_row`` is highlighted.
    ``wide``: over both columns."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked_row: int | None = None
    wide: bool = False


@dataclass(frozen=True)
class Page:
    """``facts`` are the key figures at the top of the page, as label -> text."""

    title: str
    assessment: Assessment
    next_steps: tuple[NextStep, ...]
    facts: dict[str, str]
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    alarm: Alarm | None = None


def command(job: str, **options: object) -> str:
    """``cryoforum predict --particles ... --out ...``; options that are None are left out.

    Paths are made absolute, so that the command works from any directory; a long one takes a line per option.
    """
    words = [f"cryoforum {job}", *(_flag(name.replace("_", "-"), value) for name, value in options.items()
                                   if value is not None)]
    return (" " if sum(map(len, words)) < _LONG_COMMAND else " \\\n    ").join(words)


def _flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([f"--{name}", *(shlex.quote(str(each.absolute() if isinstance(each, Path) else each))
                                    for each in values)])


def beside(run: Path, suffix: str) -> Path:
    """A directory next to that of a run, for the run that follows it."""
    return run.with_name(f"{run.name}_{suffix}")


def with_angstrom_sign(message: str) -> str:
    """A message of a run, which is written for terminals, as pages show it: ``24 A`` becomes ``24 Å``."""
    return re.sub(r"(?<=\d) A(?=[^\w^]|$)", " Å", message)


def degrees(value: float) -> str:
    """``0.53°``, ``4.2°``, ``57°``: three digits at most."""
    return f"{significant(value)}°"


def significant(value: float) -> str:
    """Three significant digits without an exponent: ``0.0123``, ``1.23``, ``123``, ``12,300``."""
    if not np.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    decimals = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    text = f"{round(value, 2 - int(np.floor(np.log10(abs(value))))):,.{decimals}f}"
    return text


def percent(fraction: float) -> str:
    """``85 %``, ``4.2 %``."""
    return f"{100 * fraction:.0f} %" if fraction >= 0.1 or fraction == 0 else f"{100 * fraction:.2g} %"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def level_of(value: float, good: float, caution: float) -> Level:
    """The level of a value for which lower is better; NaN is poor."""
    return "good" if value <= good else "caution" if value <= caution else "poor"
