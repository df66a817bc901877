"""Particles in the minor state, matched to a map of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_core.config import PredictConfig
from cryoforum_core.geometry.pose_errors import rotation_errors_deg
from cryoforum_core.geometry.poses import displacement_px
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.fourier import ifft_image
from cryoforum_core.imaging.noise_spectrum import noise_power_spectrum
from cryoforum_core.inference.match_results import match_results
from cryoforum_core.inference.particle_states import MatchedSet
from cryoforum_core.matching.matcher import Matcher, StartingPoses
from cryoforum_core.matching.matching_model import MatchingModel
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation, matching_map
from cryoforum_core.results.pose_results import JunkLabels
from cryoforum_core.results.write import poses_of

from ..states.session_set import BOX, N, truth_of, two_state_session


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return two_state_session(tmp_path_factory.mktemp("states") / "set")


@pytest.fixture(scope="module")
def matched(session):
    """All images matched to the map of the major state, from their true poses."""
    config = PredictConfig(out=session.path / "none", particles=session.particles, model=session.path, device="cpu")
    particles, group = load_particles(session.particles, config), symmetry_group("c1")
    images = ImagePreparation.checked(particles, config, torch.device("cpu"))
    volume, poses = matching_map(session.map, particles), truth_of(session)[0].poses
    images_ft, ctf = images.transforms(np.arange(N))
    spectrum = noise_power_spectrum(ifft_image(images_ft), 0.45 * BOX)
    matcher = Matcher(MatchingModel.estimate(volume, images_ft, ctf, spectrum, group, BOX / 2 - 1, BOX / 8), adaptive=False)
    start = StartingPoses(poses.quaternion[:, None], displacement_px(poses.shift_angstrom,
                                                                     images.pixel_size_angstrom)[:, None])
    matcher.calibrate(images_ft, ctf, start)
    results = match_results(matcher.match(images_ft, ctf, start), particles.particle_id, group, images.pixel_size_angstrom)
    return MatchedSet(images, volume, matcher, group, results)


@pytest.fixture(scope="module")
def states(matched):
    return matched.states(seed=0)


def test_the_minor_state_is_found(session, states):
    is_minor = truth_of(session)[1]
    assert states.is_found
    assert np.mean((states.minor_probability >= 0.5) == is_minor) > 0.85


def test_poses_of_the_minor_state_get_better_and_others_stay(session, matched, states):
    truth, is_minor = truth_of(session)
    refined, labels = matched.refined(states), states.labels(N).state

    def errors(results):
        return rotation_errors_deg(poses_of(results).quaternion, truth.poses.quaternion.double(), matched.group.double()
                                   ).numpy()

    before, after = errors(matched.results), errors(refined)
    assert np.median(after[is_minor]) < 0.95 * np.median(before[is_minor])
    np.testing.assert_array_equal(after[labels == 1], before[labels == 1])
    np.testing.assert_array_equal(refined.states.state, labels)
    # what was found of other orientations stays
    np.testing.assert_array_equal(refined.evidence.weight, matched.results.evidence.weight)
    assert (refined.evidence.local_deviation_rad[labels == 2] != matched.results.evidence.local_deviation_rad[
        labels == 2]).any()


def test_states_are_found_again_at_the_refined_poses(session, matched, states):
    truth, is_minor = truth_of(session)
    results, again = matched.in_states(seed=0)

    def error_of_minor(found):
        return float(rotation_errors_deg(poses_of(found).quaternion, truth.poses.quaternion.double(), matched.group.double()
                                         )[torch.from_numpy(is_minor)].median())

    assert again.is_found
    np.testing.assert_array_equal(again.rows, states.rows)
    # the halves began from each other's states: the evidence is that of the states that they found apart
    assert (again.found.gain, again.found.gain_error) == (states.found.gain, states.found.gain_error)
    assert error_of_minor(results) < 1.02 * error_of_minor(matched.refined(states))
    np.testing.assert_array_equal(results.states.state, again.labels(N).state)
    # particles that are in the major state have the poses of the map that was given
    is_major = results.states.state == 1
    np.testing.assert_array_equal(results.quaternion[is_major], matched.results.quaternion[is_major])


def test_without_a_second_state_results_stay(matched, monkeypatch):
    monkeypatch.setattr("cryoforum_core.states.two_states.MIN_GAIN_ERRORS", 1e6)
    results, states = matched.in_states(seed=0)
    assert results is matched.results and not states.is_found


def test_junk_is_not_considered(matched):
    probability = np.ones(N, np.float32)
    probability[:50] = 0.1
    junk = JunkLabels(np.where(probability < 0.5, "not-a-particle", "none"), probability)
    found = replace(matched, results=replace(matched.results, junk=junk)).states(seed=0)
    assert found.rows.tolist() == list(range(50, N))
