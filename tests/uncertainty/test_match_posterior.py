import pytest
import torch

from cryoforum_core.geometry.bingham import sample_bingham
from cryoforum_core.geometry.rotations import (
    angular_distance_deg,
    compose,
    inverse,
    quaternion_to_rotation_vector,
    random_quaternions,
    rotation_vector_to_quaternion,
    smallest_eigenvector,
)
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.matching.refine import RefinedPoses
from cryoforum_core.uncertainty.match_posterior import (
    bingham_from_information,
    local_deviation_of_bingham,
    local_scale,
    match_posterior,
    misassignment_probability,
    rotation_information,
    shift_deviation_px,
)

C1 = symmetry_group("c1")


def random_information(n, size, scale, seed):
    half = torch.randn(n, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * (half @ half.transpose(-1, -2) + torch.eye(size, dtype=torch.float64))


def test_bingham_has_the_mode_and_the_covariance_of_the_match():
    quaternion = random_quaternions(3, torch.Generator().manual_seed(0), torch.float64)
    information = random_information(3, 3, 2000.0, 1)
    bingham = bingham_from_information(quaternion, information)
    assert angular_distance_deg(smallest_eigenvector(bingham), quaternion).max() < 1e-4
    samples = sample_bingham(bingham, 20000, torch.Generator().manual_seed(2))
    vectors = quaternion_to_rotation_vector(compose(inverse(quaternion)[:, None], samples))
    covariance = vectors.transpose(-1, -2) @ vectors / 20000
    expected = torch.linalg.inv(information)
    assert ((covariance - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2))).max() < 0.06


def test_rotation_information_is_what_is_left_when_the_shift_is_unknown():
    information = random_information(5, 5, 100.0, 3)
    direct = torch.linalg.inv(torch.linalg.inv(information)[:, :3, :3])
    torch.testing.assert_close(rotation_information(information), direct, rtol=1e-4, atol=1e-4)


def hypotheses(quaternion, score):
    n, k = score.shape
    information = (1e4 * torch.eye(5)).expand(n, k, 5, 5)
    return RefinedPoses(quaternion, torch.zeros(n, k, 2), score, information)


def test_two_refinements_to_one_pose_count_once_and_alternatives_by_their_likelihood():
    first, other = random_quaternions(2, torch.Generator().manual_seed(4))
    nearly = compose(first, rotation_vector_to_quaternion(torch.tensor([0.01, 0.0, 0.0])))
    found = hypotheses(torch.stack([first, nearly, other])[None], torch.tensor([[50.0, 49.9, 49.0]]))
    posterior = match_posterior(found, C1)
    expected = torch.softmax(torch.tensor([50.0, 49.0]), 0)
    torch.testing.assert_close(posterior.weight[0], torch.stack([expected[0], torch.tensor(0.0), expected[1]]))


def test_equivalent_poses_are_one_pose_under_symmetry():
    group = symmetry_group("d2")
    pose = random_quaternions(1, torch.Generator().manual_seed(5))
    both = torch.cat([pose, compose(pose, group[2:3])])[None]
    assert match_posterior(hypotheses(both, torch.tensor([[10.0, 10.0]])), group).weight[0, 0] == 1.0
    assert abs(match_posterior(hypotheses(both, torch.tensor([[10.0, 10.0]])), C1).weight[0, 0] - 0.5) < 1e-4


def test_bingham_and_match_have_the_same_deviations():
    information = random_information(4, 3, 500.0, 8)
    deviation = torch.linalg.eigvalsh(information).rsqrt().float()
    quaternion = random_quaternions(4, torch.Generator().manual_seed(9), torch.float64)
    found = local_deviation_of_bingham(bingham_from_information(quaternion, information))
    torch.testing.assert_close(found.sort().values, deviation.sort().values, rtol=1e-3, atol=0)


def test_deviation_of_the_displacement_when_the_rotation_is_unknown():
    information = random_information(5, 5, 100.0, 3)
    expected = torch.linalg.eigvalsh(torch.linalg.inv(information)[:, 3:, 3:]).sqrt()
    torch.testing.assert_close(shift_deviation_px(information).sort().values, expected, rtol=1e-4, atol=1e-5)


def test_the_misassignment_probability_grows_where_the_fit_is_poor():
    chance = misassignment_probability(torch.tensor([3.0, 0.0, -3.0, -4.5, -9.0]))
    assert chance[0] < 1e-3 and chance[1] == chance[0] and chance[3] == 0.5 and chance[4] > 0.999
    assert (chance.diff() >= 0).all()


def test_particles_whose_halves_disagree_get_a_larger_error_and_the_others_a_smaller_one():
    """Every fifth particle has three times the stated error; its split error alone tells."""
    generator = torch.Generator().manual_seed(2)
    n = 4000
    stated = torch.full((n, 3), 0.02)
    true = stated * torch.where(torch.arange(n) % 5 == 0, 3.0, 1.0)[:, None]
    split, error = (true * torch.randn(2, n, 3, generator=generator)).norm(dim=-1)
    scale = local_scale(split, stated)
    worse = torch.arange(n) % 5 == 0
    assert scale[worse].median() > 1.5 * scale[~worse].median()
    bound = {}
    for name, deviation in (("stated", stated.norm(dim=1)), ("scaled", stated.norm(dim=1) * scale)):
        limit = (error / deviation).quantile(0.9) * deviation
        bound[name] = (error[worse] <= limit[worse]).double().mean()
    assert bound["stated"] < 0.6 and bound["scaled"] > bound["stated"] + 0.1


def test_a_set_whose_halves_agree_as_stated_keeps_its_errors():
    generator = torch.Generator().manual_seed(3)
    stated = 0.01 + 0.02 * torch.rand(3000, 1, generator=generator).expand(-1, 3)
    split = (stated * torch.randn(3000, 3, generator=generator)).norm(dim=-1)
    assert local_scale(split, stated).median() == pytest.approx(1.0, abs=0.06)
    # errors that are all twice as large as stated are found to be so
    assert local_scale(2 * split, stated).median() == pytest.approx(2.0, abs=0.12)


def test_a_lost_half_does_not_give_an_endless_error():
    stated = torch.full((50, 3), 0.02)
    split = torch.full((50,), 0.03)
    split[0] = 3.0
    assert local_scale(split, stated)[0] < 10
