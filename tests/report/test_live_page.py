"""The live page: complete at any time, quick, and correct however little is known yet."""

import base64
import html
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from cryoforum_core.report.live_page import write_live
from cryoforum_core.run_directory import RunDirectory

from .example_runs import molecule

STAGES = ["search", "half maps", "network", "refinement"]


def progress(stage_number=2, fraction=0.4, seconds=120.0, **more):
    return {"stage": STAGES[stage_number - 1], "stage_number": stage_number, "n_stages": 4, "fraction": fraction,
            "seconds": seconds, "seconds_left": 180.0, "resolution_angstrom": 21.3, "message": "step 30 of 90", **more}


def history(n=20):
    return [progress(1, i / 50, 5.0 * i, resolution_angstrom=60.0 - i, score=float(i)) for i in range(n)]


def fsc(box=64):
    return 1 / (1 + np.exp(np.arange(box // 2 + 1) - 10.0))


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


def text_of(run):
    return html.unescape(run.live.read_text(encoding="utf-8"))


def rows_of(run):
    table = re.search(r'<table class="grid">(.*?)</table>', text_of(run), re.DOTALL).group(1)
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]


def test_page_shows_everything_that_is_known(run):
    write_live(run, progress(), molecule(), 6.0, {"half maps": fsc(32)}, history(),
               {"images": np.zeros((8, 16, 16)), "projections": np.ones((8, 16, 16))})
    text = text_of(run)
    assert json.loads(run.progress.read_text()) == progress()
    for words in ("2 of 4: half maps", "step 30 of 90", "40 %", "3 min", "21.3 Å", 'http-equiv="refresh"'):
        assert words in text, words
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["Stages", "Fourier shell correlation", "The map so far",
                                                   "Resolution", "Score", "Examples"]
    for source in re.findall(r'<img src="data:.*?;base64,(.*?)"', text):
        assert len(base64.b64decode(source)) > 1000
    assert not re.search(r"https?://|<script|<link|@import|url\(", re.sub(r'src="data:.*?"', "", text))


def test_loss_is_plotted_where_there_is_one(run):
    learning = [progress(1, i / 50, 5.0 * i, resolution_angstrom=None, loss=1.0 / (1 + i)) for i in range(5)]
    write_live(run, progress(1, 0.2, 30.0, resolution_angstrom=None, loss=0.1), None, 6.0, {}, learning)
    assert re.findall(r"<h3>(.*?)</h3>", text_of(run)) == ["Stages", "Loss"]


def test_stages_have_their_state_and_time(run):
    write_live(run, progress(), None, 6.0, {}, history())
    assert rows_of(run) == [["1", "search", "done", "2 min"], ["2", "half maps", "running", "25 s"],
                            ["3", "stage 3", "pending", ""], ["4", "stage 4", "pending", ""]]
    assert text_of(run).count('class="marked"') == 1


def test_stages_are_named_where_they_are_known(run):
    write_live(run, progress(stages=STAGES), None, 6.0, {}, [])
    assert [row[1:3] for row in rows_of(run)] == [["search", "done"], ["half maps", "running"], ["network", "pending"],
                                                  ["refinement", "pending"]]


def test_resumed_run_has_no_history(run):
    write_live(run, progress(3), None, 6.0, {}, [])
    assert [row[1] for row in rows_of(run)] == ["stage 1", "stage 2", "network", "stage 4"]


def test_page_of_a_run_that_has_just_started(run):
    start = progress(1, 0.0, 0.0, seconds_left=None, resolution_angstrom=None, message="")
    write_live(run, start, None, 6.0, {}, [])
    assert "<img" not in text_of(run) and "time left (estimate)" in text_of(run)
    assert json.loads(run.progress.read_text()) == start


def test_nan_and_infinite_values_do_no_harm(run):
    write_live(run, progress(resolution_angstrom=float("nan"), seconds_left=float("inf")), np.zeros((16, 16, 16)), 6.0,
               {"a": np.full(9, np.nan), "b": fsc(16)[:5]}, history())
    found = json.loads(run.progress.read_text(), parse_constant=pytest.fail)
    assert found["resolution_angstrom"] is None and found["seconds_left"] is None


def test_finished_run_links_to_its_report(run):
    write_live(run, progress(4, 1.0), None, 6.0, {}, history())
    assert "finished" in text_of(run) and 'href="report.html"' in text_of(run)
    assert {row[2] for row in rows_of(run)} == {"done"} and 'class="marked"' not in text_of(run)


def test_text_of_the_run_cannot_become_html(run):
    write_live(run, progress(message="<script>alert(1)</script>"), None, 6.0, {}, [])
    assert "<script>" not in run.live.read_text()


def test_live_page_needs_no_torch():
    subprocess.run([sys.executable, "-c", "import cryoforum_core.report.live_page, sys; assert 'torch' not in sys.modules"],
                   check=True)
