"""particles.star and orientation_posterior.npz of a run."""

import numpy as np
import torch

from cryoforum_core.geometry.rotations import angular_distance_deg, random_quaternions
from cryoforum_core.mrc import write_stack
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.pose_results import ErrorEstimates, PoseResults
from cryoforum_core.results.write import poses_of, write_results
from cryoforum_core.run_directory import RunDirectory

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
