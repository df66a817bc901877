"""Maps of both states."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_core.geometry.rotations import compose
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.run_directory import RunDirectory
from cryoforum_core.states import maps
from cryoforum_core.states.labelling import ParticleStates
from cryoforum_core.states.maps import write_state_maps
from cryoforum_core.states.two_states import Corrections, TwoStates

from .session_set import BOX, N, truth_of, two_state_session


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return two_state_session(tmp_path_factory.mktemp("states") / "set")


def written(folder, session, symmetry="c1", element=0):
    """Maps of the true states."""
    particles, is_minor = truth_of(session)
    group, run = symmetry_group(symmetry), RunDirectory(folder)
    run.path.mkdir()
    elements = np.full(N, element)
    states = ParticleStates(_nothing(), np.arange(N), np.arange(N) % 2, is_minor.astype(np.float32), elements)
    # poses given in another of the equivalent frames
    inverse = group[(len(group) - element) % len(group)]
    poses = replace(particles.poses, quaternion=compose(particles.poses.quaternion,
                                                        inverse.to(particles.poses.quaternion).expand(N, 4)))
    images = ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))
    return run, write_state_maps(run, replace(particles, poses=poses), images.transforms, states, group, 0.45 * BOX)


def _nothing():
    """Maps are made of the labels alone."""
    corrections = Corrections(torch.zeros(2, 4, 4, 4), torch.tensor([0.7, 0.3]))
    return TwoStates((corrections, corrections), (corrections.volumes, corrections.volumes), (1.0, 1.0), (0.1, 0.1), 1.0, 0.3)


def test_each_state_has_its_map(session, tmp_path):
    run, figures = written(tmp_path / "run", session)
    first, second = (read_map(path)[0] for path in (run.map_state1, run.map_state2))
    whole, lacking = (read_map(session.path / name)[0] for name in ("map.mrc", "map_minor_state.mrc"))
    correlations = np.corrcoef([first.ravel(), second.ravel(), whole.ravel(), lacking.ravel()])
    assert correlations[0, 2] > correlations[0, 3] and correlations[1, 3] > correlations[1, 2]
    difference = np.corrcoef((second - first).ravel(), (lacking - whole).ravel())[0, 1]
    assert difference > 0.5
    assert 0 < figures["major_state_resolution_angstrom"] <= figures["minor_state_resolution_angstrom"]


def test_the_minor_state_is_seen_from_the_pose_at_which_it_is_in_it(session, tmp_path):
    """The same map from the other of two equivalent poses, without the symmetry."""
    plain = read_map(written(tmp_path / "plain", session)[0].map_state2)[0]
    turned = read_map(written(tmp_path / "turned", session, "c2", 1)[0].map_state2)[0]
    np.testing.assert_allclose(turned, plain, atol=1e-3 * np.abs(plain).max())


def test_a_map_of_some_particles_is_enough(session, tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "MAX_IMAGES", 60)
    figures = written(tmp_path / "run", session)[1]
    assert figures["major_state_resolution_angstrom"] > 0
