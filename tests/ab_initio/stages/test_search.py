"""The search as a stage: symmetry, the frame of a reference, and a stop in the middle of it."""

import numpy as np
import pytest

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.ab_initio import random_starts
from cryoforum_core.config import AbInitioConfig, EvaluateConfig
from cryoforum_core.particles.simulate import DEFAULT_OTHER_MODEL

from ..hybrid_runs import BOX, FAST, resumed, run_or_not_converged, stop


def test_a_stopped_run_goes_on_to_the_same_result_in_the_frame_of_a_reference(folder, data, monkeypatch):
    """Stopped in the search, after its first 50 steps."""
    options = FAST | {"search_steps": 100, "skip": ("distillation", "refinement"), "hand_reference": data.map}
    whole = run_or_not_converged(AbInitioConfig(out=folder / "whole", particles=data.particles, **options))
    config = AbInitioConfig(out=folder / "stopped", particles=data.particles, **options)
    saved, save_state = [], random_starts.save_state

    def save_and_stop(path, state):
        save_state(path, state)
        saved.append(path.name)
        stop()

    with monkeypatch.context() as patched:
        patched.setattr(random_starts, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            jobs.ab_initio(config)
    assert saved == ["search_0_state.pt"] and not (folder / "stopped/summary.json").exists()
    resumed_run = run_or_not_converged(resumed(config))
    with np.load(whole.orientation_posterior) as a, np.load(resumed_run.orientation_posterior) as b:
        assert np.array_equal(a["quaternion"], b["quaternion"])
    assert whole.read_summary()["hand"] == "as in the reference"
    found = jobs.evaluate(EvaluateConfig(out=folder / "evaluation_of_hand", particles=whole.particles, truth=data.truth))
    assert found.read_summary()["fraction_below_10deg"] > 0.8  # neither rotated nor mirrored onto the truth


def test_symmetry_is_found_and_then_imposed(folder):
    """Beta-galactosidase has D2; the search knows nothing of it."""
    data = cf.simulate(cf.SimulateConfig(out=folder / "d2_set", model=DEFAULT_OTHER_MODEL, n_particles=300, symmetry="d2",
                                          box_size_px=BOX, snr=1.0, shift_rms_px=1.0, seed=5))
    run = jobs.ab_initio(AbInitioConfig(out=folder / "d2", particles=data.particles, symmetry="d2",
                                        **FAST | {"skip": ("distillation",)}))
    assert run.read_summary()["symmetry_score"] > 0.8
    found = jobs.evaluate(EvaluateConfig(out=folder / "evaluation_d2", particles=run.particles, truth=data.truth,
                                         symmetry="d2", align_frame=True, allow_mirror=True)).read_summary()
    assert found["median_error_deg"] < 3 and found["fraction_below_10deg"] > 0.9
