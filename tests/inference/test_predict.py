"""Prediction of a set: in parts that a resumed run keeps, and with the same poses whatever the batches."""

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.geometry.rotations import angular_distance_deg
from cryoforum_core.inference import predict as predict_module
from cryoforum_core.inference.predict import Predictor, applicability, network_estimate, starting_poses
from cryoforum_core.inference.setup import prediction_setup
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.progress import Progress
from cryoforum_core.results.micrographs import read_micrographs
from cryoforum_core.results.pose_results import PoseResults

from .conftest import N


@pytest.fixture(scope="module")
def setup(simulated_run, trained, tmp_path_factory):
    """Of the network alone: a run of it takes a moment."""
    config = cf.PredictConfig(out=tmp_path_factory.mktemp("predict") / "run", particles=simulated_run.particles,
                              model=trained, device="cpu", refinement="none", calibrate=False)
    return config, prediction_setup(config, load_particles(config.particles, config), torch.device("cpu"))


def test_parts_that_were_done_are_not_predicted_again(setup, tmp_path, monkeypatch):
    """120 images in parts of 50, of which the second one is missing."""
    monkeypatch.setattr(predict_module, "PART_IMAGES", 50)
    predictor = Predictor(setup[1], None, None, batch_size=16)
    assert predictor.write_parts(tmp_path) == N
    paths = sorted(tmp_path.glob("*.npz"))
    assert len(paths) == 3
    whole = PoseResults.concatenate([PoseResults.load(path) for path in paths])
    assert whole.particle_id.tolist() == setup[1].images.particles.particle_id.tolist()
    paths[1].unlink()
    assert predictor.write_parts(tmp_path) == 50
    again = PoseResults.concatenate([PoseResults.load(path) for path in paths])
    np.testing.assert_array_equal(again.quaternion, whole.quaternion)


def test_parts_with_junk_features_of_an_earlier_version_are_predicted_again(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "PART_IMAGES", 50)
    predictor = Predictor(setup[1], None, None, batch_size=16)
    predictor.write_parts(tmp_path)
    path = sorted(tmp_path.glob("*.npz"))[0]
    with np.load(path) as file:
        arrays = dict(file)
    for name in ("evidence_junk_features", "junk_statistics"):
        np.savez(path, **arrays, **{name: np.zeros((50, 9), np.float32)})
        assert predictor.write_parts(tmp_path) == 50
        assert predictor.write_parts(tmp_path) == 0


def test_the_batch_size_changes_nothing(setup):
    rows = np.arange(0, N, 7)
    small, large = (Predictor(setup[1], None, None, size).rows(rows, "test") for size in (4, 64))
    np.testing.assert_allclose(small.quaternion, large.quaternion, atol=1e-4)
    np.testing.assert_allclose(small.shift_angstrom, large.shift_angstrom, atol=1e-3)


def test_starting_poses_begin_with_the_networks_own(setup):
    estimate = network_estimate(setup[1], np.arange(5))
    starts = starting_poses(setup[1], estimate, seed=3)
    assert angular_distance_deg(starts.quaternion[:, 0], estimate.quaternion).max() < 0.1
    again = starting_poses(setup[1], estimate, seed=3)
    assert torch.equal(starts.quaternion, again.quaternion)
    assert not torch.equal(starts.quaternion, starting_poses(setup[1], estimate, seed=4).quaternion)


def test_without_a_map_it_cannot_be_said_whether_it_applies(setup):
    found = applicability(*setup)
    assert found.applies and "without matching to a map" in found.reason


def test_a_run_stopped_between_two_parts_goes_on_to_the_same_result(simulated_run, trained, tmp_path, monkeypatch):
    """Ctrl-C after 64 images; the second run begins with the third part."""
    monkeypatch.setattr(predict_module, "PART_IMAGES", 32)
    options = {"particles": simulated_run.particles, "model": trained, "device": "cpu", "refinement": "none",
               "calibrate": False, "batch_size": 16}
    whole = cf.predict(cf.PredictConfig(out=tmp_path / "whole", **options))
    update, images = Progress.update, []

    def stop_after_64(self, n=1, **figures):
        images.append(n)
        if sum(images) == 64 + 16:
            raise KeyboardInterrupt
        update(self, n, **figures)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Progress, "update", stop_after_64)
        cf.predict(cf.PredictConfig(out=tmp_path / "parts", **options))
    kept = sorted(path.name for path in (tmp_path / "parts/parts").iterdir())
    assert len(kept) == 2 and not (tmp_path / "parts/summary.json").exists()
    resumed = cf.predict(cf.PredictConfig(out=tmp_path / "parts", resume=True, **options))
    with np.load(whole.orientation_posterior) as a, np.load(resumed.orientation_posterior) as b:
        assert np.array_equal(a["quaternion"], b["quaternion"]) and np.array_equal(a["bingham"], b["bingham"])
    assert not (tmp_path / "parts/parts").exists()


def test_a_run_says_what_it_knows_of_each_micrograph(simulated_run, trained, tmp_path):
    """120 images of two micrographs; the network alone asks for no noise."""
    run = cf.predict(cf.PredictConfig(out=tmp_path / "run", particles=simulated_run.particles, model=trained, device="cpu",
                                      refinement="none", calibrate=False))
    found = read_micrographs(run.micrographs)
    assert found.n_particles.tolist() == [100, 20] and np.isnan(found.noise).all()
    expected = PoseResults.load(run.orientation_posterior).errors.expected_error_deg
    medians = [np.median(expected[:100]), np.median(expected[100:])]
    np.testing.assert_allclose(found.median_expected_error_deg, medians, rtol=1e-3)
    assert run.read_summary()["unusual_micrographs"] == []
