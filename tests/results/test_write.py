"""particles.star, orientation_posterior.npz and gallery.npz of a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.geometry.rotations import angular_distance_deg, random_quaternions
from cryoforum_core.imaging.fourier import ifft_image
from cryoforum_core.imaging.noise_spectrum import noise_power_spectrum
from cryoforum_core.matching.matching_model import MatchingModel
from cryoforum_core.mrc import write_map, write_stack
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.particles.micrograph_noise import MicrographNoise
from cryoforum_core.particles.particle_groups import ParticleGroups
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.gallery import read_gallery
from cryoforum_core.results.micrographs import read_micrographs
from cryoforum_core.results.pose_results import ErrorEstimates, JunkLabels, Match, PoseResults
from cryoforum_core.results.write import N_EXAMPLES, poses_of, write_gallery, write_micrographs, write_results
from cryoforum_core.run_directory import RunDirectory

from ..matching.conftest import blobs

N, BOX, PIXEL = 5, 16, 3.0


def particles(folder):
    """A set in a folder of its own, with a column of another program."""
    folder.mkdir()
    write_stack(folder / "images.mrcs", np.random.default_rng(0).normal(size=(N, BOX, BOX)), PIXEL)
    ParticleTable.from_columns(
        {"rlnImageName": [f"{i + 1:06d}@{folder / 'images.mrcs'}" for i in range(N)], "rlnDefocusU": np.full(N, 9000.0),
         "rlnDefocusV": np.full(N, 9000.0), "rlnDefocusAngle": np.zeros(N), "rlnOpticsGroup": np.ones(N, int),
         "labNote": list("abcde")},
        {"rlnOpticsGroup": [1], "rlnVoltage": [300.0], "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1],
         "rlnImagePixelSize": [PIXEL]}).write(folder / "in.star")
    return load_particles(folder / "in.star")


def results(with_errors: bool) -> PoseResults:
    quaternion = random_quaternions(N, torch.Generator().manual_seed(0)).numpy()
    shift = np.random.default_rng(1).normal(0, 4, (N, 2)).astype(np.float32)
    errors = ErrorEstimates(*np.tile(np.arange(1.0, N + 1), (3, 1))) if with_errors else None
    return PoseResults(np.arange(1, N + 1), quaternion, shift, np.zeros((N, 4, 4)), errors=errors)


def test_poses_are_read_back_from_the_star_file_and_other_columns_are_kept(tmp_path):
    run, found = RunDirectory(tmp_path), results(with_errors=True)
    write_results(run, particles(tmp_path / "set"), found, {"rlnRandomSubset": np.array([1, 2, 1, 2, 1])})
    again, poses = load_particles(run.particles, require_poses=True), poses_of(found)
    assert angular_distance_deg(again.poses.quaternion.double(), poses.quaternion).max() < 0.01
    torch.testing.assert_close(again.poses.shift_angstrom.double(), poses.shift_angstrom, atol=1e-4, rtol=0)
    assert again.half_set.tolist() == [1, 2, 1, 2, 1]
    assert again.table.strings("labNote").tolist() == list("abcde")
    assert again.table.floats("rlnCryoforumExpectedError").tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(again.images(np.arange(N))) == N  # the images are found from the run's directory


def test_the_posterior_is_written_only_where_errors_were_estimated(tmp_path):
    for with_errors in (False, True):
        run = RunDirectory(tmp_path / str(with_errors))
        run.path.mkdir()
        write_results(run, particles(tmp_path / f"set_{with_errors}"), results(with_errors))
        assert run.orientation_posterior.is_file() == with_errors
    assert PoseResults.load(run.orientation_posterior).errors.expected_error_deg.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


N_MATCHED, MAP_BOX, MAP_PIXEL = 60, 32, 5.0


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Images, their matching model, and results that hold the true poses and scores that fall with the row."""
    folder = tmp_path_factory.mktemp("gallery")
    write_map(folder / "molecule.mrc", blobs().numpy(), MAP_PIXEL)
    run = cf.simulate(cf.SimulateConfig(out=folder / "set", model=folder / "molecule.mrc", n_particles=N_MATCHED, snr=1.0,
                                        shift_rms_px=1.0, seed=3))
    particles = load_particles(run.truth, require_poses=True)
    images = ImagePreparation(particles, ImageState(), MAP_BOX, torch.device("cpu"))
    images_ft, ctf = images.transforms(np.arange(N_MATCHED))
    model = MatchingModel.estimate(blobs(), images_ft, ctf, noise_power_spectrum(ifft_image(images_ft), 0.45 * MAP_BOX),
                                   torch.tensor([[0.0, 0, 0, 1]]), MAP_BOX / 2 - 1, 4.0)
    results = PoseResults(particles.particle_id, particles.poses.quaternion.numpy(), particles.poses.shift_angstrom.numpy(),
                          np.zeros((N_MATCHED, 4, 4)), match=Match(match_score=-np.arange(N_MATCHED).astype(float)),
                          errors=ErrorEstimates(*np.tile(np.arange(N_MATCHED).astype(float), (3, 1))))
    return images, model, results


def written(path, known, **changes):
    images, model, results = known
    write_gallery(path, images, model, replace(results, **changes))
    return read_gallery(path)


def test_best_median_and_worst_matches_are_chosen_by_their_score(known, tmp_path):
    found = written(tmp_path / "gallery.npz", known)
    rows = {kind: (found.particle_id[found.kind == kind] - 1).tolist() for kind in ("best", "median", "worst")}
    assert rows["best"] == list(range(N_EXAMPLES))
    assert rows["median"] == list(range(N_MATCHED // 2 - N_EXAMPLES // 2, N_MATCHED // 2 + N_EXAMPLES // 2))
    assert rows["worst"] == list(range(N_MATCHED - N_EXAMPLES, N_MATCHED))
    assert found.match_score.tolist() == (1.0 - found.particle_id).tolist()
    assert found.expected_error_deg.tolist() == (found.particle_id - 1.0).tolist()


def test_each_image_is_like_its_own_projection_and_not_like_the_next(known, tmp_path):
    """At the particle's pose and shift, with its CTF."""
    found = written(tmp_path / "gallery.npz", known)
    images, projections = (values.reshape(len(values), -1) for values in (found.images, found.projections))
    own, other = (np.array([np.corrcoef(*pair)[0, 1] for pair in zip(images, shown)])
                  for shown in (projections, np.roll(projections, 1, axis=0)))
    assert own.min() > 0.4 and np.median(own) > np.median(other) + 0.2


def test_junk_has_examples_of_each_label_in_the_order_asked_for(known, tmp_path):
    reason = np.full(N_MATCHED, "none", dtype=object)
    reason[::6], reason[3:9:5] = "off-centre", "not-a-particle"
    nothing = np.full((N_MATCHED, 4), np.nan)
    junk = JunkLabels(reason.astype(str), np.ones(N_MATCHED), nothing[:, :2], nothing)
    found = written(tmp_path / "gallery.npz", known, junk=junk)
    chosen = found.of(["off-centre", "not-a-particle"])
    n_off_centre = (chosen.kind == "off-centre").sum()
    assert chosen.kind.tolist() == ["off-centre"] * n_off_centre + ["not-a-particle"] * (len(chosen.kind) - n_off_centre)
    assert n_off_centre == N_EXAMPLES and set(chosen.particle_id[:n_off_centre] - 1) <= set(range(0, N_MATCHED, 6))
    assert len(found.of([]).images) == 0


def test_micrographs_are_written_where_there_are_several_with_their_noise_where_it_was_measured(known, tmp_path):
    images, _, found = known
    run = RunDirectory(tmp_path)
    assert write_micrographs(run, images, found) == {} and not run.micrographs.exists()  # 60 images of one micrograph
    group = np.arange(N_MATCHED) % 10
    names = tuple(f"m{i}.mrc" for i in range(10))
    particles = replace(images.particles, table=images.particles.table.with_columns(
        {"rlnMicrographName": np.array(names)[group]}))
    assert write_micrographs(run, replace(images, particles=particles), found) == {"unusual_micrographs": []}
    plain = read_micrographs(run.micrographs)
    assert plain.name == names and (plain.n_particles == 6).all() and np.isnan(plain.noise).all()
    np.testing.assert_allclose(plain.median_expected_error_deg, 25 + np.arange(10))
    amplitude = torch.ones(10, MAP_BOX // 2 + 1)
    amplitude[:, 1:] += 0.01 * torch.arange(10)[:, None]
    amplitude[6, 1:3] = 2.0
    noise = MicrographNoise(ParticleGroups(names, group), amplitude)
    summary = write_micrographs(run, replace(images, particles=particles, noise=noise), found)
    assert summary["unusual_micrographs"] == ["m6.mrc (noise at low frequencies 4 times the set's power)"]
    np.testing.assert_allclose(read_micrographs(run.micrographs).noise[:, 2], (1 + 0.01 * np.arange(10)) ** 2, rtol=1e-3)
