import pytest
import torch

from cryoforum_core.geometry.bingham import bingham_negative_log_likelihood
from cryoforum_core.geometry.rotations import angular_distance_deg, random_quaternions
from cryoforum_core.model.orientation_head import N_OUTPUTS, OrientationHead, PoseEstimate


def estimate_of(parametrisation, n=7):
    torch.manual_seed(0)
    head = OrientationHead(16, parametrisation, box_size_angstrom=200.0)
    return head, head(torch.randn(n, 16))


@pytest.mark.parametrize("parametrisation", N_OUTPUTS)
def test_every_head_gives_a_pose_that_is_the_mode_of_its_matrix(parametrisation):
    _, found = estimate_of(parametrisation)
    assert len(found) == 7 and found.shift_angstrom.shape == (7, 2)
    assert torch.allclose(found.quaternion.norm(dim=-1), torch.ones(7), atol=1e-5)
    assert torch.allclose(found.bingham, found.bingham.transpose(-1, -2), atol=1e-5)
    _, vectors = torch.linalg.eigh(found.bingham.double())
    cosine = (vectors[..., 0] * found.quaternion.double()).sum(-1).abs()
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-4)


@pytest.mark.parametrize("parametrisation", N_OUTPUTS)
def test_every_part_of_a_head_can_be_trained(parametrisation):
    head, found = estimate_of(parametrisation)
    (found.quaternion[:, 0].sum() + found.bingham[:, 0, 1].sum() + found.shift_angstrom.sum()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_shifts_scale_with_the_box_in_angstrom():
    torch.manual_seed(0)
    head = OrientationHead(16, "qcqp", 100.0)
    features = torch.randn(3, 16)
    small = head(features).shift_angstrom
    head.box_size_angstrom = 200.0
    assert torch.allclose(head(features).shift_angstrom, 2 * small)


def test_unknown_parametrisation_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="s2s2.*'matrix'"):
        OrientationHead(16, "matrix", 100.0)


def test_batches_are_joined_in_order():
    _, found = estimate_of("s2s2")
    parts = [PoseEstimate(found.quaternion[a:b], found.bingham[a:b], found.shift_angstrom[a:b]) for a, b in ((0, 3), (3, 7))]
    joined = PoseEstimate.concatenate(parts)
    assert torch.equal(joined.quaternion, found.quaternion) and torch.equal(joined.shift_angstrom, found.shift_angstrom)
    assert torch.equal(joined.to("cpu").bingham, found.bingham)


@pytest.mark.parametrize("head", N_OUTPUTS)
def test_every_head_can_reach_given_rotations_from_a_random_start(head):
    torch.manual_seed(2)
    features = torch.randn(8, 64)
    truth = random_quaternions(8, torch.Generator().manual_seed(3))
    layer = OrientationHead(64, head, 100.0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(250):
        estimate = layer(features)
        loss = (1 - (estimate.quaternion * truth).sum(-1).square()).mean()
        loss = loss + 0.02 * bingham_negative_log_likelihood(estimate.bingham, truth).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert angular_distance_deg(layer(features).quaternion, truth).median() < 3


def test_psd_head_has_no_negative_eigenvalue():
    torch.manual_seed(4)
    estimate = OrientationHead(8, "qcqp-psd", 100.0)(torch.randn(50, 8))
    assert torch.linalg.eigvalsh(estimate.bingham).min() > -1e-3
