"""Matched images as results: units, posterior, and the order of the hypotheses."""

import numpy as np
import pytest
import torch

from cryoforum_core.geometry.poses import shift_angstrom
from cryoforum_core.geometry.rotations import angular_distance_rad, compose, in_plane_quaternion, random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.inference.match_results import match_results
from cryoforum_core.matching.match_quality import MatchQuality
from cryoforum_core.matching.matcher import Matches
from cryoforum_core.matching.refine import RefinedPoses

N, PIXEL = 6, 4.0


@pytest.fixture
def matches() -> Matches:
    """Two hypotheses for each of six images, 90 degrees apart, the second e^2 less likely."""
    first = random_quaternions(N, torch.Generator().manual_seed(0))
    second = compose(in_plane_quaternion(torch.full((N,), torch.pi / 2)), first)
    displacement = torch.arange(4.0 * N).reshape(N, 2, 2) / 10
    information = (100.0 * torch.eye(5)).expand(N, 2, 5, 5).clone()
    score = torch.tensor([[12.0, 10.0]]).expand(N, 2)
    poses = RefinedPoses(torch.stack([first, second], 1), displacement, score, information)
    return Matches(poses, MatchQuality(torch.arange(float(N)), -torch.arange(float(N))), torch.arange(N) % 2 == 0,
                   torch.linspace(0.5, 1.5, N), torch.linspace(0.01, 0.02, N))


def test_poses_are_those_of_the_best_hypothesis_in_angstrom(matches):
    found = match_results(matches, np.arange(10, 10 + N), symmetry_group("c1"), PIXEL)
    best = matches.hypotheses[:, 0]
    assert found.particle_id.tolist() == list(range(10, 10 + N))
    np.testing.assert_array_equal(found.quaternion, best.quaternion.numpy())
    np.testing.assert_allclose(found.shift_angstrom, shift_angstrom(best.displacement_px, PIXEL).numpy())
    # RELION's origin is minus the displacement
    np.testing.assert_allclose(found.shift_angstrom, -PIXEL * best.displacement_px.numpy())
    assert found.match.fit.tolist() == matches.quality.fit.tolist()
    assert found.match.searched.tolist() == [True, False] * 3


def test_evidence_is_the_posterior_of_the_hypotheses(matches):
    evidence = match_results(matches, np.arange(N), symmetry_group("c1"), PIXEL).evidence
    ratio = evidence.weight[:, 0] / evidence.weight[:, 1]
    assert ratio == pytest.approx(np.exp(2.0), rel=1e-3)
    assert evidence.alternative_angle_rad[:, 1] == pytest.approx(np.pi / 2, abs=1e-3)
    # 100 per square px about each displacement: a tenth of a pixel
    assert evidence.shift_deviation_angstrom == pytest.approx(np.full((N, 2), 0.1 * PIXEL), rel=1e-3)
    np.testing.assert_allclose(evidence.strongest_alternative, matches.hypotheses.quaternion[:, 1].numpy())
    assert evidence.independent_angle_rad is None and evidence.junk_features is None
    np.testing.assert_array_equal(evidence.contrast, matches.contrast.numpy())
    np.testing.assert_array_equal(evidence.split_error_rad, matches.split_error_rad.numpy())


def test_the_network_is_compared_under_the_symmetry(matches):
    group = symmetry_group("c4")
    best = matches.hypotheses.quaternion[:, 0]
    rotated = compose(best, group[1:2].expand(N, 4))
    angle = match_results(matches, np.arange(N), group, PIXEL, independent=rotated).evidence.independent_angle_rad
    assert np.abs(angle).max() < 0.01 < float(angular_distance_rad(rotated, best).min())


def test_junk_features_are_kept_with_their_images(matches):
    features = torch.rand(N, 9), torch.rand(N, 2)
    evidence = match_results(matches, np.arange(N), symmetry_group("c1"), PIXEL, features=features).evidence
    np.testing.assert_array_equal(evidence.junk_features, features[0].numpy())
    np.testing.assert_array_equal(evidence.elsewhere_px, features[1].numpy())
