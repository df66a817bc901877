"""Network, map and images before the first step."""

import numpy as np
import pytest

from cryoforum_core.ab_initio.end_to_end.setup import prepare
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.errors import InputError
from cryoforum_core.geometry.rotations import angular_distance_deg
from cryoforum_core.particles.dataset import load_particles

from .end_to_end_runs import CPU, config, run_end_to_end


def test_known_poses_and_a_box_that_fits_are_demanded(sets, tmp_path):
    with pytest.raises(InputError, match="--poses known"):
        run_end_to_end(config(tmp_path, sets(float("inf")).particles, poses="known"))
    with pytest.raises(InputError, match="--network-box-size-px"):
        run_end_to_end(config(tmp_path / "box", sets(float("inf")).particles, network_box_size_px=15))


def test_images_without_noise_keep_their_own_grey_values(sets, tmp_path):
    """Normalised by a background that holds nothing but the particle, each image would have a scale of its own."""
    scale = {}
    for snr in (float("inf"), 2.0):
        particles = load_particles(sets(snr).truth)
        setup = prepare(plan_ab_initio(config(tmp_path, sets(snr).truth), particles, CPU))
        rows = np.arange(200)
        own = particles.images(rows)
        # the mask takes little away: the standard deviations of both must be in one proportion
        ratio = setup.images.at(rows).images.std((1, 2)) / own.std((1, 2))
        scale[snr] = (ratio.std() / ratio.mean()).item()
    assert scale[float("inf")] < 0.02 and scale[2.0] < 0.1


def setup_of(sets, tmp_path, **options):
    particles = sets(2.0).truth
    return prepare(plan_ab_initio(config(tmp_path, particles, **options), load_particles(particles), CPU))


def test_training_and_held_out_images_are_apart_and_the_same_for_the_same_seed(sets, tmp_path):
    first, again, other = (setup_of(sets, tmp_path, seed=seed) for seed in (1, 1, 2))
    rows = np.concatenate([first.stream.rows, first.held_out])
    assert sorted(rows.tolist()) == list(range(1000)) and len(first.held_out) < 0.2 * len(rows)
    assert first.held_out.tolist() == again.held_out.tolist() != other.held_out.tolist()


@pytest.mark.parametrize("options, uses_table, pose_steps_from", [
    ({}, False, None), ({"poses": "per-image"}, True, 0), ({"poses": "known"}, True, None),
    ({"per_image_after_epoch": 2}, False, 2 * 29)])
def test_poses_come_from_the_encoder_or_from_a_table(sets, tmp_path, options, uses_table, pose_steps_from):
    """900 training images in batches of 32: 29 steps an epoch."""
    setup = setup_of(sets, tmp_path, **options)
    assert bool(setup.model.uses_table) == uses_table and setup.stream.pose_steps_from == pose_steps_from
    assert setup.has_encoder == (options.get("poses", "encoder") == "encoder")


def test_known_poses_fill_the_table(sets, tmp_path):
    setup = setup_of(sets, tmp_path, poses="known")
    estimate = setup.model.poses(setup.images.at(np.arange(5)))[0]
    assert angular_distance_deg(estimate.quaternion, setup.plan.particles.poses.quaternion[:5]).max() < 0.1
