"""The hybrid method as a job: from a random start to poses, maps and a network; what does not converge says so."""

import json

import numpy as np
import pytest

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.config import AbInitioConfig, PredictConfig
from cryoforum_core.errors import InputError, NotConverged
from cryoforum_core.mrc import StackWriter
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.micrographs import read_micrographs

from .hybrid_runs import BOX, FAST, N


def test_orientations_and_map_are_those_of_the_molecule(evaluation):
    found = evaluation.read_summary()
    assert found["median_error_deg"] < 2.5 and found["fraction_below_10deg"] > 0.9
    assert found["resolution_angstrom"] < 30  # the box ends at 24 A
    assert found["median_shift_error_angstrom"] < 6  # half a pixel


def test_the_network_predicts(run, data, folder):
    predicted = jobs.predict(PredictConfig(out=folder / "predicted", particles=data.particles, model=run.path,
                                           refinement="none", device="cpu"))
    assert predicted.read_summary()["n_particles"] == N


def test_the_run_could_be_followed(run):
    progress = json.loads(run.progress.read_text())
    assert progress["fraction"] == 1 and progress["n_stages"] == 5 and progress["seconds"] > 0
    assert "report.html" in run.live.read_text()  # whoever has it open is led on
    assert not (run.path / "stages").exists()


def test_contrast_errors_and_junk_of_each_micrograph_are_written(run):
    found = read_micrographs(run.micrographs)
    assert found.n_particles.tolist() == [100] * 6 and np.isfinite(found.noise).all()
    assert np.abs(found.mean_contrast - 1).max() < 0.3 and found.median_expected_error_deg.max() < 10
    assert 0 < found.junk_fraction.mean() < 0.2  # 5 % are junk


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
