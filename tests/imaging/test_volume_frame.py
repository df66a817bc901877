import torch

from cryoforum_core.geometry.rotations import compose, mirror_hand, random_quaternions
from cryoforum_core.imaging.fourier import ifft_image
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.imaging.volume_frame import mirror_volume, rotate_volume

BOX = 40


def blobs(mirror=1.0):
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    centres = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)) * 2.5
    return sum(torch.exp(-((x - c[0])**2 + (y - c[1])**2 + (z - mirror * c[2])**2) / 8) for c in centres)


def projections(volume, quaternion):
    return ifft_image(FourierVolume.from_real(volume).project(quaternion))


def test_a_rotated_map_has_the_rotated_poses():
    generator = torch.Generator().manual_seed(0)
    poses, turn = random_quaternions(5, generator), random_quaternions(1, generator)[0]
    before, after = projections(blobs(), poses), projections(rotate_volume(blobs(), turn), compose(poses, turn))
    assert (before - after).abs().max() < 0.01 * before.max()
    unturned = projections(rotate_volume(blobs(), turn), poses)
    assert (before - unturned).abs().max() > 0.2 * before.max()


def test_no_rotation_leaves_the_map():
    volume = blobs()
    same = rotate_volume(volume, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    # points on the grid are not interpolated, and the correction for interpolation (sinc^2) remains
    assert (same - volume).abs().max() < 0.02 * volume.max()


def test_mirrored_map_has_the_mirrored_poses():
    poses = random_quaternions(5, torch.Generator().manual_seed(0))
    volume = blobs()
    assert torch.allclose(mirror_volume(volume), blobs(mirror=-1.0), atol=1e-5)
    before, after = projections(volume, poses), projections(mirror_volume(volume), mirror_hand(poses))
    assert (before - after).abs().max() < 0.01 * before.max()
