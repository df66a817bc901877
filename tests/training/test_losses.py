"""Losses: values against plain formulas, invariance under symmetry, gradients, and that they lead to the truth."""

import math

import pytest
import torch

from cryoforum_core.geometry.bingham import bingham_negative_log_likelihood, symmetric_from_10
from cryoforum_core.geometry.rotations import (
    angular_distance_rad,
    compose,
    quaternion_to_matrix,
    random_quaternions,
    rotation_vector_to_quaternion,
    smallest_eigenvector,
)
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.training import losses

C1 = symmetry_group("c1", torch.float64)


def quaternions(n: int, seed: int = 0) -> torch.Tensor:
    return random_quaternions(n, torch.Generator().manual_seed(seed), torch.float64)


def equivalents(q: torch.Tensor, group: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Each pose replaced by a random equivalent, with a random sign."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(group), (len(q),), generator=generator)
    sign = torch.randint(2, (len(q), 1), generator=generator) * 2.0 - 1.0
    return sign * compose(q, group[chosen])


def test_pairwise_error_is_that_of_the_list_of_pairs():
    estimate, truth = quaternions(7, 1), quaternions(7, 2)
    table = losses.pairwise_error(estimate, truth, C1)
    for a in range(7):
        for b in range(7):
            expected = abs(float(angular_distance_rad(estimate[a], estimate[b]))
                           - float(angular_distance_rad(truth[a], truth[b])))
            assert float(table[a, b]) == pytest.approx(expected, abs=1e-9)


def test_pairs_do_not_see_a_common_rotation_and_own_errors_do():
    truth, turn = quaternions(10, 1), quaternions(1, 5)
    for estimate in (compose(turn.expand_as(truth), truth), compose(truth, turn.expand_as(truth))):
        assert losses.pairwise_error(estimate, truth, C1).max() < 1e-6
        assert losses.own_error(estimate, truth, C1).min() > 0.3


def test_chordal_error_is_the_frobenius_distance_of_the_matrices():
    estimate, truth = quaternions(9, 3), quaternions(9, 4)
    frobenius = (quaternion_to_matrix(estimate) - quaternion_to_matrix(truth)).square().sum((-2, -1))
    assert torch.allclose(losses.chordal_error(estimate, truth, C1), frobenius, atol=1e-9)


@pytest.mark.parametrize("name", ["c3", "d2", "t", "o", "i2"])
def test_losses_do_not_depend_on_which_equivalent_is_the_label(name):
    group = symmetry_group(name, torch.float64)
    estimate, truth = quaternions(12, 1), quaternions(12, 2)
    other = equivalents(truth, group)
    assert torch.allclose(losses.own_error(estimate, truth, group), losses.own_error(estimate, other, group), atol=1e-6)
    assert torch.allclose(losses.pairwise_error(estimate, truth, group), losses.pairwise_error(estimate, other, group),
                          atol=1e-6)
    assert torch.allclose(losses.chordal_error(estimate, truth, group), losses.chordal_error(estimate, other, group),
                          atol=1e-6)
    bingham = symmetric_from_10(torch.randn(12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert torch.allclose(losses.bingham_loss(bingham, truth, group), losses.bingham_loss(bingham, other, group),
                          atol=1e-6)
    assert losses.own_error(equivalents(truth, group, 3), truth, group).max() < 1e-6
    # and the symmetry matters: without it the equivalents are far apart
    assert losses.own_error(other, truth, C1).max() > 1.0


def test_bingham_loss_is_the_likelihood():
    bingham = symmetric_from_10(5 * torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    truth = quaternions(6)
    assert torch.allclose(losses.bingham_loss(bingham, truth, C1), bingham_negative_log_likelihood(bingham, truth))


def test_bingham_loss_gradient():
    vector = torch.randn(3, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    truth, group = quaternions(3), symmetry_group("d2", torch.float64)
    assert torch.autograd.gradcheck(lambda v: losses.bingham_loss(symmetric_from_10(v), truth, group), vector)


def test_gradients_are_finite_at_the_truth():
    truth = quaternions(5)
    estimate = truth.clone().requires_grad_()
    total = sum(losses.orientation_loss(name, 0.5, estimate, truth, C1).sum()
                for name in ("own", "pairwise", "chordal", "pairwise-to-own"))
    total.backward()
    assert torch.isfinite(estimate.grad).all()


def test_orientation_loss_mixes_the_terms_by_the_schedule():
    estimate, truth = quaternions(8, 1), quaternions(8, 2)
    pairs = losses.pairwise_error(estimate, truth, C1).sum(1) / 7
    own = losses.own_error(estimate, truth, C1)
    mixed = losses.orientation_loss("pairwise-to-own", 0.25, estimate, truth, C1)
    assert torch.allclose(mixed, 0.5 * pairs + 0.5 * own)


def test_shift_error_counts_quarters_of_the_box():
    error = losses.shift_error(torch.tensor([[30.0, 40.0]]), torch.zeros(1, 2), 200.0)
    assert float(error) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", ["own", "chordal", "pairwise-to-own"])
def test_following_the_loss_leads_to_the_labels_modulo_symmetry(name):
    group = symmetry_group("c3", torch.float64)
    truth = quaternions(12, 1)
    # starts up to 100 degrees away
    start = compose(rotation_vector_to_quaternion(torch.randn(12, 3, generator=torch.Generator().manual_seed(2),
                                                              dtype=torch.float64)), truth)
    vector = torch.nn.Parameter(torch.zeros(12, 10, dtype=torch.float64))
    offset = -start[:, :, None] * start[:, None, :]
    optimizer = torch.optim.Adam([vector], lr=0.05)
    for step in range(150):
        estimate = smallest_eigenvector(symmetric_from_10(vector) + offset)
        loss = losses.orientation_loss(name, step / 150, estimate, truth, group).mean()
        optimizer.zero_grad()
        loss.backward()
        for group_of_parameters in optimizer.param_groups:
            group_of_parameters["lr"] = 0.05 * (1 - step / 150)
        optimizer.step()
    assert losses.own_error(estimate.detach(), truth, group).median() < math.radians(3)
