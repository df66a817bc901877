from pathlib import Path

import pytest
import torch

import cryoforum_core
from cryoforum_core.geometry.rotations import (
    compose,
    quaternion_to_matrix,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.geometry.symmetry import symmetric_distance_deg, symmetry_group
from cryoforum_core.imaging.fourier import fft_volume
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.imaging.symmetry_frame import NO_SYMMETRY_BELOW, symmetry_frame
from cryoforum_core.imaging.volume_frame import move_volume, rotate_volume
from cryoforum_core.particles.atomic_model import default_pixel_size_angstrom, potential_map, read_atomic_model

BOX, SHELL = 32, 10
# groups whose elements take one frame of the group into another that is as good
NORMALISER = {"d2": "o", "d3": "d6", "o": "o"}


def gaussians(centres, width=1.3):
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return sum(torch.exp(-((x - c[0])**2 + (y - c[1])**2 + (z - c[2])**2) / (2 * width**2)) for c in centres)


def molecule(symmetry, generator):
    """About 40 Gaussians up to 9 px from the centre, with the group's symmetry."""
    group = quaternion_to_matrix(symmetry_group(symmetry))
    count = max(2, round(40 / len(group)))
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    places = direction * (2 + 7 * torch.rand(count, 1, generator=generator))
    return gaussians((places @ group.mT).reshape(-1, 3))


def with_noise(volume, generator):
    """White noise at which the FSC against the clean map is 0.5 at shell 10."""
    noise = torch.randn(volume.shape, generator=generator)
    k = torch.fft.fftfreq(BOX, 1 / BOX).square()
    radius = torch.sqrt(k[:, None, None] + k[:, None] + torch.arange(BOX // 2 + 1).square()).round()
    power = [fft_volume(v)[radius == SHELL].abs().square().mean() for v in (volume, noise)]
    return volume + noise * torch.sqrt(3 * power[0] / power[1])


def in_some_frame(volume, generator):
    turn, moved_px = random_quaternions(1, generator)[0], 2 * torch.randn(3, generator=generator)
    return with_noise(move_volume(volume, turn, moved_px), generator), turn, moved_px


def symmetrised(volume, group):
    return torch.stack([rotate_volume(volume, operation) for operation in group]).mean(0)


def tilt_of_axis_deg(turn):
    return torch.rad2deg(torch.acos(quaternion_to_matrix(turn)[2, 2].abs().clamp_max(1)))


@pytest.mark.parametrize("symmetry", ["c2", "c3", "c7", "d2", "d3", "o"])
def test_axes_and_centre_are_found(symmetry):
    generator = torch.Generator().manual_seed(3)
    group = symmetry_group(symmetry)
    original = molecule(symmetry, generator)
    volume, turn, moved_px = in_some_frame(original, generator)
    frame = symmetry_frame(volume, group)
    assert frame.score > NO_SYMMETRY_BELOW + 0.1
    # what is left of the turn takes the group's axes into themselves
    left = compose(turn, frame.rotation)
    if symmetry[0] == "c":
        assert tilt_of_axis_deg(left) < 1.5
    else:
        identity, normaliser = torch.tensor([0.0, 0.0, 0.0, 1.0]), symmetry_group(NORMALISER[symmetry])
        assert symmetric_distance_deg(left, identity, normaliser) < 1.5
    centre_px = frame.translation_px + quaternion_to_matrix(frame.rotation).T @ moved_px
    # along the axis of a C group the centre of density stands for the symmetry's, which is undetermined
    assert centre_px[:2].norm() < 0.3 and centre_px[2].abs() < (2.5 if symmetry[0] == "c" else 0.3)
    moved = move_volume(volume, frame.rotation, frame.translation_px)
    assert fourier_shell_correlation(symmetrised(moved, group), moved)[2:9].min() > 0.85


def test_moved_map_is_the_original_but_for_what_the_group_leaves_open():
    generator = torch.Generator().manual_seed(4)
    original = molecule("d3", generator)
    volume, _, _ = in_some_frame(original, generator)
    frame = symmetry_frame(volume, symmetry_group("d3"))
    moved = move_volume(volume, frame.rotation, frame.translation_px)
    half_turn = rotation_vector_to_quaternion(torch.tensor([0.0, 0.0, torch.pi]))
    agreement = [fourier_shell_correlation(rotate_volume(moved, operation), original)[2:9].min()
                 for operation in (torch.tensor([0.0, 0.0, 0.0, 1.0]), half_turn)]
    assert max(agreement) > 0.75


@pytest.mark.parametrize("symmetry", ["c2", "c3", "d2", "o"])
def test_map_without_symmetry_scores_below_the_threshold(symmetry):
    generator = torch.Generator().manual_seed(5)
    places = torch.randn(40, 3, generator=generator) * torch.tensor([3.5, 3.0, 4.0])
    volume, _, _ = in_some_frame(gaussians(places), generator)
    assert symmetry_frame(volume, symmetry_group(symmetry)).score < NO_SYMMETRY_BELOW


def test_c1_is_centred():
    generator = torch.Generator().manual_seed(6)
    places = torch.randn(40, 3, generator=generator) * torch.tensor([3.5, 3.0, 4.0])
    volume = with_noise(gaussians(places + torch.tensor([3.0, -2.0, 1.5])), generator)
    frame = symmetry_frame(volume, symmetry_group("c1"))
    assert (frame.translation_px + places.mean(0) + torch.tensor([3.0, -2.0, 1.5])).norm() < 1.0
    assert frame.rotation.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_real_tetramer_of_d2():
    model = read_atomic_model(Path(cryoforum_core.__file__).parent / "data" / "beta_galactosidase_5a1a.pdb.gz")
    original = potential_map(model, BOX, default_pixel_size_angstrom(model, BOX), b_factor_angstrom2=200.0)
    volume, turn, moved_px = in_some_frame(original, torch.Generator().manual_seed(7))
    group = symmetry_group("d2")
    frame = symmetry_frame(volume, group)
    assert frame.score > NO_SYMMETRY_BELOW + 0.1
    # what the noisy map told is judged on the map without noise
    moved = move_volume(move_volume(original, turn, moved_px), frame.rotation, frame.translation_px)
    assert fourier_shell_correlation(symmetrised(moved, group), moved)[1:11].min() > 0.95
