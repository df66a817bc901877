"""What a run says of its progress, also after a stop."""

import json

import pytest
import torch

from cryoforum_core.ab_initio.live_run import LiveRun
from cryoforum_core.run_directory import RunDirectory

SHARES = {"search": 1.0, "half maps": 1.0, "network": 2.0}


def shown(run: RunDirectory) -> dict:
    return json.loads(run.progress.read_text())


def test_after_a_stop_the_time_left_is_reckoned_from_all_the_time_taken(tmp_path):
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
        assert shown(run)["seconds"] == pytest.approx(100, abs=30)
        assert shown(run)["fraction"] == 0.5 and shown(run)["seconds_left"] == pytest.approx(shown(run)["seconds"])
    assert live.seconds["search"] == pytest.approx(50, abs=15)
    for cell in ("50 s", "30 s"):  # of the stages, on the page
        assert f"<td>{cell}</td>" in run.live.read_text()


def test_a_first_run_begins_with_nothing(tmp_path):
    live = LiveRun(RunDirectory(tmp_path), SHARES)
    with live.stage("search"):
        assert shown(live.run)["seconds"] < 30 and shown(live.run)["seconds_left"] is None
