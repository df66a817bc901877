"""The search as a stage: symmetry, the frame of a reference, and a stop in the middle of it."""

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.ab_initio import random_starts
from cryoforum_core.config import AbInitioConfig, EvaluateConfig
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.volume_frame import rotate_volume
from cryoforum_core.mrc import write_map
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
    """Beta-galactosidase has D2; the search knows nothing of it, and nothing is left to find for searches that do."""
    data = cf.simulate(cf.SimulateConfig(out=folder / "d2_set", model=DEFAULT_OTHER_MODEL, n_particles=300, symmetry="d2",
                                          box_size_px=BOX, snr=1.0, shift_rms_px=1.0, seed=5))
    run = jobs.ab_initio(AbInitioConfig(out=folder / "d2", particles=data.particles, symmetry="d2",
                                        **FAST | {"skip": ("distillation",)}))
    summary = run.read_summary()
    assert summary["symmetry_score"] > 0.8 and summary["symmetry_choice"]["used"] == "searched in c1, then imposed"
    assert len(summary["seeds"]) == 1
    found = jobs.evaluate(EvaluateConfig(out=folder / "evaluation_d2", particles=run.particles, truth=data.truth,
                                         symmetry="d2", align_frame=True, allow_mirror=True)).read_summary()
    assert found["median_error_deg"] < 3 and found["fraction_below_10deg"] > 0.9


def test_a_near_spherical_molecule_is_found_with_its_symmetry_from_the_start(folder):
    """96 blobs in a shell, as octahedral as ferritin is. What c1 finds explains the images less well."""
    group = symmetry_group("o")
    axis = torch.arange(BOX) - BOX / 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    generator = torch.Generator().manual_seed(4)
    places = torch.nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=1)
    places = places * (8.5 + 2 * torch.rand(4, 1, generator=generator))
    blobs = sum(torch.exp(-((x - p[0])**2 + (y - p[1])**2 + (z - p[2])**2) / 2) for p in places)
    shell = 2 * torch.exp(-(torch.sqrt(x**2 + y**2 + z**2) - 9.5).square() / 4)
    write_map(folder / "shell.mrc", (shell + torch.stack([rotate_volume(blobs, g) for g in group]).sum(0)).numpy(), 6.0)
    data = cf.simulate(cf.SimulateConfig(out=folder / "o_set", model=folder / "shell.mrc", n_particles=400, symmetry="o",
                                         box_size_px=BOX, snr=0.3, shift_rms_px=1.0, seed=5))
    run = run_or_not_converged(AbInitioConfig(out=folder / "o", particles=data.particles, symmetry="o",
                                              **FAST | {"search_steps": 80, "skip": ("distillation", "refinement")}))
    summary = run.read_summary()
    choice = summary["symmetry_choice"]
    assert choice["used"] == "imposed from the start" and choice["gain"] > 4 * choice["gain_error"] > 0
    assert summary["symmetry_score"] is None and choice["c1_symmetry_score"] < 0.8
    assert len(summary["seeds"]) >= 3
    assert [row["chosen"] for row in summary["seeds"] if row.get("symmetry_from_the_start")].count(True) == 1
