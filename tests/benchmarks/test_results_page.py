"""The page of results: what its rows generate, and rows that benchmarks put into it."""

import ast
import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
results_page = importlib.import_module("results_page")
QUESTIONS = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.fixture
def home(tmp_path):
    """A copy of rows and page."""
    shutil.copytree(BENCHMARKS / "results", tmp_path / "results")
    shutil.copy(BENCHMARKS / "RESULTS.md", tmp_path)
    return tmp_path


def rows(home, name):
    return json.loads((home / "results" / f"{name}.json").read_text())["rows"]


def test_the_page_is_what_the_rows_generate():
    assert results_page.page() == (BENCHMARKS / "RESULTS.md").read_text()


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_every_row_has_all_fields(path):
    question = results_page.load(path)
    columns = {column["id"] for column in question["columns"]}
    assert set(question["key"]) <= columns and len(columns) == len(question["columns"])
    for row in question["rows"]:
        assert set(row["figures"]) == columns
        assert {"figures", *results_page.MEASURED_BY} <= set(row) <= {"figures", "note", *results_page.MEASURED_BY}
        assert all(isinstance(row[field], str) and row[field] for field in results_page.MEASURED_BY)


def test_every_group_and_question_is_on_the_page():
    text = results_page.page()
    assert len(QUESTIONS) > 10
    assert all(f"## {group}\n" in text for group in results_page.GROUPS)
    assert all(f"### {json.loads(path.read_text())['title']}\n" in text for path in QUESTIONS)


def test_check_fails_where_a_figure_was_changed_by_hand(home, monkeypatch, capsys):
    monkeypatch.setattr(results_page, "HOME", home)
    monkeypatch.setattr(results_page.page, "__defaults__", (home,))
    monkeypatch.setattr(sys, "argv", ["results_page.py", "--check"])
    assert results_page.main() == 0
    page = home / "RESULTS.md"
    page.write_text(page.read_text().replace("| 0.69 |", "| 0.68 |", 1))
    assert results_page.main() == 1 and "run python benchmarks/results_page.py" in capsys.readouterr().err


def test_record_replaces_the_row_of_the_same_key(home):
    before = rows(home, "poses")
    figures = before[2]["figures"] | {"median_deg": 0.43217}
    results_page.record("poses", {"figures": figures, "note": "by a test"}, home)
    after = rows(home, "poses")
    assert len(after) == len(before) and after[:2] + after[3:] == before[:2] + before[3:]
    assert after[2]["figures"] == figures and after[2]["date"] >= before[2]["date"]
    assert after[2]["note"] == "by a test" and after[2]["commit"].split()[0] in results_page.commit()
    assert "thread" in after[2]["hardware"] or "NVIDIA" in after[2]["hardware"]
    assert (home / "RESULTS.md").read_text() == results_page.page(home) and "| 0.43 |" in results_page.page(home)


def test_record_appends_a_row_of_another_key(home):
    before = rows(home, "symmetry")
    results_page.record("symmetry", {"figures": before[0]["figures"] | {"group": "D7"}}, home)
    assert rows(home, "symmetry")[:-1] == before and rows(home, "symmetry")[-1]["figures"]["group"] == "D7"


def test_record_refuses_missing_and_unknown_figures(home):
    figures = rows(home, "symmetry")[0]["figures"]
    with pytest.raises(ValueError, match="unknown: \\['mean'\\]"):
        results_page.record("symmetry", {"figures": figures | {"mean": 1.0}}, home)
    with pytest.raises(ValueError, match="missing: \\['box_px'\\]"):
        results_page.record("symmetry", {"figures": {key: figures[key] for key in figures if key != "box_px"}}, home)
    assert (home / "results" / "symmetry.json").read_bytes() == (BENCHMARKS / "results" / "symmetry.json").read_bytes()


def test_figures_as_the_page_shows_them():
    cell = results_page.cell
    assert cell({"format": ".2f", "unit": " %"}, 0.7) == "0.70 %" and cell({"format": ","}, 10000) == "10,000"
    assert cell({"format": ".0f", "unit": " %"}, [92.4, 89]) == "92, 89 %"
    assert cell({"format": ".2f", "join": " / "}, [10, 2.345]) == "10.00 / 2.35" and cell({"format": ".2f"}, None) == "-"
    assert cell({"format": ".2f"}, "about 152") == "about 152"


def test_commands_name_files_and_not_where_they_lie(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/symmetry.py", "--out", "/home/user/out", "--model", "C3=a b.pdb"])
    assert results_page.command_line() == "python benchmarks/symmetry.py --out out --model 'C3=a b.pdb'"


def test_a_copy_without_git_is_named_so(tmp_path, monkeypatch):
    assert "without Git" not in results_page.commit()
    monkeypatch.setattr(results_page, "HOME", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results_page.commit() == "a copy without Git"


def recorded():
    """(script, question, the names written in the call) of every call of ``record`` in a benchmark."""
    for script in sorted(BENCHMARKS.glob("*.py")):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "record":
                keys = [key.value for each in ast.walk(node.args[1]) if isinstance(each, ast.Dict) for key in each.keys
                        if isinstance(key, ast.Constant)]
                yield script.name, node.args[0].value, keys


@pytest.mark.parametrize("script, question, names", list(recorded()))
def test_benchmarks_record_columns_that_there_are(script, question, names):
    columns = {column["id"] for column in results_page.load(BENCHMARKS / "results" / f"{question}.json")["columns"]}
    assert set(names) <= columns | {"figures", "hardware", "note"}
