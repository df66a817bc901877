"""The label of every image: other orientations that are about as likely, and labels of a whole set."""

import numpy as np
import pytest
import torch

from cryoforum_core.config import JUNK_REASONS
from cryoforum_core.junk.features import FEATURES
from cryoforum_core.junk.labelling import MIN_IMAGES, is_ambiguous, junk_labels, simulated_features, strongest_alternative
from cryoforum_core.matching.refine import RefinedPoses
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.pose_results import Match, MatchEvidence, PoseResults
from cryoforum_core.selection.selection import REASON_COLUMN
from cryoforum_core.uncertainty.match_posterior import MatchPosterior

REASON_OF = {"none": "none", "noise": "not-a-particle", "blank": "not-a-particle", "off-centre": "off-centre",
             "overlap": "overlapping-neighbour", "other-molecule": "another-object"}


def test_only_an_alternative_pose_far_away_makes_an_orientation_ambiguous():
    weight = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.95, 0.05, 0]])
    angle = np.deg2rad([[0, 90, 0], [0, 6, 0], [0, 90, 0]])
    assert is_ambiguous(weight, angle).tolist() == [True, False, False]


def test_the_strongest_alternative_is_another_orientation_and_no_neighbour_of_the_best():
    angle_deg = torch.tensor([[0.0, 6.0, 86.0, 50.0]])
    posterior = MatchPosterior(torch.tensor([[0.4, 0.3, 0.2, 0.1]]), torch.deg2rad(angle_deg), torch.zeros(1, 3))
    quaternion = torch.arange(16.0).reshape(1, 4, 4)
    poses = RefinedPoses(quaternion, torch.zeros(1, 4, 2), torch.zeros(1, 4), torch.zeros(1, 4, 5, 5))
    assert torch.equal(strongest_alternative(poses, posterior), quaternion[:, 2])


def test_predict_labels_junk_of_every_kind_correctly(runs):
    made, poses, _, posterior, truth = runs
    kind = truth.strings("rlnCryoforumJunkKind")
    right = np.array([REASON_OF[each] for each in kind])
    found = (posterior["reason"] != "none") & (right != "none")
    assert (posterior["reason"][right == "none"] == "none").mean() > 0.99
    # the network knows nothing, and is sure of some of it: no image is junk because of that
    assert posterior["searched"][np.isin(posterior["reason"], JUNK_REASONS)].all()
    assert found.sum() > 0.9 * (right != "none").sum()
    assert (posterior["reason"] == right)[found].mean() > 0.85
    table = ParticleTable.read(poses.particles)
    assert table.strings(REASON_COLUMN).tolist() == posterior["reason"].tolist()
    assert table.floats("rlnCryoforumParticleProbability") == pytest.approx(posterior["particle_probability"], abs=1e-5)


def test_sets_too_small_to_classify_get_no_labels(simulation):
    """Too few images to fit a classifier to: none is simulated."""
    n = MIN_IMAGES - 1
    arrays = [np.zeros((n, k), np.float32) for k in (1, 1, 3, 2, 4)]
    evidence = MatchEvidence(*arrays, junk_features=np.zeros((n, len(FEATURES)), np.float32))
    few = PoseResults(np.arange(n), np.zeros((n, 4)), np.zeros((n, 2)), np.zeros((n, 4, 4)), match=Match(evidence=evidence))
    assert simulated_features(few, np.arange(n), simulation) is None
    assert junk_labels(few, np.arange(n), simulation, None) is None
