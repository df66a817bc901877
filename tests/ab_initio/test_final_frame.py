"""The frame of poses and maps: centred, on the axes of the symmetry, with the hand of a reference."""

import pytest
import torch

from cryoforum_core.ab_initio.final_frame import into_final_frame
from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.volume_frame import mirror_volume, move_volume
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


def _centre(volume):
    """Of a map of high contrast."""
    axis = torch.arange(BOX) - BOX // 2.0
    weight = (volume - 0.2 * volume.max()).clamp_min(0)
    return torch.stack([(weight.sum(sums) * axis).sum() for sums in ((0, 1), (0, 2), (1, 2))]) / weight.sum()
