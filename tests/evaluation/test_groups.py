import numpy as np
import pytest
import torch

from cryoforum_core.evaluation.evaluation import compare_poses
from cryoforum_core.evaluation.groups import known_groups
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import compose, random_quaternions, rotation_vector_to_quaternion
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.particles.table import ParticleTable

N = 90
COLUMNS = {"rlnClassNumber": np.arange(N) % 3 // 2 + 1, "rlnOpticsGroup": np.arange(N) % 2 + 1,
           "rlnCryoforumNeighbour": (np.arange(N) < 20).astype(int), "rlnCryoforumNoiseLevel": np.linspace(0.5, 2, N)}


def table(poses, **columns):
    euler_deg, shift = poses.euler_deg().double().numpy(), poses.shift_angstrom.double().numpy()
    return ParticleTable.from_columns({
        "rlnParticleId": np.arange(N), "rlnImageName": [f"{i + 1}@a.mrcs" for i in range(N)],
        "rlnAngleRot": euler_deg[:, 0], "rlnAngleTilt": euler_deg[:, 1], "rlnAnglePsi": euler_deg[:, 2],
        "rlnOriginXAngst": shift[:, 0], "rlnOriginYAngst": shift[:, 1]} | columns)


@pytest.fixture
def poses():
    return Poses(random_quaternions(N, torch.Generator().manual_seed(0)), torch.zeros(N, 2))


def test_groups_are_those_of_the_columns(poses):
    rows = np.arange(N)[::-1]
    groups = known_groups(table(poses, **COLUMNS), rows)
    assert list(groups) == ["class 1", "class 2", "optics group 1", "optics group 2", "without neighbour", "with neighbour",
                            "noise level: lowest third", "noise level: middle third", "noise level: highest third"]
    assert {name: int(members.sum()) for name, members in groups.items()} == dict(
        zip(groups, (60, 30, 45, 45, 70, 20, 30, 30, 30), strict=True))
    assert groups["with neighbour"].tolist() == (rows < 20).tolist()


@pytest.mark.parametrize("columns", [{}, {"rlnClassNumber": np.ones(N, int), "rlnOpticsGroup": np.ones(N, int)},
                                     {"rlnCryoforumNeighbour": np.zeros(N, int), "rlnCryoforumNoiseLevel": np.ones(N)}],
                         ids=["none", "one-class", "all-alike"])
def test_without_differences_there_are_no_groups(poses, columns):
    assert known_groups(table(poses, **columns), np.arange(N)) == {}


def test_evaluation_has_errors_and_coverage_of_each_group(poses):
    """Errors of 10 degrees in class 2, of 1 degree in the other, bounds of 2 degrees; junk is left out."""
    error_deg = torch.where(torch.from_numpy(COLUMNS["rlnClassNumber"] == 2), 10.0, 1.0)
    turn = rotation_vector_to_quaternion(torch.deg2rad(error_deg)[:, None] * torch.tensor([[1.0, 0.0, 0.0]]))
    estimated = table(Poses(compose(turn, poses.quaternion), poses.shift_angstrom), rlnCryoforumErrorBound=np.full(N, 2.0))
    junk = np.where(np.arange(N) < 30, "noise", "none")
    known = table(poses, rlnClassNumber=COLUMNS["rlnClassNumber"], rlnCryoforumJunkKind=junk)
    first, second = compare_poses(estimated, known, symmetry_group("c1")).summary()["by_group"]
    assert (first["group"], first["n_compared"], first["error_bound_held"]) == ("class 1", 40, 1.0)
    assert (second["group"], second["n_compared"], second["error_bound_held"]) == ("class 2", 20, 0.0)
    assert first["median_error_deg"] == pytest.approx(1, abs=0.02)
    assert second["median_error_deg"] == pytest.approx(10, abs=0.02)


def test_an_evaluation_without_groups_does_not_mention_any(poses):
    assert "by_group" not in compare_poses(table(poses), table(poses), symmetry_group("c1")).summary()
