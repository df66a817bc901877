"""Half maps that have rotated against each other, brought into one frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_core.ab_initio.half_map_frames import in_one_frame, rotation_between_half_maps
from cryoforum_core.ab_initio.rounds import local_round, reconstruct
from cryoforum_core.geometry.rotations import angular_distance_deg, compose, rotation_vector_to_quaternion
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.volume_frame import move_volume

ROTATION_DEG = torch.tensor([0.0, 1.2, 1.6])


@pytest.fixture(scope="module")
def refinement(half_sets, poses):
    first = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0)
    return local_round(half_sets, first, 12.0)


@pytest.fixture(scope="module")
def turned(refinement):
    """The second half map is the first, turned by 2 degrees."""
    volume = refinement.pair.reference[0]
    rotation = rotation_vector_to_quaternion(torch.deg2rad(ROTATION_DEG))
    return replace(refinement, pair=replace(refinement.pair, reference=(volume, move_volume(volume, rotation,
                                                                                            torch.zeros(3)))))


def test_half_maps_that_are_one_map_are_in_one_frame(half_sets, refinement):
    one = replace(refinement.pair, reference=(refinement.pair.reference[0],) * 2)
    assert rotation_between_half_maps(half_sets, replace(refinement, pair=one), 12.0).norm() < 1e-5


def test_the_rotation_between_two_half_maps_is_found(half_sets, turned):
    found = rotation_between_half_maps(half_sets, turned, 12.0)
    torch.testing.assert_close(torch.rad2deg(found), ROTATION_DEG, atol=0.15, rtol=0)


def test_poses_by_either_half_map_agree_in_the_common_frame(half_sets, refinement):
    """The same images by either map, each taken for those of its half set."""
    rotation, halves = torch.deg2rad(ROTATION_DEG), half_sets.halves
    by_first, by_second = refinement.poses, replace(refinement.poses, quaternion=compose(
        refinement.poses.quaternion, rotation_vector_to_quaternion(rotation).expand_as(refinement.poses.quaternion)))
    first, second = (in_one_frame(poses, np.full_like(halves, half), rotation).best()[0]
                     for half, poses in ((1, by_first), (2, by_second)))
    assert angular_distance_deg(first, second).max() < 0.1
    assert angular_distance_deg(first, by_first.best()[0]).median() == pytest.approx(1.0, abs=0.01)


def test_a_frame_rotates_only_about_the_axis_of_its_symmetry(half_sets, turned):
    found = rotation_between_half_maps(replace(half_sets, group=symmetry_group("c3")), turned, 12.0)
    assert found[:2].abs().max() < 1e-6
    assert torch.rad2deg(found[2]) == pytest.approx(1.6, abs=0.15)
