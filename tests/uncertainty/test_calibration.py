"""Errors calibrated on particles with known poses, through the jobs: bounds have their nominal coverage on new ones."""

import csv

import numpy as np
import pytest

import cryoforum_core as cf
from cryoforum_core.errors import InputError
from cryoforum_core.imaging.masks import soft_circle
from cryoforum_core.mrc import write_stack
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.run_directory import RunDirectory

from .conftest import BOX, PIXEL, simulated


@pytest.fixture(scope="module")
def network(folder, data):
    return cf.train(cf.TrainConfig(out=folder / "network", particles=data.particles, reference=data.map, max_steps=10,
                                   batch_size=32))


@pytest.fixture(scope="module")
def run(folder, data, network):
    return cf.predict(cf.PredictConfig(out=folder / "poses", particles=data.particles, model=network.path, coverage=0.8))


def errors(run, data, folder):
    compared = cf.evaluate(cf.EvaluateConfig(out=folder / f"{run.path.name}_errors", particles=run.particles,
                                           truth=data.truth))
    rows = list(csv.DictReader((compared.path / "errors.csv").read_text().splitlines()))
    return tuple(np.array([float(row[name]) for row in rows]) for name in ("error_deg", "shift_error_angstrom"))


def test_bounds_have_their_nominal_coverage_against_the_true_poses(run, data, folder):
    error_deg, shift_error = errors(run, data, folder)
    found = RunDirectory(folder / f"{run.path.name}_errors").read_summary()
    assert abs(found["error_bound_held"] - 0.8) < 0.08 and abs(found["shift_error_bound_held"] - 0.8) < 0.08
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        assert abs(np.mean(error_deg <= arrays["error_bound_deg"]) - 0.8) < 0.08
        assert abs(np.mean(shift_error <= arrays["shift_error_bound_angstrom"]) - 0.8) < 0.08
        near = error_deg < 10
        assert abs(np.median(arrays["expected_error_deg"]) / error_deg[near].mean() - 1) < 0.35
        assert abs(arrays["expected_shift_error_angstrom"].mean() / shift_error.mean() - 1) < 0.35
    table = ParticleTable.read(run.particles)
    assert table.has("rlnCryoforumErrorBound", "rlnCryoforumExpectedShiftError", "rlnCryoforumShiftErrorBound")


def test_the_run_reports_nominal_and_empirical_coverage(run):
    summary = run.read_summary()
    assert summary["error_bound_coverage"] == 0.8 and abs(summary["error_bound_held"] - 0.8) < 0.06
    assert summary["n_calibration_particles"] == 400 and "each particle replaced" in summary["calibration_source"]
    rows = list(csv.DictReader((run.path / "calibration.csv").read_text().splitlines()))
    assert all(abs(float(row["nominal_coverage"]) - float(row["empirical_coverage"])) < 0.06 for row in rows)
    page = run.report.read_text()
    assert "Coverage of the error bounds" in page and "defocus quartile" in page
    assert "Calibration of the expected error" in page
    assert "80 % bound on the shift" in page


def test_a_selection_repeats_the_coverage_table_of_its_prediction(run, folder):
    selection = cf.select(cf.SelectConfig(out=folder / "selection", run=run.path, keep_fraction=0.9))
    page = selection.report.read_text()
    assert "Coverage of the error bounds" in page and "400 images of the set, each particle replaced" in page
    assert "Calibration of the expected error" in page


def test_errors_are_calibrated_on_labelled_particles_where_they_are_given(folder, data, network):
    labelled = simulated(folder, "labelled", n_particles=150, seed=2)
    run = cf.predict(cf.PredictConfig(out=folder / "by_labels", particles=data.particles, model=network.path,
                                      calibration_particles=labelled.truth))
    assert run.read_summary()["calibration_source"] == "150 labelled particles"
    error_deg, _ = errors(run, data, folder)
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        assert 0.8 < np.mean(error_deg <= arrays["error_bound_deg"]) < 0.98


def test_labelled_particles_that_are_too_few_or_extracted_otherwise_are_refused(folder, data, network):
    few = simulated(folder, "few", n_particles=20)
    small = simulated(folder, "small", n_particles=120, box_size_px=24)
    for labelled, complaint in ((few, "at least 100"), (small, "box and pixel size"), (data, "rlnAngleRot")):
        path = data.particles if labelled is data else labelled.truth  # the former has no poses
        with pytest.raises(InputError, match=complaint):
            cf.predict(cf.PredictConfig(out=folder / "refused", particles=data.particles, model=network.path,
                                        calibration_particles=path))
        assert not (folder / "refused").exists()


def test_errors_of_a_network_alone_are_calibrated_on_images_of_its_map(folder, data, network):
    run = cf.predict(cf.PredictConfig(out=folder / "network_alone", particles=data.particles, model=network.path,
                                      refinement="none"))
    error_deg, _ = errors(run, data, folder)
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        assert abs(np.mean(error_deg <= arrays["error_bound_deg"]) - 0.9) < 0.07
        # a network of ten steps finds no orientations, and expects so
        assert arrays["expected_error_deg"].mean() > 60


def test_a_network_for_centred_images_is_calibrated_on_centred_images(folder):
    """Displacements that it was told not to expect throw it off: on images that have them its bounds would be too wide."""
    # of 400 images chance alone moves the coverage by 2 %
    centred = cf.simulate(cf.SimulateConfig(out=folder / "centred", model=folder / "molecule.mrc", n_particles=2000,
                                            snr=2.0, shift_rms_px=0.0, seed=4))
    network = cf.train(cf.TrainConfig(out=folder / "of_centred", particles=centred.particles, reference=centred.map,
                                      shift_rms_angstrom=0.1, augment=False, width=12, batch_size=64, max_steps=250))
    run = cf.predict(cf.PredictConfig(out=folder / "of_centred_alone", particles=centred.particles, model=network.path,
                                      refinement="none"))
    error_deg, _ = errors(run, centred, folder)
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        assert abs(np.mean(error_deg <= arrays["error_bound_deg"]) - 0.9) < 0.05
        assert 0.8 < arrays["expected_error_deg"].mean() / error_deg.mean() < 1.25


@pytest.mark.parametrize("is_masked", [False, True])
def test_images_without_noise_have_small_errors_and_small_expected_errors(folder, network, is_masked):
    """As first trials often have: errors of hundredths of a degree, and no bound of a hundred degrees. A mask leaves a
    background of exactly 0."""
    name = f"clean_{is_masked}"
    clean = simulated(folder, name, snr=1e6, n_particles=120, ctf="none")
    if is_masked:
        particles = load_particles(clean.particles)
        masked = particles.images(np.arange(120)) * soft_circle(BOX, 0.42 * BOX, 0.0)
        write_stack(next(clean.path.rglob("*.mrcs")), masked.numpy(), PIXEL)
    run = cf.predict(cf.PredictConfig(out=folder / f"{name}_poses", particles=clean.particles, model=network.path))
    error_deg, _ = errors(run, clean, folder)
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        assert np.median(error_deg) < 0.1 and np.median(arrays["expected_error_deg"]) < 0.5
        assert np.mean(error_deg <= arrays["error_bound_deg"]) > 0.85


def test_without_calibration_no_coverage_is_reported(folder, data, network):
    run = cf.predict(cf.PredictConfig(out=folder / "uncalibrated", particles=data.particles, model=network.path,
                                      refinement="local", calibrate=False))
    assert "error_bound_coverage" not in run.read_summary() and not (run.path / "calibration.csv").exists()
    assert "Coverage of the error bounds" not in run.report.read_text()
