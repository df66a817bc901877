"""The page of results, ``benchmarks/RESULTS.md``, written from the rows in ``benchmarks/results/*.json``.

    python benchmarks/results_page.py            # writes the page
    python benchmarks/results_page.py --check    # exit code 1 where the page is not what the rows give

One file for each question: ``group`` and ``order`` on the page, ``title``, ``intro``, ``key`` (the columns that say which
row it is), ``columns`` (``id``, ``title``, and where needed ``format``, as in ``format()``, ``unit`` and ``join`` for lists)
and ``rows`` (``figures`` for every column, ``command``, ``date``, ``commit``, ``hardware`` and, where needed, ``note``). A
benchmark calls ``record`` when it has run; Git shows what has changed. Only Python's own library is used, for Scipion's
Python runs it, too.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent
PAGE, FOLDER, HISTORY = "RESULTS.md", "results", "history"
GROUPS = ("Accuracy of poses", "Ab initio", "Against other programs", "Coverage of error bounds", "Junk and clean-up",
          "Speed", "Scale")
MEASURED_BY = ("command", "date", "commit", "hardware")
HEAD = """# Benchmark results

One table for each question, each row with its latest values. The number in the last column leads to the command and the
hardware below the table. A commit is the one that was measured; for rows of 2026-11-23 and before, the one that brought the
values into this repository. Older values, and what was tried on the way, are in
[history](history/README.md).

This page is generated: `python benchmarks/results_page.py` writes it from `benchmarks/results/*.json`, to which each
benchmark adds its rows when it runs.

Terms. **Misassigned**: more than 10 degrees from the true pose. **Empirical coverage**: the fraction of particles whose error
lies within its bound; the nominal coverage is 90 %. **Cramer-Rao bound**: the median error of the best unbiased estimator, with
map and noise known. **Particle probability**: the probability that an image is a particle rather than junk.
"""


def load(path: Path) -> dict:
    """A question, checked.

    Raises:
        ValueError: where a row lacks a figure, or what it was measured by, two rows have one key, or there is no such group.
    """
    question = json.loads(path.read_text(encoding="utf-8"))
    if question["group"] not in GROUPS:
        raise ValueError(f"{path.name}: the group is one of {', '.join(GROUPS)}, not {question['group']}")
    seen = set()
    for row in question["rows"]:
        _check(question, row, path.name)
        key = row_key(question, row)
        if key in seen:
            raise ValueError(f"{path.name}: every row has a key of its own, but two have {key}; remove one of them")
        seen.add(key)
    return question


def _check(question: dict, row: dict, name: str) -> None:
    expected, found = {column["id"] for column in question["columns"]}, set(row["figures"])
    if expected != found:
        raise ValueError(f"{name}: a row has a figure for every column and no others (null where there is none); missing: "
                         f"{sorted(expected - found)}, unknown: {sorted(found - expected)}")
    for field in MEASURED_BY:
        if not row.get(field) or row[field] == "unknown":
            raise ValueError(f"{name}: a row says by which {field} it was measured; {row_key(question, row)} does not")


def row_key(question: dict, row: dict) -> tuple:
    return tuple(json.dumps(row["figures"][column]) for column in question["key"])


def cell(column: dict, value: object) -> str:
    """A figure as the page shows it: null is a dash, text stays as it is, a list is joined."""
    if value is None:
        return "-"
    if isinstance(value, list):
        bare = {key: column[key] for key in column if key != "unit"}
        text = column.get("join", ", ").join(cell(bare, one) for one in value)
    elif isinstance(value, str) or "format" not in column:
        return str(value)
    else:
        text = format(value, column["format"])
    return text + column.get("unit", "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def section(question: dict) -> str:
    """A question in Markdown: its table, and below it the runs that its rows come from."""
    columns, rows = question["columns"], question["rows"]
    runs = list(dict.fromkeys((row["command"], row["hardware"]) for row in rows))
    has_notes = any("note" in row for row in rows)
    header = [column["title"] for column in columns] + ["note"] * has_notes + ["date", "commit", "run"]
    lines = [f"### {question['title']}", "", question["intro"]]
    if not rows:
        return "\n".join(lines)
    lines += ["", _line(header), "|" + "---|" * len(header)]
    for row in rows:
        cells = [cell(column, row["figures"][column["id"]]) for column in columns]
        cells += [row.get("note", "")] * has_notes
        lines.append(_line([*cells, row["date"], row["commit"], str(1 + runs.index((row["command"], row["hardware"])))]))
    lines += ["", *(f"{i}. `{command}`; {hardware}" for i, (command, hardware) in enumerate(runs, 1))]
    return "\n".join(lines)


def page(home: Path = HOME) -> str:
    """The whole page."""
    questions = sorted((load(path) for path in (home / FOLDER).glob("*.json")), key=lambda question: question["order"])
    parts = [HEAD]
    for group in GROUPS:
        parts.append(f"## {group}\n")
        parts += [section(question) + "\n" for question in questions if question["group"] == group]
    return "\n".join(parts)


def write_page(home: Path = HOME) -> None:
    (home / PAGE).write_text(page(home), encoding="utf-8")


# ---------------------------------------------------------------- what benchmarks call
def record(question: str, row: dict, home: Path = HOME) -> None:
    """Puts a row, ``{"figures": {column: value, ...}}``, in place of the one with the same key, or at the end, and
    writes the page.

    ``note``, ``command`` and ``hardware`` may be given; the date is today's, and the commit Git's.

    Raises:
        ValueError: where the row's figures are not those of the question's columns.
    """
    path = home / FOLDER / f"{question}.json"
    table = load(path)
    row = {"figures": row["figures"], "command": row.get("command") or command_line(),
           "date": datetime.date.today().isoformat(), "commit": commit(), "hardware": row.get("hardware") or hardware(),
           **({"note": row["note"]} if row.get("note") else {})}
    _check(table, row, path.name)
    places = [i for i, old in enumerate(table["rows"]) if row_key(table, old) == row_key(table, row)]
    if places:
        table["rows"][places[0]] = row
    else:
        table["rows"].append(row)
    save(path, table)
    write_page(home)


def save(path: Path, question: dict) -> None:
    """One line for each column and row, so that a changed figure is one changed line."""
    def lines(values: list) -> str:
        return "[\n" + ",\n".join("    " + json.dumps(value, ensure_ascii=False) for value in values) + "\n  ]"

    parts = [f"  {json.dumps(key)}: " + (lines(value) if key in ("columns", "rows") and value
                                          else json.dumps(value, ensure_ascii=False)) for key, value in question.items()]
    written = path.with_suffix(".new")
    written.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    os.replace(written, path)


def command_line() -> str:
    """The command of this process; of paths the names alone, for where files lie differs from machine to machine."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def commit() -> str:
    """Of the checkout that this file belongs to; a copy without Git must not cost the figures of a long run."""
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(HOME), *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        # rows and page are what is being written
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude,top)benchmarks/{FOLDER}",
                      f":(exclude,top)benchmarks/{PAGE}")
        return git("rev-parse", "--short=7", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "a copy without Git"


def hardware() -> str:
    """The GPU where PyTorch, loaded by the benchmark, sees one; else the CPU and its threads."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return cpu_hardware()


def cpu_hardware() -> str:
    """For benchmarks that run on the CPU whatever there is."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())
    names = Path("/proc/cpuinfo")
    found = [line.partition(":")[2].strip() for line in (names.read_text().splitlines() if names.exists() else ())
             if line.startswith("model name")]
    name = found[0] if found else platform.processor() or platform.machine()
    return f"{name}, {threads} thread{'s' * (threads > 1)}, no GPU"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the page differs")
    if not parser.parse_args().check:
        write_page()
        return 0
    if page() == (HOME / PAGE).read_text(encoding="utf-8"):
        return 0
    print(f"benchmarks/{PAGE} is not what benchmarks/{FOLDER}/*.json give; run python benchmarks/results_page.py",
          file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
