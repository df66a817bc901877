"""The hybrid method as a job: from a random start to poses, maps and a network; what does not converge says so."""

import csv
import json

import numpy as np
import pytest
from hybrid_runs import BOX, FAST, N

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.config import AbInitioConfig, PredictConfig, SelectConfig
from cryoforum_core.errors import InputError, NotConverged
from cryoforum_core.mrc import StackWriter, read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.table import ParticleTable


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
    assert progress["fraction"] == 1 and progress["n_stages"] == 5 and progress["seconds"] > 0
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
        with pytest.raises(ValueError, match=f"{method} does not have {complaint}"):
            AbInitioConfig(out=folder / "x", particles=data.particles, method=method, **options)


def test_more_time_for_the_network_may_be_given_after_a_stop(folder, data):
    config = AbInitioConfig(out=folder / "more_time", particles=data.particles, train_minutes=1)
    run = cf.RunDirectory(config.out)
    run.prepare(config, resume=False)
    run.prepare(config.model_copy(update={"train_minutes": 2.0, "resume": True}), resume=True)
    with pytest.raises(InputError, match="search_steps"):
        run.prepare(config.model_copy(update={"search_steps": 2, "resume": True}), resume=True)
