"""Hypotheses that are refined at growing resolution until the data decide."""

import torch

from cryoforum_core.geometry.rotations import (
    angular_distance_deg,
    compose,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.matching.frequency_marching import HOPELESS_SCORE, MarchStage, march

STAGES = [MarchStage(6.0, 3, 4), MarchStage(15.0, 2, 5)]


def hypotheses(images, seed=0):
    """Starts (n, 4, 4), (n, 4, 2): the last is 6 degrees from the true pose, the others are random; no displacements."""
    n, generator = len(images.quaternion), torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    near = compose(images.quaternion, rotation_vector_to_quaternion(torch.deg2rad(torch.tensor(6.0)) * axis))
    return torch.cat([random_quaternions(3 * n, generator).reshape(n, 3, 4), near[:, None]], 1), torch.zeros(n, 4, 2)


def marched(images, starts, stages=STAGES, **options):
    model = images.model()
    return march(model.images(images.images_ft, images.ctf), model.volume, *starts, stages, 4.0, **options)


def test_the_hypothesis_near_the_truth_wins_and_each_stage_keeps_as_many_as_it_says(clean_images):
    found = marched(clean_images, hypotheses(clean_images))
    assert found.quaternion.shape == (24, 2, 4) and found.score.shape == (24, 2)
    assert (found.score.diff(dim=1) <= 0).all()
    assert angular_distance_deg(found.quaternion[:, 0], clean_images.quaternion).median() < 0.5


def test_a_hypothesis_far_behind_is_not_refined_further(clean_images):
    """Of images without noise all others are far behind after the first stage."""
    starts = hypotheses(clean_images)
    after_one = marched(clean_images, starts, STAGES[:1])
    far_behind = after_one.score[:, 1] < after_one.score[:, 0] - HOPELESS_SCORE
    assert far_behind.float().mean() > 0.5
    after_two = marched(clean_images, starts)
    assert torch.isneginf(after_two.score[far_behind, 1]).all() and torch.isfinite(after_two.score[:, 0]).all()


def test_chunks_change_nothing(clean_images):
    starts = hypotheses(clean_images)
    whole, in_parts = (marched(clean_images, starts, chunk_values=n) for n in (1_000_000, 5_000))
    torch.testing.assert_close(whole.quaternion, in_parts.quaternion, rtol=1e-3, atol=1e-3)
