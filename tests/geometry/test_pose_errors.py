import pytest
import torch

from cryoforum_core.geometry.pose_errors import (
    align_frame,
    error_summary,
    rotation_errors_deg,
    shift_errors_angstrom,
)
from cryoforum_core.geometry.rotations import (
    compose,
    mirror_hand,
    quaternion_to_relion_euler,
    random_quaternions,
    relion_euler_to_quaternion,
    rotation_vector_to_quaternion,
)
from cryoforum_core.geometry.symmetry import symmetry_group


def estimated_poses(true, symmetry="c1", wrong_fraction=0.0, noise_deg=2.0, seed=7):
    """Known poses with noise, in another frame, with random symmetry mates and with wrong ones first."""
    generator = torch.Generator().manual_seed(seed)
    n = len(true)
    group = symmetry_group(symmetry)
    noise = rotation_vector_to_quaternion(torch.deg2rad(noise_deg * torch.randn(n, 3, generator=generator) / 3**0.5))
    mates = group[torch.randint(len(group), (n,), generator=generator)]
    frame = random_quaternions(1, generator)
    poses = compose(compose(noise, compose(true, mates)), frame)
    n_wrong = round(wrong_fraction * n)
    return torch.cat([random_quaternions(n_wrong, generator), poses[n_wrong:]])


@pytest.fixture
def true():
    return random_quaternions(1500, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("symmetry", ["c1", "d2", "o"])
@pytest.mark.parametrize("wrong_fraction", [0.0, 0.4, 0.6])
def test_frame_is_found_among_wrong_poses(true, symmetry, wrong_fraction):
    estimated = estimated_poses(true, symmetry, wrong_fraction)
    group = symmetry_group(symmetry)
    errors_deg = rotation_errors_deg(align_frame(estimated, true, group).apply(estimated), true, group)
    right = errors_deg[round(wrong_fraction * len(true)):]
    assert right.median() < 2.0 and right.max() < 8.0


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_hand_is_found(true, is_mirrored):
    estimated = estimated_poses(true, wrong_fraction=0.4)
    if is_mirrored:
        estimated = mirror_hand(estimated)
    group = symmetry_group("c1")
    alignment = align_frame(estimated, true, group, allow_mirror=True)
    assert alignment.is_mirrored is is_mirrored
    assert rotation_errors_deg(alignment.apply(estimated), true, group).median() < 3.0


def test_mirrored_poses_do_not_fit_without_the_mirror(true):
    estimated = mirror_hand(estimated_poses(true))
    alignment = align_frame(estimated, true, symmetry_group("c1"))
    assert alignment.agreement < 0.2
    assert rotation_errors_deg(alignment.apply(estimated), true, symmetry_group("c1")).median() > 40


def test_mirror_is_that_of_the_conventions():
    rot, tilt, psi = 20.0, 50.0, 70.0
    mirrored = quaternion_to_relion_euler(mirror_hand(relion_euler_to_quaternion(torch.tensor([rot, tilt, psi]))))
    assert torch.allclose((mirrored - torch.tensor([rot + 180, tilt, psi + 180]) + 180) % 360 - 180,
                          torch.zeros(3), atol=1e-3)


def test_frame_of_large_errors_is_not_biased(true):
    estimated = estimated_poses(true, noise_deg=15.0)
    group = symmetry_group("c1")
    aligned = align_frame(estimated, true, group).apply(estimated)
    # noise of 15 degrees on average stays 15 degrees: the frame's own error must be small beside it
    assert abs(rotation_errors_deg(aligned, true, group).square().mean().sqrt() - 15.0) < 0.5


def test_one_pair_is_enough(true):
    estimated = estimated_poses(true)[:1]
    group = symmetry_group("c1")
    assert rotation_errors_deg(align_frame(estimated, true[:1], group).apply(estimated), true[:1], group) < 0.1


def test_shift_errors_and_summary():
    assert shift_errors_angstrom(torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
                                 ).tolist() == [5.0, 0.0]
    assert error_summary(torch.tensor([1.0, 4.0, 7.0, 40.0, 2.0])) == pytest.approx(
        {"median_error_deg": 4.0, "mean_error_deg": 10.8, "fraction_below_5deg": 0.6, "fraction_below_10deg": 0.8})
