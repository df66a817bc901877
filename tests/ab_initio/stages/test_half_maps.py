"""The rounds of the half maps as a stage of a run that is stopped in them."""

import pytest
import torch

from cryoforum_core import jobs
from cryoforum_core.ab_initio import hybrid, rounds
from cryoforum_core.ab_initio.stages import half_maps, search
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.saved_state import load_state

from ..hybrid_runs import FAST, first_particles, resumed, stop


def test_stopped_half_maps_go_on_after_the_last_round_that_was_done(folder, data, monkeypatch):
    """Stopped in the third round; the rounds before are not done again, and nothing differs from a run without a stop."""
    def kept(config):
        """What the half maps leave; the run is stopped after them."""
        with pytest.raises(KeyboardInterrupt):
            jobs.ab_initio(config)
        return load_state(config.out / "stages/half_maps.pt")

    options = {"particles": first_particles(data, 200, folder / "enough_for_rounds.star"), **FAST | {"search_steps": 5}}
    monkeypatch.setattr(hybrid, "train_network", stop)
    monkeypatch.setattr(hybrid, "match_finally", stop)  # where nothing is found, the network is left out
    whole = kept(AbInitioConfig(out=folder / "whole_rounds", **options))
    n_rounds, local_round, n_begun = len(whole["rounds"]), half_maps.local_round, []

    def counted(*arguments):
        n_begun.append(None)
        return stop() if len(n_begun) == 2 else local_round(*arguments)

    config = AbInitioConfig(out=folder / "stopped_rounds", **options)
    monkeypatch.setattr(half_maps, "local_round", counted)
    with pytest.raises(KeyboardInterrupt):
        jobs.ab_initio(config)
    assert len(n_begun) == 2 and not (config.out / "stages/half_maps.pt").exists()
    monkeypatch.setattr(search, "run_search", stop)
    monkeypatch.setattr(half_maps, "global_round", stop)
    again = kept(resumed(config))
    # the first one of all is global, the second local one was stopped
    assert len(n_begun) == n_rounds and again["rounds"] == whole["rounds"]
    for name in ("quaternion", "information", "reference_first", "noise_spectrum"):
        assert torch.equal(again[name], whole[name]), name


def test_rounds_go_on_until_the_poses_have_settled(folder, data, monkeypatch):
    """A resolution that no longer improves says nothing of poses that still change."""
    particles = first_particles(data, 200, folder / "enough_to_settle.star")
    n_rounds = {}
    for part in (0.0, 1e9):
        monkeypatch.setattr(rounds, "SETTLED_BELOW_SPREAD", part)
        config = AbInitioConfig(out=folder / f"settled_{part:g}", particles=particles, **FAST | {"search_steps": 5})
        monkeypatch.setattr(hybrid, "train_network", stop)
        monkeypatch.setattr(hybrid, "match_finally", stop)
        with pytest.raises(KeyboardInterrupt):
            jobs.ab_initio(config)
        n_rounds[part] = len(load_state(config.out / "stages/half_maps.pt")["rounds"])
    assert n_rounds[0.0] == half_maps.MAX_ROUNDS + 1 > n_rounds[1e9]
