"""How two half maps differ in the poses that they give to the same images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_core.ab_initio.half_map_difference import HalfMapDifference
from cryoforum_core.ab_initio.rounds import local_round, reconstruct
from cryoforum_core.geometry.rotations import angular_distance_deg, rotation_vector_to_quaternion
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


def test_half_maps_that_are_one_map_do_not_differ(half_sets, refinement):
    one = replace(refinement.pair, reference=(refinement.pair.reference[0],) * 2)
    found = HalfMapDifference.of(half_sets, replace(refinement, pair=one), 12.0)
    assert found.rotation_vector_rad.norm() < 1e-5 and found.deviation_rad < 1e-5


def test_the_rotation_between_two_half_maps_is_found_and_is_no_error_of_theirs(half_sets, turned):
    found = HalfMapDifference.of(half_sets, turned, 12.0)
    torch.testing.assert_close(torch.rad2deg(found.rotation_vector_rad), ROTATION_DEG, atol=0.15, rtol=0)
    assert np.rad2deg(found.deviation_rad) < 0.3


def test_poses_of_both_half_sets_are_brought_into_one_frame(half_sets, turned):
    """The same images by either map, each taken for those of its half set."""
    found, halves = HalfMapDifference.of(half_sets, turned, 12.0), half_sets.halves
    same = turned.poses.quaternion[:, 0]
    by_second = replace(turned.poses, quaternion=HalfMapDifference(2 * found.rotation_vector_rad, 0.0).joined(
        turned.poses, np.ones_like(halves)).quaternion)
    first, second = (found.joined(poses, np.full_like(halves, half)).best()[0]
                     for half, poses in ((1, turned.poses), (2, by_second)))
    assert angular_distance_deg(first, second).max() < 0.02
    assert angular_distance_deg(first, same).median() == pytest.approx(1.0, abs=0.1)


def test_a_frame_rotates_only_about_the_axis_of_its_symmetry(half_sets, turned):
    found = HalfMapDifference.of(replace(half_sets, group=symmetry_group("c3")), turned, 12.0)
    assert found.rotation_vector_rad[:2].abs().max() < 1e-6
    assert torch.rad2deg(found.rotation_vector_rad[2]) == pytest.approx(1.6, abs=0.15)
