import torch

from cryoforum_core.geometry.rotations import angular_distance_deg, random_quaternions, spacing_deg
from cryoforum_core.geometry.so3_grid import local_offsets, n_rotations_for_step, super_fibonacci


def test_no_rotation_is_far_from_the_grid():
    grid = super_fibonacci(4000)
    probes = random_quaternions(300, torch.Generator().manual_seed(0))
    nearest = torch.stack([angular_distance_deg(probe, grid).min() for probe in probes])
    assert nearest.max() < 1.05 * spacing_deg(4000)
    assert torch.allclose(grid.norm(dim=-1), torch.ones(4000))


def test_grid_is_more_even_than_random_rotations():
    def closest_pair_deg(rotations):
        overlap = (rotations @ rotations.T).abs().fill_diagonal_(0)
        return torch.rad2deg(2 * torch.acos(overlap.max().clamp_max(1)))

    assert closest_pair_deg(super_fibonacci(1000)) > 5 * closest_pair_deg(
        random_quaternions(1000, torch.Generator().manual_seed(1)))


def test_grid_has_no_preferred_direction():
    # the second moment of uniform quaternions is a quarter of the identity
    grid = super_fibonacci(2000, torch.float64)
    assert torch.allclose(grid.T @ grid / 2000, torch.eye(4).double() / 4, atol=2e-3)


def test_size_for_a_step_is_the_inverse_of_spacing():
    assert abs(spacing_deg(n_rotations_for_step(7.5)) - 7.5) < 0.01


def test_local_offsets_fill_the_ball_and_nothing_else():
    offsets = local_offsets(20.0, 5.0)
    identity = torch.tensor([0.0, 0.0, 0.0, 1.0])
    distance = angular_distance_deg(offsets, identity)
    assert torch.equal(offsets[0], identity)
    assert distance.max() <= 20.001 and (distance.diff() > -1e-3).all()
    # neighbours of the identity are one step away; eight of them on this lattice
    assert ((distance[1:9] - 5.0).abs() < 1e-3).all() and distance[9] > 5.5
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(200, 3, generator=generator)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True) * torch.deg2rad(16 * torch.rand(200, 1, generator=generator))
    angle = vectors.norm(dim=-1, keepdim=True)
    probes = torch.cat([vectors / angle * torch.sin(angle / 2), torch.cos(angle / 2)], dim=-1)
    nearest = torch.stack([angular_distance_deg(probe, offsets).min() for probe in probes])
    assert nearest.max() < 0.66 * 5.0


def test_radius_below_one_step_is_the_identity_alone():
    assert local_offsets(3.0, 5.0).shape == (1, 4)
