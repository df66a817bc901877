"""The final matching as a stage: resuming between half sets, and poses that it recovers."""

from dataclasses import replace

import pytest
import torch

from cryoforum_core import jobs
from cryoforum_core.ab_initio import hybrid, matching_to_half_maps
from cryoforum_core.ab_initio.particle_results import to_state
from cryoforum_core.ab_initio.rounds import reconstruct
from cryoforum_core.ab_initio.stages import final_matching
from cryoforum_core.config import AbInitioConfig, EvaluateConfig
from cryoforum_core.geometry.rotations import random_quaternions

from ..hybrid_runs import FAST, N, first_particles, resumed, stop


def test_a_stopped_final_matching_goes_on_after_the_half_sets_that_were_done(folder, data, monkeypatch):
    """Stopped after it, and once more as if in its last half set; no other is matched again, and nothing differs."""
    begun, found, match_half = [], [], matching_to_half_maps.match_half

    def counted(images, matcher, power_map, rows, progress):
        begun.append(len(rows))
        return match_half(images, matcher, power_map, rows, progress)

    def keep_and_stop(matched, show):
        found.append(matched)
        stop()

    monkeypatch.setattr(matching_to_half_maps, "match_half", counted)
    monkeypatch.setattr(final_matching, "calibrate_errors", keep_and_stop)
    config = AbInitioConfig(out=folder / "stopped_matching", skip=("distillation",),
                            particles=first_particles(data, 200, folder / "enough_to_match.star"),
                            **FAST | {"search_steps": 5})
    with pytest.raises(KeyboardInterrupt):
        jobs.ab_initio(config)
    n_matched = len(begun)
    max((config.out / "stages").glob("matching_all*.pt"), key=lambda path: path.stat().st_mtime_ns).unlink()
    with pytest.raises(KeyboardInterrupt):
        jobs.ab_initio(resumed(config))
    assert n_matched in (2, 4) and len(begun) == n_matched + 1
    whole, again = found
    for name in ("quaternion", "displacement_px", "score", "weight", "information"):
        assert torch.equal(getattr(whole.poses, name), getattr(again.poses, name)), name
    for one, other in zip(whole.halves, again.halves, strict=True):
        one, other = to_state(one.results), to_state(other.results)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_misassigned_poses_are_recovered_and_all_matched_to_the_better_maps(folder, data, run, monkeypatch):
    """A third of the particles misassigned, in the maps, too. Where few are, one matching is enough."""
    refine_half_maps, match_all, agreement = hybrid.refine_half_maps, final_matching.match_all, []

    def recorded(images, *arguments):
        agreement.append(float(images.refinement.pair.fsc.mean()))
        return match_all(images, *arguments)

    def spoilt(plan, *arguments):
        refined = refine_half_maps(plan, *arguments)
        poses, pair = refined.refinement.poses.copy(), refined.refinement.pair
        wrong = torch.arange(0, N, 3)
        poses.quaternion[wrong] = random_quaternions(len(wrong), torch.Generator().manual_seed(1))[:, None]
        refinement = reconstruct(refined.half_sets, poses, pair.noise_spectrum, plan.max_radius_px)
        return replace(refined, rounds=replace(refined.rounds, refinement=refinement))

    monkeypatch.setattr(hybrid, "refine_half_maps", spoilt)
    monkeypatch.setattr(final_matching, "match_all", recorded)
    recovered = jobs.ab_initio(AbInitioConfig(out=folder / "misassigned", particles=data.particles, **FAST,
                                              skip=("distillation",)))
    before, at_last = recovered.read_summary()["found_again_fraction"]
    assert 0.25 < before < 0.34 and at_last < 0.02
    assert len(agreement) == 2 and agreement[1] > agreement[0] + 0.02
    found = jobs.evaluate(EvaluateConfig(out=folder / "misassigned_evaluation", particles=recovered.particles,
                                         truth=data.truth, map=recovered.map, truth_map=data.map, align_frame=True,
                                         allow_mirror=True)).read_summary()
    assert found["median_error_deg"] < 2.5 and found["fraction_below_10deg"] > 0.9
    (once,) = run.read_summary()["found_again_fraction"]
    assert once < final_matching.FEW_MISASSIGNED
