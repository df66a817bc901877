"""Pose hypotheses refined against a map, and how they are kept."""

import pytest
import torch

from cryoforum_core.ab_initio.hypothesis_refinement import KEPT_WITHIN_SCORE, refine_hypotheses, store_hypotheses
from cryoforum_core.geometry.pose_hypotheses import PoseHypotheses
from cryoforum_core.geometry.rotations import (
    angular_distance_deg,
    compose,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.matching.refine import RefinedPoses

from ..matching.conftest import simulate

N = 20


@pytest.fixture(scope="module")
def images():
    return simulate(N, snr=100.0, seed=3)


@pytest.fixture(scope="module")
def refined(images):
    """Of three hypotheses a random one, one 5 degrees from the truth, and one that was dropped."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(N, 3, generator=generator), dim=1)
    near = compose(images.quaternion, rotation_vector_to_quaternion(torch.deg2rad(torch.tensor(5.0)) * axis))
    other, dropped = random_quaternions(2 * N, generator).chunk(2)
    score = torch.tensor([[1.0, 0.5, -torch.inf]]).expand(N, 3)
    model = images.model()
    return refine_hypotheses(model.images(images.images_ft, images.ctf), model, torch.stack([other, near, dropped], 1),
                             torch.zeros(N, 3, 2), score), dropped


def test_the_hypothesis_near_the_truth_comes_first_after_refinement(images, refined):
    found, _ = refined
    assert angular_distance_deg(found.quaternion[:, 0], images.quaternion).median() < 1.0
    assert (found.score.diff(dim=1) <= 0).all()


def test_dropped_hypotheses_are_not_refined(refined):
    found, dropped = refined
    assert torch.isneginf(found.score[:, 2]).all() and torch.equal(found.quaternion[:, 2], dropped)
    assert (found.information[:, 2] == 0).all()


def found_hypotheses(score) -> RefinedPoses:
    n, k = score.shape
    quaternion = random_quaternions(n * k, torch.Generator().manual_seed(1)).reshape(n, k, 4)
    return RefinedPoses(quaternion, torch.ones(n, k, 2), score, (50.0 * torch.eye(5)).expand(n, k, 5, 5))


def test_hypotheses_far_behind_the_best_are_dropped_and_the_weights_sum_to_1():
    score = torch.tensor([[30.0, 29.0, 30.0 - KEPT_WITHIN_SCORE - 1.0]])
    poses, rows = PoseHypotheses.empty(3, torch.device("cpu")), torch.tensor([1])
    store_hypotheses(poses, rows, found_hypotheses(score), 1.0, symmetry_group("c1"))
    assert poses.score[1, :2].tolist() == [30.0, 29.0] and torch.isneginf(poses.score[1, 2:]).all()
    assert poses.weight[1].sum() == pytest.approx(1.0, abs=1e-5)
    assert poses.weight[1, 0] / poses.weight[1, 1] == pytest.approx(2.718, rel=1e-2)


def test_only_the_rows_named_change_and_displacements_are_scaled_to_the_images_own_box():
    poses = PoseHypotheses.empty(3, torch.device("cpu"))
    before = poses.copy()
    found = found_hypotheses(torch.tensor([[5.0, 4.0], [6.0, 5.5]]))
    store_hypotheses(poses, torch.tensor([0, 2]), found, 2.5, symmetry_group("c1"))
    for name in ("quaternion", "displacement_px", "score", "weight", "information"):
        assert torch.equal(getattr(poses, name)[1], getattr(before, name)[1]), name
    assert poses.displacement_px[[0, 2], :2].unique().tolist() == [2.5]
    assert torch.equal(poses.quaternion[[0, 2], 0], found.quaternion[:, 0])
    # of the rotation, whatever the shift: 50 in each direction, which do not depend on each other
    torch.testing.assert_close(poses.information[2], 50.0 * torch.eye(3), rtol=1e-4, atol=1e-3)
