import pytest
import torch

from cryoforum_core.geometry.pose_errors import (
    align_frame,
    align_poses,
    error_summary,
    rotation_errors_deg,
    shift_errors_angstrom,
)
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import (
    compose,
    inverse,
    mirror_hand,
    quaternion_to_matrix,
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


def in_another_frame(true, turn, translation_angstrom, is_mirrored=False):
    """The same images seen as those of ``W(r) = V(R (r - t))``, mirrored last; written out anew, in displacements."""
    quaternion = compose(true.quaternion, turn)
    displacement = -true.shift_angstrom - (quaternion_to_matrix(quaternion) @ translation_angstrom)[:, :2]
    return Poses(mirror_hand(quaternion) if is_mirrored else quaternion, -displacement)


@pytest.fixture
def true_poses(true):
    return Poses(true[:300], 4 * torch.randn(300, 2, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("symmetry", ["c1", "d2"])
def test_translation_between_frames_is_no_shift_error(true_poses, symmetry, is_mirrored):
    group = symmetry_group(symmetry)
    turn, moved = random_quaternions(1, torch.Generator().manual_seed(2))[0], torch.tensor([7.0, -11.0, 5.0])
    mates = Poses(compose(true_poses.quaternion, group[torch.arange(300) % len(group)]), true_poses.shift_angstrom)
    estimated = in_another_frame(mates, turn, moved, is_mirrored)
    alignment = align_poses(estimated, true_poses, group, allow_mirror=True)
    aligned = alignment.apply_to_poses(estimated)
    assert alignment.is_mirrored is is_mirrored
    assert rotation_errors_deg(aligned.quaternion, true_poses.quaternion, group).max() < 0.1
    assert shift_errors_angstrom(aligned.shift_angstrom, true_poses.shift_angstrom).max() < 0.01
    if not is_mirrored and symmetry == "c1":
        expected = -quaternion_to_matrix(turn.double()) @ moved.double()
        assert torch.allclose(alignment.translation_angstrom, expected, atol=0.01)
        assert abs(float((alignment.rotation * inverse(turn)).sum())) > 0.99999


def test_translation_stands_wrong_poses_and_wrong_shifts(true_poses):
    generator = torch.Generator().manual_seed(3)
    estimated = in_another_frame(true_poses, random_quaternions(1, generator)[0], torch.tensor([20.0, 0.0, -9.0]))
    quaternion, shift = estimated.quaternion.clone(), estimated.shift_angstrom.clone()
    quaternion[:100] = random_quaternions(100, generator)
    shift[80:150] += 30 + 5 * torch.randn(70, 2, generator=generator)
    shift += torch.randn(300, 2, generator=generator)
    alignment = align_poses(Poses(quaternion, shift), true_poses, symmetry_group("c1"))
    errors = shift_errors_angstrom(alignment.apply_to_poses(Poses(quaternion, shift)).shift_angstrom,
                                   true_poses.shift_angstrom)
    assert errors[150:].median() < 1.4  # noise of 1 A along x and y is 1.2 A off at the median


def test_few_poses_that_agree_move_nothing(true_poses):
    few = true_poses[:9]
    alignment = align_poses(in_another_frame(few, torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.ones(3)), few,
                            symmetry_group("c1"))
    assert alignment.translation_angstrom.tolist() == [0.0, 0.0, 0.0]


def test_direction_that_no_image_shows_is_left(true_poses):
    top_views = Poses(relion_euler_to_quaternion(torch.tensor([[0.0, 0.0, float(psi)] for psi in range(300)])),
                      true_poses.shift_angstrom)
    identity = torch.tensor([0.0, 0.0, 0.0, 1.0])
    alignment = align_poses(in_another_frame(top_views, identity, torch.tensor([3.0, 4.0, 50.0])), top_views,
                            symmetry_group("c1"))
    assert torch.allclose(alignment.translation_angstrom, torch.tensor([-3.0, -4.0, 0.0]).double(), atol=0.01)
