"""The states of particles after the last round."""

import numpy as np
import pytest
import torch

from cryoforum_core.ab_initio.background import background_spectrum
from cryoforum_core.ab_initio.half_sets import HalfSets
from cryoforum_core.ab_initio.particle_states import LastRound
from cryoforum_core.ab_initio.rounds import local_round, reconstruct
from cryoforum_core.geometry.pose_errors import align_frame, rotation_errors_deg
from cryoforum_core.geometry.pose_hypotheses import PoseHypotheses
from cryoforum_core.geometry.poses import displacement_px
from cryoforum_core.geometry.rotations import compose, rotation_vector_to_quaternion
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.results.pose_results import PoseResults

from ..states.session_set import BOX, N, truth_of, two_state_session


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return two_state_session(tmp_path_factory.mktemp("states") / "set")


@pytest.fixture(scope="module")
def last_round(session):
    """Half maps from poses that are off by 4 degrees, which are then refined against them."""
    particles, poses = load_particles(session.particles), truth_of(session)[0].poses
    images = ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))
    halves = np.random.default_rng(0).permutation(np.arange(N) % 2) + 1
    sets = HalfSets(images, halves, symmetry_group("c1"), 0.45, 4.0, background_spectrum(images, np.arange(N)))
    off = torch.deg2rad(4 * torch.nn.functional.normalize(torch.randn(N, 3, generator=torch.Generator().manual_seed(0)), dim=1))
    started = PoseHypotheses.of(compose(poses.quaternion, rotation_vector_to_quaternion(off)),
                                displacement_px(poses.shift_angstrom, images.pixel_size_angstrom))
    refinement = reconstruct(sets, started, sets.background_spectrum, 14.0)
    for _ in range(4):
        refinement = local_round(sets, refinement, 14.0)
    return LastRound(sets, refinement, sets.scaled(refinement.pair.noise_spectrum, 14.0))


@pytest.fixture(scope="module")
def states(last_round):
    results = PoseResults(np.arange(N), np.zeros((N, 4)), np.zeros((N, 2)))
    return last_round.states(results, seed=0)


def test_the_minor_state_is_found_from_the_half_maps(session, states):
    assert states.is_found
    assert np.mean((states.minor_probability >= 0.5) == truth_of(session)[1]) > 0.8


def test_poses_of_both_states_get_better(session, last_round, states):
    truth, is_minor = truth_of(session)
    before, after = last_round.refinement.poses, last_round.refined(states)
    errors = [_errors_deg(poses, truth.poses.quaternion, last_round.half_sets) for poses in (before, after)]
    assert np.median(errors[1][is_minor]) < np.median(errors[0][is_minor])
    assert np.median(errors[1]) < np.median(errors[0])
    assert torch.isfinite(after.information).all() and (after.weight.sum(1) > 0.99).all()


def _errors_deg(poses, truth, half_sets):
    """In the frame of each half map: they rotate against each other."""
    found, errors = poses.quaternion[:, 0].double(), np.zeros(N)
    for half in (1, 2):
        rows = half_sets.rows(half)
        aligned = align_frame(found[rows], truth[rows].double(), half_sets.group.double()).apply(found[rows])
        errors[rows] = rotation_errors_deg(aligned, truth[rows].double(), half_sets.group.double()).numpy()
    return errors
