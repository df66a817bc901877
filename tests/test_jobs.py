"""The jobs from Python, end to end on a small set: simulate, train, predict, select, reconstruct, evaluate, report."""

import json
import shutil

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.particles.table import ParticleTable

BOX, PIXEL, N = 32, 5.0, 100


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The runs of a whole workflow."""
    folder = tmp_path_factory.mktemp("chain")
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    centres = np.random.default_rng(3).uniform(-7, 7, (14, 3))
    cf.write_map(folder / "molecule.mrc",
                 sum(np.exp(-((x - a)**2 + (y - b)**2 + (z - c)**2) / 3) for a, b, c in centres), PIXEL)
    made = cf.simulate(cf.SimulateConfig(out=folder / "set", model=folder / "molecule.mrc", n_particles=N, snr=3.0,
                                         junk_fraction=0.2, junk_kinds=("noise", "blank"), shift_rms_px=1.0, seed=4))
    network = cf.train(cf.TrainConfig(out=folder / "network", particles=made.particles, reference=made.map,
                                      max_steps=10, batch_size=32))
    poses = cf.predict(cf.PredictConfig(out=folder / "poses", particles=made.particles, model=network.path))
    kept = cf.select(cf.SelectConfig(out=folder / "kept", run=poses.path, keep_fraction=0.8))
    return {"made": made, "network": network, "poses": poses, "kept": kept, "folder": folder}


def test_every_run_has_a_summary_with_the_figures_of_its_job(chain):
    expected = {
        "made": ["n_particles", "box_size_px", "pixel_size_angstrom", "snr"],
        "network": ["validation_median_error_deg", "validation_mean_error_deg", "seconds"],
        "poses": ["n_particles", "images_per_second", "median_expected_error_deg", "model_applies",
                  "model_applies_reason"],
        "kept": ["n_selected", "n_rejected", "reasons"],
    }
    for name, keys in expected.items():
        summary = chain[name].read_summary()
        assert set(keys) <= set(summary), name
        assert json.loads(chain[name].config.read_text())["job"] == summary["job"]
        assert chain[name].report.is_file()


def test_poses_are_accurate_and_junk_is_rejected(chain):
    """Ten steps train nothing; matching still finds the poses and recognises junk."""
    made, folder = chain["made"], chain["folder"]
    errors = cf.evaluate(cf.EvaluateConfig(out=folder / "errors", particles=chain["poses"].particles, truth=made.truth))
    summary = errors.read_summary()
    assert summary["n_compared"] == 80 and summary["with_junk"]["n_compared"] == N
    assert summary["median_error_deg"] < 3.0 and summary["median_shift_error_angstrom"] < 0.5 * PIXEL
    assert summary["with_junk"]["mean_error_deg"] > summary["mean_error_deg"] + 5
    kept = ParticleTable.read(chain["kept"].selected)
    kind = dict(zip(ParticleTable.read(made.truth).integers("rlnParticleId").tolist(),
                    ParticleTable.read(made.truth).strings("rlnCryoforumJunkKind").tolist(), strict=True))
    n_junk_kept = sum(kind[particle] != "none" for particle in kept.integers("rlnParticleId").tolist())
    assert len(kept) == 80 and n_junk_kept <= 5


def test_rows_columns_and_ids_of_the_input_are_kept(chain):
    before, after = ParticleTable.read(chain["made"].particles), ParticleTable.read(chain["poses"].particles)
    for name in before.names:
        if name != "rlnImageName":
            assert before.strings(name).tolist() == after.strings(name).tolist(), name
    particles = cf.load_particles(chain["poses"].particles, require_poses=True)
    assert len(particles) == N  # the images are found from another directory
    with np.load(chain["poses"].orientation_posterior, allow_pickle=False) as arrays:
        assert arrays["particle_id"].tolist() == before.integers("rlnParticleId").tolist()
        for name, shape in {"quaternion": (N, 4), "bingham": (N, 4, 4), "eigenvalues": (N, 4), "error_bound_deg": (N,),
                            "expected_error_deg": (N,), "shift_angstrom": (N, 2), "figure_of_merit": (N,)}.items():
            assert arrays[name].shape == shape, name


def test_kept_particles_reconstruct_to_the_molecule(chain):
    folder = chain["folder"]
    maps = cf.reconstruct(cf.ReconstructConfig(out=folder / "map", particles=chain["kept"].selected))
    found, pixel = cf.read_map(maps.map)
    known, _ = cf.read_map(folder / "molecule.mrc")
    assert pixel == PIXEL and np.corrcoef(found.ravel(), known.ravel())[0, 1] > 0.8
    assert maps.map_half1.is_file() and maps.map_half2.is_file() and maps.fsc.is_file()


def test_report_of_a_prediction_with_known_poses(chain):
    page = jobs.report(cf.ReportConfig(out=chain["folder"] / "page", run=chain["poses"].path,
                                       truth=chain["made"].truth))
    text = page.report.read_text()
    assert "<html" in text and "src=\"http" not in text


def test_select_refuses_a_run_without_posterior(chain, tmp_path):
    shutil.copytree(chain["poses"].path, tmp_path / "run")
    (tmp_path / "run/orientation_posterior.npz").unlink()
    with pytest.raises(cf.InputError, match="needs the posterior"):
        cf.select(cf.SelectConfig(out=tmp_path / "selection", run=tmp_path / "run"))
    assert not (tmp_path / "selection").exists()


def test_error_bounds_of_a_network_alone_follow_the_coverage(chain):
    bounds = []
    for coverage in (0.5, 0.95):
        run = cf.predict(cf.PredictConfig(out=chain["folder"] / f"alone_{coverage}", particles=chain["made"].particles,
                                          model=chain["network"].path, refinement="none", calibrate=False,
                                          coverage=coverage))
        with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
            bounds.append(arrays["error_bound_deg"])
    assert (bounds[0] < bounds[1]).all()


def test_refinement_none_gives_the_poses_of_the_network(chain):
    run = cf.predict(cf.PredictConfig(out=chain["folder"] / "network_alone", particles=chain["made"].particles,
                                      model=chain["network"].path, refinement="none"))
    assert run.read_summary()["n_particles"] == N
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        assert np.allclose(np.linalg.norm(arrays["quaternion"], axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("name, expected", [("cpu", "cpu"), ("auto", "cuda" if torch.cuda.is_available() else "cpu")])
def test_device_names_are_resolved(name, expected):
    assert jobs.resolve_device(name).type == expected


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "", "cuda:99"])
def test_invalid_device_is_refused(name):
    with pytest.raises(cf.InputError, match="--device"):
        jobs.resolve_device(name)


def test_package_exports_its_public_names():
    for name in cf.__all__:
        assert getattr(cf, name) is not None
    assert set(cf.__all__) <= set(dir(cf))
    with pytest.raises(AttributeError, match="has no 'nonsense'"):
        cf.nonsense
