import pytest
import torch

from cryoforum_core.geometry.rotations import angular_distance_deg, inverse, quaternion_to_matrix, random_quaternions
from cryoforum_core.imaging.map_alignment import align_to_reference, cross_correlation_peak, half_ball
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.imaging.volume_frame import mirror_volume, move_volume

BOX = 24


def gaussians(places, width=1.3):
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return sum(torch.exp(-((x - c[0])**2 + (y - c[1])**2 + (z - c[2])**2) / (2 * width**2)) for c in places)


def turned_moved_noisy(seed, is_mirrored):
    """A known map, the same elsewhere with noise of half the signal's variance, and where it was put."""
    generator = torch.Generator().manual_seed(seed)
    known = gaussians(torch.randn(30, 3, generator=generator) * torch.tensor([2.6, 2.2, 3.0]))
    turn, moved_px = random_quaternions(1, generator)[0], 1.5 * torch.randn(3, generator=generator)
    volume = move_volume(known, turn, moved_px)
    volume = mirror_volume(volume) if is_mirrored else volume
    noise = torch.randn(volume.shape, generator=generator) * volume.std() * 0.7
    return known, volume + noise, inverse(turn), -(quaternion_to_matrix(turn) @ moved_px)


@pytest.mark.parametrize("seed", range(10))
def test_rotation_translation_and_hand_are_found(seed):
    is_mirrored = seed % 2 == 1
    known, volume, rotation, translation_px = turned_moved_noisy(seed, is_mirrored)
    found = align_to_reference(volume, known, 7.0)
    assert found.is_mirrored is is_mirrored
    scores = sorted([found.score_as_is, found.score_mirrored])
    assert scores[1] - scores[0] > 0.15 and (found.score_mirrored > found.score_as_is) is is_mirrored
    assert angular_distance_deg(found.rotation, rotation) < 2.5
    assert (found.translation_px - translation_px).norm() < 0.3
    right_hand = mirror_volume(volume) if found.is_mirrored else volume
    moved = move_volume(right_hand, found.rotation, found.translation_px)
    assert fourier_shell_correlation(moved, known)[1:6].min() > 0.8


def test_peak_of_the_cross_correlation_is_the_displacement():
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(16, 16, 16, generator=generator)
    displaced = volume.roll((-2, 3, 5), dims=(0, 1, 2))
    k = half_ball(6.0)
    index = k.long()
    values = []
    for one in (displaced, volume):
        full = torch.fft.fftn(torch.fft.ifftshift(one.double()))
        values.append(full[index[:, 2], index[:, 1], index[:, 0]])
    shift, mean = cross_correlation_peak((values[0] * values[1].conj()).to(torch.complex64)[None], k, 16)
    assert shift.tolist() == [[5.0, 3.0, -2.0]]
    assert mean[0] == pytest.approx(float(values[1].abs().square().mean()), rel=1e-4)


def test_half_ball_has_one_of_each_pair():
    k = half_ball(4.0)
    both = torch.cat([k, -k]).tolist()
    assert len({tuple(point) for point in both}) == 2 * len(k)
    axis = range(-4, 5)
    n_inside = sum(1.5**2 <= x * x + y * y + z * z <= 16 for x in axis for y in axis for z in axis)
    assert len(both) == n_inside
