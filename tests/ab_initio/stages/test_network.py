"""The network's training as a stage of a run that is stopped after it."""

import pytest

from cryoforum_core import jobs
from cryoforum_core.ab_initio import hybrid
from cryoforum_core.ab_initio.stages import network, search
from cryoforum_core.config import AbInitioConfig

from ..hybrid_runs import FAST, first_particles, resumed, run_or_not_converged, stop


def test_a_network_that_was_trained_before_the_stop_is_kept(folder, data, monkeypatch):
    """Stopped in the final matching; nothing before it is done again."""
    config = AbInitioConfig(out=folder / "stopped_late", particles=first_particles(data, 220, folder / "enough.star"),
                            skip=("refinement",), **FAST | {"search_steps": 40})
    with monkeypatch.context() as patched:
        patched.setattr(hybrid, "match_finally", stop)
        with pytest.raises(KeyboardInterrupt):
            jobs.ab_initio(config)
    weights = (config.out / "checkpoint/model.safetensors").read_bytes()
    monkeypatch.setattr(search, "run_search", stop)
    monkeypatch.setattr(network, "run_training", stop)
    run = run_or_not_converged(resumed(config))
    assert (config.out / "checkpoint/model.safetensors").read_bytes() == weights
    assert run.read_summary()["steps"] > 0
    assert not (config.out / "checkpoint/training_state.pt").exists()
