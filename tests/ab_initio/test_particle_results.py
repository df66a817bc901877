"""Results from poses alone, from a network, with errors, and as the state of a stage."""

import numpy as np
import pytest
import torch

from cryoforum_core.ab_initio.particle_results import from_state, of_network, of_poses, to_state, with_estimated_errors
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.errors import InputError
from cryoforum_core.geometry.bingham import isotropic_bingham
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.model.orientation_head import PoseEstimate
from cryoforum_core.particles.dataset import load_particles

N = 12
IDS = np.arange(100, 100 + N)


@pytest.fixture(scope="module")
def plan(clean_data):
    config = AbInitioConfig(out="x", particles=clean_data.particles, contrast="bright", ctf_state="raw", device="cpu")
    return plan_ab_initio(config, load_particles(clean_data.particles), torch.device("cpu"))


def estimate(concentration: float) -> PoseEstimate:
    quaternion = random_quaternions(N, torch.Generator().manual_seed(0))
    return PoseEstimate(quaternion, isotropic_bingham(quaternion, torch.full((N,), concentration)), torch.ones(N, 2))


def test_poses_without_a_posterior_are_expected_to_be_anywhere(plan):
    """The mean angle between two random rotations is 126.5 degrees."""
    poses = Poses(random_quaternions(N, torch.Generator().manual_seed(1)), torch.zeros(N, 2))
    found = with_estimated_errors(of_poses(IDS, poses), None, plan, None)
    assert found.particle_id.tolist() == IDS.tolist()
    assert found.errors.expected_error_deg == pytest.approx(126.5, abs=1.0)


def test_a_sharper_posterior_of_the_network_has_smaller_errors(plan):
    wide, sharp = (with_estimated_errors(of_network(IDS, estimate(k)), None, plan, None).errors for k in (20.0, 2000.0))
    assert (sharp.expected_error_deg < 5).all() and (wide.expected_error_deg > 2 * sharp.expected_error_deg).all()
    assert (sharp.error_bound_deg > sharp.expected_error_deg).all()


def test_the_networks_own_poses_are_kept_beside_others(plan):
    """Where they are not the results' own."""
    network = estimate(200.0)
    poses = Poses(random_quaternions(N, torch.Generator().manual_seed(2)), torch.zeros(N, 2))
    found = with_estimated_errors(of_poses(IDS, poses), network, plan, None)
    np.testing.assert_array_equal(found.network.quaternion, network.quaternion.numpy())
    np.testing.assert_array_equal(found.quaternion, poses.quaternion.numpy())


def test_the_state_of_a_stage_gives_back_the_results():
    results = of_network(IDS, estimate(50.0))
    state = to_state(results)
    assert all(isinstance(values, torch.Tensor) for values in state.values())
    again = from_state(state, IDS)
    for name in ("particle_id", "quaternion", "shift_angstrom", "bingham"):
        np.testing.assert_array_equal(getattr(again, name), getattr(results, name))


def test_what_an_earlier_version_matched_is_refused():
    """It found junk by other features: mixed with those of now they would say nothing."""
    state = to_state(of_network(IDS, estimate(20.0)))
    assert from_state(state, IDS).particle_id.tolist() == IDS.tolist()
    with pytest.raises(InputError, match="earlier version"):
        from_state(state | {"evidence_junk_features": torch.zeros(N, 9)}, IDS)
