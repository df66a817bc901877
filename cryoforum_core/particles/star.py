"""STAR files as RELION reads them, every value kept as the text that stood in the file.

Values are tokens between white space; a token in quotes may hold spaces or be empty, and its closing quote is the one
followed by white space (RELION's ``nextTokenInSTAR``). Text is kept because a number that is parsed and printed
again is not the same number, and because names may look like numbers. (The starfile library, which tests use as the
independent reader, turns ``nan`` into ``<NA>``, stops at a ``#`` within a name and drops the ``# version`` lines.)
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ..errors import InputError
from ..run_directory import atomic_path

# variable-width strings of numpy 2: values of up to 15 bytes take 16 bytes, a tenth of a Python string with its slot
TEXT = np.dtypes.StringDType()

# a token in quotes, or one up to the next white space
_TOKEN = re.compile(r"""(["'])(.*?)\1(?=\s|$)|(\S+)""")
# what would be read as nothing, as several values, or as a keyword
_NEEDS_QUOTES = re.compile(r"""^$|\s|^["'#_]|^(?:data_|loop_)""")
# Python strings of so many rows in memory at once
_ROWS_PER_CHUNK = 100_000


@dataclass(frozen=True, eq=False)
class StarBlock:
    """One ``data_`` block: columns of text in file order; a block that is no loop has n = 1."""

    name: str
    columns: dict[str, Shaped[np.ndarray, " n"]]
    is_loop: bool = True
    comments: tuple[str, ...] = ()
    """The ``#`` lines above the block, such as ``# version 30001``."""

    def __post_init__(self):
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"the columns of data_{self.name} have different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


class _Lines:
    """The lines of a file, stripped, without blank and comment lines, with a look at the current one."""

    def __init__(self, path: Path, lines: Iterable[str]):
        self.path, self._iterator = path, enumerate(lines, start=1)
        self.number, self.current, self.comments = 0, "", []
        self.after_blank = True
        self.advance()

    def advance(self) -> None:
        self.after_blank = False
        for self.number, line in self._iterator:
            line = line.strip()
            if line.startswith("#"):
                self.comments.append(line)
            elif line:
                self.current = line
                return
            self.after_blank = True
        self.current = None

    def take_comments(self) -> tuple[str, ...]:
        comments, self.comments = tuple(self.comments), []
        return comments

    def error(self, rule: str) -> InputError:
        return InputError(f"{rule}; line {self.number} of {self.path} is {self.current[:80]!r}. "
                          "Repair the file, or export it again.")


def read_star(path: Path | str) -> tuple[StarBlock, ...]:
    """The blocks of a STAR file, in file order.

    Raises InputError where the file is missing, is not text, or a row does not fit its header (with its line).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"A STAR file must exist; {path} does not. Check the path.")
    blocks = []
    try:
        with path.open(encoding="utf-8") as file:
            lines = _Lines(path, file)
            while lines.current is not None:
                if not lines.current.startswith("data_"):
                    raise lines.error("A STAR file consists of data_ blocks")
                blocks.append(_read_block(lines))
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"A STAR file must be readable text (UTF-8); {path} is not ({error}). "
                         "Give the particles' STAR file, not an image file.") from error
    if not blocks:
        raise InputError(f"A STAR file must contain a data_ block; {path} contains none. Check the path.")
    return tuple(blocks)


def _read_block(lines: _Lines) -> StarBlock:
    name, comments = lines.current[len("data_"):], lines.take_comments()
    lines.advance()
    if lines.current is not None and lines.current.split()[0] == "loop_":
        lines.advance()
        return StarBlock(name, _read_loop(lines), True, comments)
    return StarBlock(name, _read_pairs(lines), False, comments)


def _read_pairs(lines: _Lines) -> dict[str, np.ndarray]:
    columns = {}
    while lines.current is not None and lines.current.startswith("_"):
        tokens = _tokens(lines.current)
        if len(tokens) != 2:
            raise lines.error("Outside a loop a line must be a name and one value")
        columns[tokens[0][1:]] = np.array(tokens[1:], dtype=TEXT)
        lines.advance()
    return columns


def _read_loop(lines: _Lines) -> dict[str, np.ndarray]:
    names = []
    while lines.current is not None and lines.current.startswith("_"):
        names.append(lines.current.split()[0][1:])
        if names[-1] in names[:-1]:
            raise lines.error("A loop must name each column once")
        lines.advance()
    if not names:
        raise InputError(f"A loop must name its columns; one in {lines.path} (line {lines.number}) does not. "
                         "Repair the file, or export it again.")
    chunks: list[list[np.ndarray]] = [[np.array([], dtype=TEXT)] for _ in names]
    for rows in _row_chunks(lines, len(names)):
        for chunk, values in zip(chunks, zip(*rows)):
            chunk.append(np.array(values, dtype=TEXT))
    return {name: np.concatenate(chunk) for name, chunk in zip(names, chunks)}


def _row_chunks(lines: _Lines, n_columns: int) -> Iterator[list[list[str]]]:
    """Rows up to the next block, in chunks that bound the memory held as Python strings."""
    rows = []
    while lines.current is not None:
        values = _tokens(lines.current)
        # a first column may hold names such as data_01.mrc: only a lone word opens a block
        if len(values) == 1 and values[0].startswith("data_") and (n_columns > 1 or lines.after_blank):
            break
        if len(values) != n_columns:
            raise lines.error(f"A row must have one value per column ({n_columns})")
        rows.append(values)
        if len(rows) == _ROWS_PER_CHUNK:
            yield rows
            rows = []
        lines.advance()
    if rows:
        yield rows


def _tokens(line: str) -> list[str]:
    if '"' not in line and "'" not in line and "#" not in line:
        return line.split()
    tokens = []
    for match in _TOKEN.finditer(line):
        if match[3] is not None and match[3].startswith("#"):
            break
        tokens.append(match[2] if match[3] is None else match[3])
    return tokens


def write_star(path: Path | str, blocks: Iterable[StarBlock]) -> None:
    """Writes the blocks, whole or not at all: a stop leaves the former file in its place."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for block in blocks:
            file.writelines(f"{line}\n" for line in _block_lines(block))


def _block_lines(block: StarBlock) -> Iterator[str]:
    yield ""
    yield from block.comments
    yield f"data_{block.name}"
    yield ""
    if block.is_loop:
        yield "loop_"
        yield from (f"_{name} #{number}" for number, name in enumerate(block.columns, start=1))
        for start in range(0, len(block), _ROWS_PER_CHUNK):
            columns = (_quoted(column[start:start + _ROWS_PER_CHUNK]) for column in block.columns.values())
            yield from map(" ".join, zip(*columns))
    else:
        yield from (f"_{name} {_quoted(column)[0]}" for name, column in block.columns.items())
    yield ""


def _quoted(column: np.ndarray) -> list[str]:
    return [_quote(value) if _NEEDS_QUOTES.search(value) else value for value in column.tolist()]


def _quote(value: str) -> str:
    for mark in ('"', "'"):
        if "\n" not in value and not re.search(rf"{mark}(?=\s|$)", value):
            return f"{mark}{value}{mark}"
    raise ValueError(f"a STAR file cannot hold the value {value!r}: it has a line break or both kinds of quotes")
