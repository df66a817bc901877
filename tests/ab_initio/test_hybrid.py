"""The hybrid method as a job: from a random start to poses, maps and a network; what does not converge says so."""

import csv
import json
import os
import signal
import threading

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.ab_initio.hybrid import estimated_seconds
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.config import AbInitioConfig, EvaluateConfig, PredictConfig, SelectConfig
from cryoforum_core.errors import InputError, NotConverged
from cryoforum_core.mrc import StackWriter, read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.simulate import DEFAULT_OTHER_MODEL
from cryoforum_core.particles.table import ParticleTable

N, BOX = 600, 32
FAST = {"search_steps": 150, "seeds": 1, "train_minutes": 0.1, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hybrid")


@pytest.fixture(scope="module")
def data(folder):
    """600 images of the embedded ribosome subunit with CTF and displacements, SNR 1; 5 % junk."""
    return cf.simulate(cf.SimulateConfig(out=folder / "set", n_particles=N, box_size_px=BOX, snr=1.0, shift_rms_px=1.0,
                                         junk_fraction=0.05, junk_kinds=("noise", "other-molecule"), seed=2))


@pytest.fixture(scope="module")
def run(folder, data):
    return jobs.ab_initio(AbInitioConfig(out=folder / "run", particles=data.particles, **FAST))


@pytest.fixture(scope="module")
def evaluation(folder, data, run):
    return jobs.evaluate(EvaluateConfig(out=folder / "evaluation", particles=run.particles, truth=data.truth,
                                        map=run.map, truth_map=data.map, align_frame=True, allow_mirror=True))


def test_orientations_and_map_are_those_of_the_molecule(evaluation):
    found = evaluation.read_summary()
    assert found["median_error_deg"] < 2.5 and found["fraction_below_10deg"] > 0.9
    assert found["resolution_angstrom"] < 30  # the box ends at 24 A
    assert found["median_shift_error_angstrom"] < 6  # half a pixel


def test_the_network_carries_the_final_map_without_solvent(run):
    """Not the map of its labels: further particles are matched to it."""
    (reference, reference_px), (final, final_px) = (read_map(path) for path in (run.checkpoint / "reference.mrc", run.map))
    assert len(reference) * reference_px == pytest.approx(len(final) * final_px, rel=1e-4)
    outside = final[reference == 0]
    assert 0.3 < outside.size / final.size < 0.95 and outside.std() < 0.3 * final[reference != 0].std()
    assert np.corrcoef(reference[reference != 0], final[reference != 0])[0, 1] > 0.95


def test_examples_of_particles_lie_beside_the_projections_of_the_map_that_they_match(run):
    with np.load(run.gallery) as arrays:
        examples = dict(arrays)
    best = examples["kind"] == "best"
    images, projections = (examples[name][best].reshape(best.sum(), -1) for name in ("images", "projections"))
    own = np.array([np.corrcoef(*pair)[0, 1] for pair in zip(images, projections)])
    other = np.array([np.corrcoef(*pair)[0, 1] for pair in zip(images, np.roll(projections, 1, axis=0))])
    assert own.min() > 0.5 and own.mean() > other.mean() + 0.1
    ids = np.load(run.orientation_posterior)["particle_id"]
    assert np.isin(examples["particle_id"], ids).all()


def test_the_summary_says_what_was_found_and_how_it_is_known(run):
    summary = run.read_summary()
    assert summary["converged"] and "half sets" in summary["converged_reason"]
    assert summary["method"] == "hybrid" and summary["hand"] == "undetermined" and summary["n_particles"] == N
    assert summary["held_out_structure"] > 5 * summary["held_out_structure_error"]
    assert set(summary["stages"]) == {"search", "half maps", "network", "final matching", "maps"}
    assert summary["rounds"][-1]["resolution_angstrom"] < summary["rounds"][0]["resolution_angstrom"]
    assert [start["chosen"] for start in summary["seeds"]] == [True]
    assert summary["near_half_turn"] is None  # of the ribosome


def test_particles_keep_what_they_had_and_get_poses_uncertainties_and_half_sets(run, data):
    before, after = ParticleTable.read(data.particles), ParticleTable.read(run.particles)
    for name in before.names:
        if name != "rlnImageName":
            assert after.strings(name).tolist() == before.strings(name).tolist()
    assert after.has("rlnAngleRot", "rlnOriginXAngst", "rlnCryoforumExpectedError", "rlnCryoforumMatchScore")
    assert set(after.integers("rlnRandomSubset")) == {1, 2}
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["particle_id"], load_particles(data.particles).particle_id)
        assert np.isfinite(arrays["expected_error_deg"]).all()


def test_the_expected_error_is_the_error(run, evaluation, data):
    rows = list(csv.DictReader((evaluation.path / "errors.csv").read_text().splitlines()))
    error_deg, is_junk = (np.array([float(row[name]) for row in rows]) for name in ("error_deg", "is_junk"))
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        expected_deg, bound_deg = arrays["expected_error_deg"], arrays["error_bound_deg"]
    right = (is_junk == 0) & (error_deg < 10)
    assert 0.75 < error_deg[right].mean() / np.median(expected_deg[right]) < 1.33
    assert 0.8 < (error_deg <= bound_deg)[right].mean() < 0.98


def test_uncertainties_know_junk(run, data, folder):
    clean = jobs.select(SelectConfig(out=folder / "clean", run=run.path))
    kind = dict(zip(ParticleTable.read(data.truth).integers("rlnParticleId").tolist(),
                    ParticleTable.read(data.truth).strings("rlnCryoforumJunkKind").tolist(), strict=True))
    kept = [kind[i] for i in ParticleTable.read(clean.selected).integers("rlnParticleId").tolist()]
    assert sum(k != "none" for k in kept) <= 8  # of 30
    assert len(kept) > 0.85 * N


def test_half_maps_are_two_maps_of_one_molecule(run):
    (first, pixel), (second, _), (both, _) = (read_map(path) for path in (run.map_half1, run.map_half2, run.map))
    assert first.shape == both.shape == (BOX,) * 3 and pixel == pytest.approx(read_map(run.map)[1])
    assert 0.7 < np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.9999


def test_the_network_predicts(run, data, folder):
    predicted = jobs.predict(PredictConfig(out=folder / "predicted", particles=data.particles, model=run.path,
                                           refinement="none", device="cpu"))
    assert predicted.read_summary()["n_particles"] == N


def test_the_run_could_be_followed(run):
    progress = json.loads(run.progress.read_text())
    assert progress["fraction"] == 1 and progress["n_stages"] == 5 and progress["seconds"] > 1
    assert "report.html" in run.live.read_text()  # whoever has it open is led on
    assert not (run.path / "stages").exists()


def test_a_set_of_noise_does_not_converge(folder):
    noise = folder / "noise"
    noise.mkdir()
    source = cf.simulate(cf.SimulateConfig(out=folder / "source", n_particles=300, box_size_px=BOX, snr=1.0))
    images = np.random.default_rng(0).standard_normal((300, BOX, BOX)).astype(np.float32)
    pixel = source.read_summary()["pixel_size_angstrom"]
    with StackWriter(noise / "particles.mrcs", 300, BOX, pixel) as stack:
        stack.append(images)
    ParticleTable.read(source.particles).write(noise / "particles.star")
    out = folder / "of_noise"
    config = AbInitioConfig(out=out, particles=noise / "particles.star", contrast="bright", ctf_state="raw",
                            **FAST | {"search_steps": 40})
    # a script that runs it again with --resume must not take it for a good one
    for resume in (False, True):
        with pytest.raises(NotConverged, match="had not seen"):
            jobs.ab_initio(config.model_copy(update={"resume": resume}))
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["converged"] and len(summary["seeds"]) > 1  # it tried again
    assert "had not seen" in (out / "report.html").read_text()
    # nothing is learnt of nothing: the network and the last matching are left out
    assert not (out / "checkpoint").exists() and not (out / "stages").exists()


def test_a_network_that_was_trained_before_the_stop_is_kept(folder, data, monkeypatch):
    """Stopped in the last matching; nothing before it is done again."""
    from cryoforum_core.ab_initio import hybrid

    def stop(*_):
        raise KeyboardInterrupt

    few = folder / "enough.star"
    load_particles(data.particles).subset(np.arange(220)).save(few)
    config = AbInitioConfig(out=folder / "stopped_late", particles=few, skip=("refinement",),
                            **FAST | {"search_steps": 40})
    with monkeypatch.context() as patched:
        patched.setattr(hybrid._HybridRun, "_final", stop)
        with pytest.raises(KeyboardInterrupt):
            jobs.ab_initio(config)
    network = (config.out / "checkpoint/model.safetensors").read_bytes()
    for never in ("run_search", "train_on_poses"):
        monkeypatch.setattr(hybrid, never, stop)
    resumed = _tolerant(config.model_copy(update={"resume": True}))
    assert (config.out / "checkpoint/model.safetensors").read_bytes() == network
    assert resumed.read_summary()["steps"] > 0 and resumed.read_summary()["stages"]["network"] > 1
    assert not (config.out / "checkpoint/training_state.pt").exists()


def test_the_last_matching_goes_on_after_the_half_sets_that_were_done(folder, data, monkeypatch):
    """Stopped after it, and once more as if in its last half set; no other is matched again, and nothing differs."""
    from cryoforum_core.ab_initio.final_stage import FinalMatching

    begun, found, match = [], [], FinalMatching._match

    def counted(self, matcher, power_map, rows):
        begun.append(len(rows))
        return match(self, matcher, power_map, rows)

    def stop(self, *_):
        found.append([self.refinement.poses, *(each.arrays for each in self._halves)])
        raise KeyboardInterrupt

    monkeypatch.setattr(FinalMatching, "_match", counted)
    monkeypatch.setattr(FinalMatching, "learn", stop)
    few = folder / "enough_to_match.star"
    load_particles(data.particles).subset(np.arange(200)).save(few)
    config = AbInitioConfig(out=folder / "stopped_matching", particles=few, skip=("distillation",),
                            **FAST | {"search_steps": 5})
    with pytest.raises(KeyboardInterrupt):
        jobs.ab_initio(config)
    n_matched = len(begun)
    max((config.out / "stages").glob("matching_all*.pt"), key=lambda path: path.stat().st_mtime_ns).unlink()
    with pytest.raises(KeyboardInterrupt):
        jobs.ab_initio(config.model_copy(update={"resume": True}))
    assert n_matched in (2, 4) and len(begun) == n_matched + 1
    (poses, *halves), (resumed_poses, *resumed_halves) = found
    assert torch.equal(poses.quaternion, resumed_poses.quaternion) and torch.equal(poses.score, resumed_poses.score)
    for whole, resumed in zip(halves, resumed_halves, strict=True):
        assert whole.keys() == resumed.keys()
        assert all(np.array_equal(whole[name], resumed[name], equal_nan=whole[name].dtype.kind == "f") for name in whole)


def test_half_maps_go_on_after_the_last_round_that_was_done(folder, data, monkeypatch):
    """Stopped in the third round; the rounds before are not done again, and nothing differs from a run without a stop."""
    from cryoforum_core.ab_initio import hybrid
    from cryoforum_core.saved_state import load_state

    def stop(*_):
        raise KeyboardInterrupt

    def kept(config):
        """What the half maps leave; the run is stopped after them."""
        with pytest.raises(KeyboardInterrupt):
            jobs.ab_initio(config)
        return load_state(config.out / "stages/half_maps.pt")

    few = folder / "enough_for_rounds.star"
    load_particles(data.particles).subset(np.arange(200)).save(few)
    options = {"particles": few, **FAST | {"search_steps": 5}}
    monkeypatch.setattr(hybrid._HybridRun, "_network", stop)
    whole = kept(AbInitioConfig(out=folder / "whole_rounds", **options))
    n_rounds, next_round, done = len(whole["rounds"]), hybrid._HybridRun._next_round, []

    def counted(self, refinement, before):
        done.append(len(before.rounds))
        return stop() if done == [1, 2] else next_round(self, refinement, before)

    monkeypatch.setattr(hybrid._HybridRun, "_next_round", counted)
    config = AbInitioConfig(out=folder / "stopped_rounds", **options)
    with pytest.raises(KeyboardInterrupt):
        jobs.ab_initio(config)
    assert done == [1, 2] and not (config.out / "stages/half_maps.pt").exists()
    for never in ("run_search", "low_pass_volume"):
        monkeypatch.setattr(hybrid, never, stop)
    resumed = kept(config.model_copy(update={"resume": True}))
    assert done == [1, 2, *range(2, n_rounds)] and resumed["rounds"] == whole["rounds"]
    for name in ("quaternion", "information", "reference_first", "noise_spectrum"):
        assert torch.equal(resumed[name], whole[name]), name


def test_poses_that_the_half_maps_lost_are_found_and_all_matched_to_the_better_maps(folder, data, run, monkeypatch):
    """A third of the particles lost, in the maps, too. Where few are lost one matching is enough."""
    from cryoforum_core.ab_initio import hybrid
    from cryoforum_core.geometry.rotations import random_quaternions

    half_maps, agreement = hybrid._HybridRun._half_maps, []

    class Recorded(hybrid.FinalMatching):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            agreement.append(float(self.pair.fsc.mean()))

    def spoilt(self, outcome):
        refinement, pair, rounds = half_maps(self, outcome)
        lost = torch.arange(0, N, 3)
        refinement.poses.quaternion[lost] = random_quaternions(len(lost), torch.Generator().manual_seed(1))[:, None]
        return refinement, refinement.reconstruct(pair.noise_spectrum, self.plan.max_radius_px), rounds

    monkeypatch.setattr(hybrid._HybridRun, "_half_maps", spoilt)
    monkeypatch.setattr(hybrid, "FinalMatching", Recorded)
    lost = jobs.ab_initio(AbInitioConfig(out=folder / "lost", particles=data.particles, **FAST, skip=("distillation",)))
    before, at_last = lost.read_summary()["found_again_fraction"]
    assert 0.25 < before < 0.34 and at_last < 0.02
    assert len(agreement) == 2 and agreement[1] > agreement[0] + 0.02
    found = jobs.evaluate(EvaluateConfig(out=folder / "lost_evaluation", particles=lost.particles, truth=data.truth,
                                         map=lost.map, truth_map=data.map, align_frame=True, allow_mirror=True)).read_summary()
    assert found["median_error_deg"] < 2.5 and found["fraction_below_10deg"] > 0.9
    (once,) = run.read_summary()["found_again_fraction"]
    assert once < hybrid.FEW_LOST


def test_the_group_in_the_frame_of_the_searches():
    """A map with D2 that the searches found turned, mirrored and elsewhere is brought onto the reference; ``turn`` takes the
    group back to where they found it."""
    from types import SimpleNamespace

    from cryoforum_core.ab_initio.hybrid import _HybridRun
    from cryoforum_core.geometry.rotations import compose, inverse, random_quaternions
    from cryoforum_core.geometry.symmetry import symmetry_group
    from cryoforum_core.imaging.volume_frame import mirror_volume, move_volume
    from cryoforum_core.particles.simulate import load_molecule

    group = symmetry_group("d2")
    reference = load_molecule(DEFAULT_OTHER_MODEL, BOX, None).volume
    volume = move_volume(mirror_volume(reference), random_quaternions(1, torch.Generator().manual_seed(3))[0],
                         torch.tensor([1.0, -0.5, 0.7]))
    for hand_reference in (None, reference):
        searches = _HybridRun.__new__(_HybridRun)
        searches.plan = SimpleNamespace(group=group, symmetry="d2", mask_radius_px=14.0, hand_reference=hand_reference,
                                        particles=SimpleNamespace(box_size_px=BOX))
        searches.config = SimpleNamespace(seed=0)
        _, score, _, turn = searches._framed(volume)
        assert score > 0.9
        centred = move_volume(volume, torch.tensor([0.0, 0, 0, 1]), -_centre(volume))
        for element in compose(compose(turn, group), inverse(turn)):
            turned = move_volume(centred, element, torch.zeros(3))
            assert torch.corrcoef(torch.stack([turned.flatten(), centred.flatten()]))[0, 1] > 0.85


def _centre(volume):
    """Of a map of high contrast."""
    axis = torch.arange(BOX) - BOX // 2.0
    weight = (volume - 0.2 * volume.max()).clamp_min(0)
    return torch.stack([(weight.sum(sums) * axis).sum() for sums in ((0, 1), (0, 2), (1, 2))]) / weight.sum()


def test_a_stopped_run_goes_on_to_the_same_result_in_the_frame_of_a_reference(folder, data):
    """Stopped in the search."""
    options = FAST | {"search_steps": 100, "skip": ("distillation", "refinement"), "hand_reference": data.map}
    whole = _tolerant(AbInitioConfig(out=folder / "whole", particles=data.particles, **options))
    config = AbInitioConfig(out=folder / "stopped", particles=data.particles, **options)
    timer = threading.Timer(6.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        _tolerant(config)
    timer.cancel()
    assert not (folder / "stopped/summary.json").exists()
    resumed = _tolerant(config.model_copy(update={"resume": True}))
    with np.load(whole.orientation_posterior) as a, np.load(resumed.orientation_posterior) as b:
        assert np.array_equal(a["quaternion"], b["quaternion"])
    assert whole.read_summary()["hand"] == "as in the reference"
    found = jobs.evaluate(EvaluateConfig(out=folder / "evaluation_of_hand", particles=whole.particles, truth=data.truth))
    assert found.read_summary()["fraction_below_10deg"] > 0.8  # neither turned nor mirrored onto the truth


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


def _tolerant(config):
    try:
        return jobs.ab_initio(config)
    except NotConverged:
        return cf.RunDirectory(config.out)


def test_bad_input_is_told_at_once(folder, data):
    few = folder / "few.star"
    load_particles(data.particles).subset(np.arange(50)).save(few)
    config = AbInitioConfig(out=folder / "bad", particles=few, symmetry="x9", device="cpu")
    with pytest.raises(InputError) as error:
        jobs.ab_initio(config)
    assert "at least 200 particles" in str(error.value) and "x9" in str(error.value)
    assert not (folder / "bad").exists()


def test_options_of_the_other_method_are_refused(folder, data):
    for method, options, complaint in (("hybrid", {"poses": "known", "n_heads": 4}, "--poses and --n-heads"),
                                       ("end-to-end", {"hand_reference": data.map}, "--hand-reference")):
        with pytest.raises(ValueError, match=f"{method} does not know {complaint}"):
            AbInitioConfig(out=folder / "x", particles=data.particles, method=method, **options)


def test_more_time_for_the_network_may_be_given_after_a_stop(folder, data):
    config = AbInitioConfig(out=folder / "more_time", particles=data.particles, train_minutes=1)
    run = cf.RunDirectory(config.out)
    run.prepare(config, resume=False)
    run.prepare(config.model_copy(update={"train_minutes": 2.0, "resume": True}), resume=True)
    with pytest.raises(InputError, match="search_steps"):
        run.prepare(config.model_copy(update={"search_steps": 2, "resume": True}), resume=True)


def test_the_estimate_grows_with_the_set(folder, data):
    particles = load_particles(data.particles)
    config = AbInitioConfig(out=folder / "x", particles=data.particles, device="cpu")
    plan = plan_ab_initio(config, particles, torch.device("cpu"))
    fewer = plan_ab_initio(config, particles.subset(np.arange(300)), torch.device("cpu"))
    assert estimated_seconds(plan) > estimated_seconds(fewer) > 10
