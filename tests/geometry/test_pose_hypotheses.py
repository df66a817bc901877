"""Poses drawn from a posterior: often enough, near enough, and in the right frame."""

import math
from dataclasses import replace

import pytest
import torch

from cryoforum_core.geometry.bingham import bingham_log_normalizer
from cryoforum_core.geometry.pose_hypotheses import PoseHypotheses
from cryoforum_core.geometry.rotations import compose, inverse, quaternion_to_rotation_vector, random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.training.losses import bingham_loss

GENERATOR = torch.Generator()
PIXEL = 2.0


def posterior(weight, precision=(1e8, 1e8, 1e8)):
    GENERATOR.manual_seed(0)
    k = len(weight)
    shift = torch.arange(2.0 * k).reshape(1, k, 2)
    weight = torch.tensor([weight])
    return PoseHypotheses(random_quaternions(k, GENERATOR)[None], -shift / PIXEL, weight.log(), weight,
                          torch.diag(torch.tensor(precision))[None])


def drawn(some: PoseHypotheses, n: int = 20_000):
    return some.sample(torch.zeros(n, dtype=torch.long), PIXEL, torch.Generator().manual_seed(1))


def test_hypotheses_are_drawn_by_their_weights_with_their_own_shifts():
    poses = drawn(posterior((0.7, 0.25, 0.0, 0.05)))
    counts = torch.stack([(poses.shift_angstrom[:, 0] == 2 * k).float().mean() for k in range(4)])
    torch.testing.assert_close(counts, torch.tensor([0.7, 0.25, 0.0, 0.05]), atol=0.01, rtol=0)


def test_rotations_scatter_in_the_frame_of_the_molecule_by_what_the_information_says():
    some = posterior((1.0,), (400.0, 2500.0, 1e6))
    poses = drawn(some)
    turn = quaternion_to_rotation_vector(compose(inverse(some.quaternion[:, 0]).expand(len(poses), 4), poses.quaternion))
    torch.testing.assert_close(turn.std(0), torch.tensor([0.05, 0.02, 0.001]), rtol=0.05, atol=1e-4)
    assert turn.mean(0).abs().max() < 0.002


def test_samples_stay_within_a_limit_where_an_axis_is_undetermined():
    poses = drawn(posterior((1.0,), (0.0, 400.0, 400.0)))
    assert torch.isfinite(poses.quaternion).all()
    angle = quaternion_to_rotation_vector(compose(inverse(posterior((1.0,)).quaternion[:, 0]).expand(len(poses), 4),
                                                  poses.quaternion)).norm(dim=1)
    assert angle.max() < 6 * 0.35


def test_the_likelihood_of_draws_is_that_of_the_ten_numbers():
    some = posterior((0.6, 0.3, 0.1))
    matrix = 3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
    bingham = (matrix + matrix.T)[None]
    poses = drawn(some)
    found = bingham_loss(bingham.expand(len(poses), 4, 4), poses.quaternion, symmetry_group("c1")).mean()
    eigenvalues = torch.linalg.eigvalsh(bingham)
    lowest = eigenvalues[:, :1]
    expected = (bingham * torch.einsum("nk,nki,nkj->nij", some.weight, some.quaternion, some.quaternion)).sum() - lowest[0, 0] + bingham_log_normalizer(eigenvalues - lowest)[0]
    assert math.isclose(found, expected, abs_tol=0.15), (found, expected)
    assert abs(float(expected)) > 0.5


def test_the_spread_of_the_best_poses_is_that_of_their_information():
    n = 5
    poses = PoseHypotheses.of(torch.tensor([[0.0, 0, 0, 1]]).expand(n, 4), torch.zeros(n, 2))
    poses = replace(poses, information=torch.diag(torch.tensor([100.0, 400.0, 1e4])).expand(n, 3, 3))
    assert poses.median_spread_deg == pytest.approx(torch.rad2deg(torch.tensor(0.01 + 0.0025 + 1e-4).sqrt()).item(), rel=1e-4)
