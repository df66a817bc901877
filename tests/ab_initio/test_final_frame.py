"""The frame of poses and maps: centred, on the axes of the symmetry, with the hand of a reference."""

import pytest
import torch

from cryoforum_core.ab_initio.final_frame import into_final_frame, with_hand_of_reference
from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.imaging.symmetry_frame import symmetry_score
from cryoforum_core.imaging.volume_frame import mirror_volume, move_volume, rotate_volume
from cryoforum_core.particles.simulate import DEFAULT_OTHER_MODEL, load_molecule

BOX = 32


@pytest.mark.parametrize("has_reference", [False, True])
def test_the_symmetry_group_is_given_back_in_the_frame_of_the_searches(has_reference):
    """A map with D2 that the searches found rotated, mirrored and elsewhere is brought onto the reference; the group goes
    back to where they found it."""
    group = symmetry_group("d2")
    reference = load_molecule(DEFAULT_OTHER_MODEL, BOX, None).volume
    volume = move_volume(mirror_volume(reference), random_quaternions(1, torch.Generator().manual_seed(3))[0],
                         torch.tensor([1.0, -0.5, 0.7]))
    framed = into_final_frame(volume, group, 14.0, reference if has_reference else None, seed=0)
    assert framed.symmetry_score > 0.9
    centred = move_volume(volume, torch.tensor([0.0, 0, 0, 1]), -_centre(volume))
    for element in framed.group_before(group):
        rotated = move_volume(centred, element, torch.zeros(3))
        assert torch.corrcoef(torch.stack([rotated.flatten(), centred.flatten()]))[0, 1] > 0.85


@pytest.mark.parametrize("symmetry", ["t", "i3"])
def test_a_symmetric_map_gets_the_hand_of_a_reference_and_keeps_its_axes(symmetry):
    """Of groups that a mirror in z takes off their axes. The reference lies in another frame."""
    group, generator = symmetry_group(symmetry), torch.Generator().manual_seed(1)
    axis = torch.arange(BOX) - BOX // 2.0
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    blobs = sum(torch.exp(-((x - c[0])**2 + (y - c[1])**2 + (z - c[2])**2) / 4) for c in (
        torch.tensor([[7.0, 3.0, -2.0], [3.0, 8.0, 5.0]]) if symmetry == "t" else torch.tensor([[9.0, 3.0, -2.0]])))
    volume = torch.stack([rotate_volume(blobs, element) for element in group]).mean(0)
    reference = rotate_volume(volume, random_quaternions(1, generator)[0])
    same, hand = with_hand_of_reference(volume, reference, 10.0)
    assert torch.equal(same, volume) and hand == "as in the reference"
    inverted = volume.flip((0, 1, 2)).roll((1, 1, 1), (0, 1, 2))
    back, _ = with_hand_of_reference(inverted, reference, 10.0)
    assert torch.corrcoef(torch.stack([back.flatten(), volume.flatten()]))[0, 1] > 0.99
    assert symmetry_score(FourierVolume.from_real(back), group) > 0.95
    assert with_hand_of_reference(volume, None, 10.0) == (volume, "undetermined")


def _centre(volume):
    """Of a map of high contrast."""
    axis = torch.arange(BOX) - BOX // 2.0
    weight = (volume - 0.2 * volume.max()).clamp_min(0)
    return torch.stack([(weight.sum(sums) * axis).sum() for sums in ((0, 1), (0, 2), (1, 2))]) / weight.sum()
