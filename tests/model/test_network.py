"""Encoders and heads behind one interface: shapes, gradients, what they are invariant to, and that they can learn."""

import dataclasses
import itertools
import math

import pytest
import torch

from cryoforum_core.geometry.bingham import bingham_negative_log_likelihood, isotropic_bingham
from cryoforum_core.geometry.rotations import angular_distance_deg, compose, in_plane_quaternion, random_quaternions
from cryoforum_core.geometry.symmetry import symmetric_distance_deg, symmetry_group
from cryoforum_core.imaging.ctf import CTFParameters, ctf_2d
from cryoforum_core.imaging.fourier import ifft_image, shift_phase
from cryoforum_core.imaging.masks import soft_circle, soft_sphere
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.model.network import NetworkConfig, OrientationNetwork, ctf_of_view, mirror_image, rotate_90_deg
from cryoforum_core.model.orientation_head import N_OUTPUTS, OrientationHead, PoseEstimate

from .images import random_input

ENCODERS = ("polar", "compact", "cryoforum", "cryoposenet")
HEADS = tuple(N_OUTPUTS)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("box", [16, 22, 64])
def test_any_even_box_gives_poses_and_every_weight_a_gradient(encoder, box):
    torch.manual_seed(0)
    network = OrientationNetwork(NetworkConfig(box, 4.0, encoder, width=8))
    estimate = network(*random_input(3, box))
    assert estimate.quaternion.shape == (3, 4) and estimate.bingham.shape == (3, 4, 4)
    assert estimate.shift_angstrom.shape == (3, 2)
    target = random_quaternions(3, torch.Generator().manual_seed(1))
    loss = (estimate.quaternion * target).sum().square() + estimate.shift_angstrom.square().sum()
    (loss + bingham_negative_log_likelihood(estimate.bingham, target).sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_unknown_names_and_odd_boxes_are_refused():
    with pytest.raises(ValueError, match="head"):
        OrientationHead(8, "matrix", 100.0)
    for box in (33, 14):
        with pytest.raises(ValueError, match="box"):
            NetworkConfig(box, 4.0)
    with pytest.raises(ValueError, match="pooling"):
        OrientationNetwork(NetworkConfig(32, 4.0, "polar", pooling="gem"))
    with pytest.raises(ValueError, match="encoder"):
        OrientationNetwork(NetworkConfig(32, 4.0, "resnet"))


def test_the_default_network_learns_a_few_images_by_heart():
    torch.manual_seed(7)
    images, ctf = random_input(24, 24, seed=2)
    truth = random_quaternions(24, torch.Generator().manual_seed(9))
    network = OrientationNetwork(NetworkConfig(24, 4.0, width=16))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(80):
        loss = (1 - (network(images, ctf).quaternion * truth).sum(-1).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = network(images, ctf).quaternion
    assert angular_distance_deg(found, truth).median() < 8 and math.isfinite(loss.item())


@pytest.fixture
def view():
    """An image model without noise: images and CTFs, astigmatic ones, of poses and shifts."""
    generator = torch.Generator().manual_seed(0)
    volume = FourierVolume.from_real(torch.randn(32, 32, 32, generator=generator) * soft_sphere(32, 9))
    ones = torch.ones(6)
    parameters = CTFParameters(9000 * ones, 6000 * ones, 25 * ones, 0 * ones, 300 * ones, 2.7 * ones, 0.1 * ones)

    def make(quaternion, shift_px, turn_deg=0.0, is_mirrored=False):
        angle_deg = -parameters.defocus_angle_deg if is_mirrored else parameters.defocus_angle_deg
        turned = dataclasses.replace(parameters, defocus_angle_deg=angle_deg + turn_deg)
        ctf = ctf_2d(turned, 32, 5.0)
        return ifft_image(volume.project(quaternion) * ctf * shift_phase(-shift_px, 32)), ctf

    return make


TURN = torch.tensor([0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)])
HALF_TURN_ABOUT_Y = torch.tensor([0.0, 1.0, 0.0, 0.0])


def turned_shift(shift):
    return torch.stack([-shift[:, 1], shift[:, 0]], dim=-1)


def mirrored_shift(shift):
    return torch.stack([-shift[:, 0], shift[:, 1]], dim=-1)


@pytest.mark.parametrize(("change", "rotation", "moved", "options"), [
    (rotate_90_deg, TURN, turned_shift, {"turn_deg": 90.0}),
    (mirror_image, HALF_TURN_ABOUT_Y, mirrored_shift, {"is_mirrored": True}),
], ids=["quarter turn", "mirror"])
def test_a_rotated_or_mirrored_image_is_that_of_the_rotated_pose(view, change, rotation, moved, options):
    quaternion, shift = random_quaternions(6, torch.Generator().manual_seed(1)), torch.tensor([[1.0, -2.0]]).expand(6, 2)
    images, ctf = view(quaternion, shift)
    expected, expected_ctf = view(compose(rotation.expand(6, 4), quaternion), moved(shift), **options)
    # without the first row and column, which have no counterpart in an even box
    assert torch.allclose(change(images)[:, 1:, 1:], expected[:, 1:, 1:], atol=0.02 * float(expected.std()))
    found = ctf_of_view(change, ctf)
    assert torch.allclose(found[:, 1:12, 1:12], expected_ctf[:, 1:12, 1:12], atol=1e-3)


@pytest.mark.parametrize("encoder", ["polar", "compact"])
@pytest.mark.parametrize(("change", "rotation", "moved"), [
    (rotate_90_deg, TURN, turned_shift), (mirror_image, HALF_TURN_ABOUT_Y, mirrored_shift)], ids=["quarter turn", "mirror"])
def test_predicted_poses_are_equivariant_to_rotation_and_mirroring_of_the_image(view, change, rotation, moved, encoder):
    """Whatever the weights: the pose predicted for a turned or mirrored image is the turned pose, and so is the shift."""
    torch.manual_seed(8)
    network = OrientationNetwork(NetworkConfig(32, 5.0, encoder, width=8)).eval()
    if encoder == "polar":  # untrained, it displaces nothing
        torch.nn.init.normal_(network.encoder.centre.weight, std=0.3)
    images, ctf = view(random_quaternions(6, torch.Generator().manual_seed(1)), torch.zeros(6, 2))
    ctf = ctf.abs()  # as prepared images have it
    mask = soft_circle(32, 14, 1)
    with torch.no_grad():
        plain = network.predict(images * mask, ctf)
        changed = network.predict(change(images * mask), ctf_of_view(change, ctf))
    assert angular_distance_deg(changed.quaternion, compose(rotation.expand(6, 4), plain.quaternion)).max() < 0.5
    assert torch.allclose(changed.shift_angstrom, moved(plain.shift_angstrom), atol=0.05)
    eigenvalues = torch.linalg.eigvalsh(plain.bingham)
    differ = float(eigenvalues.std(0).max())
    assert torch.allclose(torch.linalg.eigvalsh(changed.bingham), eigenvalues, atol=0.2 * differ)


def test_the_ensemble_weight_scales_the_posterior_and_is_saved():
    torch.manual_seed(9)
    network = OrientationNetwork(NetworkConfig(16, 5.0, width=8)).eval()
    images, ctf = random_input(2, 16)
    with torch.no_grad():
        before = network.predict(images, ctf)
        network.ensemble_weight.fill_(2.0)
        after = network.predict(images, ctf)
    assert torch.allclose(after.bingham, 2 * before.bingham, atol=1e-5)
    assert "ensemble_weight" in network.state_dict()


def test_posteriors_of_rotated_images_at_equivalent_poses_are_joined_under_symmetry():
    """A network that is right each time, but about any of the equivalent poses: their plain mean would be nonsense."""
    group = symmetry_group("d2")
    truth = random_quaternions(8, torch.Generator().manual_seed(2))
    network = OrientationNetwork(NetworkConfig(16, 5.0, "compact", width=8)).eval()
    calls = itertools.count()

    def right_up_to_symmetry(images, ctf):
        view = next(calls)
        pose = compose(HALF_TURN_ABOUT_Y, truth) if view >= 4 else truth
        pose = compose(in_plane_quaternion(torch.tensor(0.5 * math.pi * (view % 4))).expand(8, 4), pose)
        pose = compose(pose, group[(view * torch.arange(8)) % 4])
        return PoseEstimate(pose, isotropic_bingham(pose, torch.full((8,), 50.0)), torch.zeros(8, 2))

    network.forward = right_up_to_symmetry
    images, ctf = random_input(8, 16)
    found = network.predict(images, ctf, group)
    assert symmetric_distance_deg(found.quaternion, truth, group).max() < 0.1
    gaps = torch.linalg.eigvalsh(found.bingham).diff(dim=-1)
    assert torch.allclose(gaps[:, 0], torch.full((8,), 50.0), rtol=0.01)
    calls = itertools.count()
    assert symmetric_distance_deg(network.predict(images, ctf).quaternion, truth, group).max() > 10
