"""What a run says of its progress, also after a stop, by a clock that the test sets."""

import json
from types import SimpleNamespace

import pytest
import torch

from cryoforum_core.ab_initio import live_run
from cryoforum_core.ab_initio.live_run import LiveRun
from cryoforum_core.run_directory import RunDirectory

SHARES = {"search": 1.0, "half maps": 1.0, "network": 2.0}


@pytest.fixture
def clock(monkeypatch):
    """``clock.now``: seconds of the clock that the run reads."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(live_run, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def shown(run: RunDirectory) -> dict:
    return json.loads(run.progress.read_text())


def test_after_a_stop_the_time_left_is_estimated_from_all_the_time_taken(tmp_path, clock):
    """Half of the run took 100 s before it was stopped, 20 s of it in the network's stage."""
    run = RunDirectory(tmp_path)
    run.progress.write_text(json.dumps({"stage": "network", "seconds": 100.0}))
    live = LiveRun(run, SHARES)
    live.go_on_after({"search": 50.0, "half maps": 30.0})
    for done_before in ("search", "half maps"):
        with live.stage(done_before):
            pass
    with live.stage("network"):
        live.map(torch.zeros(16, 16, 16), 2.0)
        assert shown(run)["seconds"] == pytest.approx(100) and shown(run)["fraction"] == 0.5
        assert shown(run)["seconds_left"] == pytest.approx(100)
    assert live.seconds["search"] == pytest.approx(50) and live.seconds["half maps"] == pytest.approx(30)
    for cell in ("50 s", "30 s"):  # of the stages, on the page
        assert f"<td>{cell}</td>" in run.live.read_text()


def test_the_time_left_is_unknown_at_the_start_and_known_later(tmp_path, clock):
    live = LiveRun(RunDirectory(tmp_path), SHARES)
    with live.stage("search"):
        assert shown(live.run)["seconds"] == 0 and shown(live.run)["seconds_left"] is None
        clock.now += 30.0
        live.show(0.4, "a tenth of the run is done")
    assert shown(live.run)["fraction"] == pytest.approx(0.1) and shown(live.run)["seconds_left"] == pytest.approx(270)


def test_the_page_is_not_written_more_often_than_every_three_seconds(tmp_path, clock):
    live, seen = LiveRun(RunDirectory(tmp_path), SHARES), []
    with live.stage("search"):
        for part in (0.1, 0.2, 0.3, 0.4):
            clock.now += 2.0
            live.show(part)
            seen.append(shown(live.run)["seconds"])
    assert seen == [0.0, 4.0, 4.0, 8.0]
