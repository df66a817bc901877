"""Junk and its reasons: the power map on noise and on a particle aside, classes on simulated statistics, and all of it
on a set with junk of every kind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.config import JUNK_REASONS
from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.junk.classifier import classify
from cryoforum_core.junk.features import FEATURES, PowerMap
from cryoforum_core.junk.labelling import is_ambiguous, strongest_alternative
from cryoforum_core.junk.rejection import REASONS, ImageLabels
from cryoforum_core.matching.likelihood import predicted
from cryoforum_core.matching.refine import RefinedPoses
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.selection.measures import measures_of
from cryoforum_core.selection.selection import REASON_COLUMN, select
from cryoforum_core.uncertainty.match_posterior import MatchPosterior

from ..matching.conftest import simulate

BOX, PIXEL, N = 32, 8.2, 240
REASON_OF = {"none": "none", "noise": "not-a-particle", "blank": "not-a-particle", "off-centre": "off-centre",
             "overlap": "overlapping-neighbour", "other-molecule": "another-object"}


# -- power in the box

def noise_like(transforms: torch.Tensor) -> torch.Tensor:
    values = torch.randn(*transforms.shape, 2, generator=torch.Generator().manual_seed(1))
    return torch.view_as_complex(values) * 0.5 ** 0.5


@pytest.fixture(scope="module")
def matched():
    """Images of a map, and their power map."""
    images = simulate(60, snr=0.3, seed=2)
    model = images.model()
    return model.images(images.images_ft, images.ctf), PowerMap.build(model, images.ctf), images


def test_noise_alone_is_standard_everywhere(matched):
    images, power_map, _ = matched
    power = power_map.of(images, noise_like(images.data))
    assert power.mean().abs() < 0.15
    assert power.std() == pytest.approx(1, abs=0.15)


def test_most_power_is_where_the_particle_is(matched):
    images, power_map, simulated = matched
    aside = torch.tensor([[0.25, -0.125]]).expand(len(images), 2) * images.box_size_px
    views = random_quaternions(len(images), torch.Generator().manual_seed(3))
    signal = predicted(images, power_map.model.volume, views, aside)
    power = power_map.of(images, signal + noise_like(signal))
    best, place = power.flatten(1).max(1)
    found = torch.stack([place % images.box_size_px, place // images.box_size_px], -1) - images.box_size_px // 2
    assert best.median() > 5
    assert (found - aside).norm(dim=1).median() < 0.1 * images.box_size_px


# -- classes from statistics

def of_kind(reason: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Statistics (n, s) about as predict finds them at SNR 0.05."""
    centre = {"none": (0, 15, 0, 10, 11, 0, 2, 6, 0), "not-a-particle": (-9, 13.5, 1, 0, 2, 1.5, 3, 0, 0),
              "overlapping-neighbour": (-.6, 15, 5, 12, 16, 2, 12, 11, -.6),
              "off-centre": (-8, 14, 6, 4, 12, 5, 11, 5, -1),
              "another-object": (-7, 14, 5, 14, 16, 10, 12, 7, 0)}[reason]
    return np.array(centre) + rng.normal(0, 1, (n, len(FEATURES))) * np.array([1, 1, 1, 3, 3, 1, 1, 2, 1])


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(1)
    return [of_kind(reason, 60, rng) for reason in REASONS]


def test_every_kind_gets_its_reason(simulated):
    rng = np.random.default_rng(2)
    counts = (800, 40, 40, 40, 40)
    truth = np.repeat(REASONS, counts)
    classes = classify(np.concatenate([of_kind(r, n, rng) for r, n in zip(REASONS, counts)]), simulated)
    for reason in REASONS:
        assert (classes.reason[truth == reason] == reason).mean() > 0.9
    assert ((classes.reason == "none") == (classes.particle_probability >= 0.5)).all()


def test_a_clean_set_is_left_alone_even_where_its_particles_are_not_quite_as_simulated(simulated):
    rng = np.random.default_rng(3)
    for offset in (0.0, -1.0):  # a poorer map, or images of several contrasts
        statistics = of_kind("none", 1000, rng) * np.array([1.3] + [1] * 8) + np.array([offset] + [0] * 8)
        assert (classify(statistics, simulated).reason != "none").mean() < 0.02


def test_power_that_no_particle_has_is_not_a_particle(simulated):
    rng = np.random.default_rng(4)
    statistics = of_kind("none", 300, rng)
    statistics[0, FEATURES.index("low_power")] = 500.0  # carbon
    statistics[1, FEATURES.index("high_power")] = -25.0  # one grey value
    classes = classify(statistics, simulated)
    assert classes.reason[:2].tolist() == ["not-a-particle"] * 2
    assert classes.particle_probability[:2].tolist() == [0, 0]


def test_only_a_rival_far_away_makes_an_orientation_ambiguous():
    weight = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.95, 0.05, 0]])
    angle = np.deg2rad([[0, 90, 0], [0, 6, 0], [0, 90, 0]])
    assert is_ambiguous(weight, angle).tolist() == [True, False, False]


def test_the_alternative_is_another_orientation_and_no_neighbour_of_the_first():
    angle_deg = torch.tensor([[0.0, 6.0, 86.0, 50.0]])
    posterior = MatchPosterior(torch.tensor([[0.4, 0.3, 0.2, 0.1]]), torch.deg2rad(angle_deg), torch.zeros(1, 3))
    quaternion = torch.arange(16.0).reshape(1, 4, 4)
    poses = RefinedPoses(quaternion, torch.zeros(1, 4, 2), torch.zeros(1, 4), torch.zeros(1, 4, 5, 5))
    assert torch.equal(strongest_alternative(poses, posterior), quaternion[:, 2])


# -- a whole set

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A set with a quarter of junk, its prediction by a network that knows nothing, and the default selection."""
    folder = tmp_path_factory.mktemp("junk")
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    centres = np.random.default_rng(3).uniform(-6, 6, (14, 3))
    cf.write_map(folder / "molecule.mrc",
                 sum(np.exp(-((x - a)**2 + (y - b)**2 + (z - c)**2) / 3) for a, b, c in centres), PIXEL)
    made = cf.simulate(cf.SimulateConfig(out=folder / "set", model=folder / "molecule.mrc", n_particles=N, snr=0.5,
                                         junk_fraction=0.25, shift_rms_px=1.0, seed=4))
    network = cf.train(cf.TrainConfig(out=folder / "network", particles=made.particles, reference=made.map,
                                      max_steps=5, batch_size=16))
    poses = cf.predict(cf.PredictConfig(out=folder / "poses", particles=made.particles, model=network.path,
                                        calibrate=False))
    kept = cf.select(cf.SelectConfig(out=folder / "kept", run=poses.path))
    with np.load(poses.orientation_posterior, allow_pickle=False) as arrays:
        posterior = dict(arrays)
    return made, poses, kept, posterior, ParticleTable.read(made.truth)


def test_predict_gives_reasons_that_are_right(runs):
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


def test_select_rejects_by_verdict_and_says_so(runs):
    _, _, kept, posterior, _ = runs
    summary, rejected = kept.read_summary(), ParticleTable.read(kept.rejected)
    assert summary["measure"] == "particle-probability" and summary["threshold"] == 0.5
    assert set(summary["reasons"]) <= set(JUNK_REASONS)
    assert len(rejected) == np.isin(posterior["reason"], JUNK_REASONS).sum()
    assert set(rejected.strings(REASON_COLUMN)) == set(summary["reasons"])
    assert summary["n_short_of_view_shares"] == 0
    assert "Why particles were rejected" in kept.report.read_text()


def test_off_centre_particles_can_be_extracted_again(runs):
    _, _, kept, posterior, truth = runs
    again = ParticleTable.read(kept.recentre)
    row = {id_: i for i, id_ in enumerate(truth.integers("rlnParticleId").tolist())}
    rows = [row[id_] for id_ in again.integers("rlnParticleId").tolist()]
    known = np.stack([truth.floats(name)[rows] for name in ("rlnOriginXAngst", "rlnOriginYAngst")], -1)
    origin = np.stack([again.floats(name) for name in ("rlnOriginXAngst", "rlnOriginYAngst")], -1)
    is_right = truth.strings("rlnCryoforumJunkKind")[rows] == "off-centre"
    assert is_right.sum() >= 6
    assert np.median(np.linalg.norm(origin - known, axis=1)[is_right]) < 2 * PIXEL
    assert np.isfinite(posterior["recentre_shift_angstrom"]).all(1).sum() == (posterior["reason"] == "off-centre").sum()


# -- views

def labelled_views(rng: np.random.Generator, n: int = 2000) -> tuple[dict, ImageLabels]:
    """A preferred view whose particles match well, a rare one whose match is poorer, and junk in the preferred one."""
    cone = np.where(rng.random(n) < 0.05, 7, 3)
    junk = (cone == 3) & (rng.random(n) < 0.2)
    quality = np.where(cone == 7, -2.0, 0.0) + rng.normal(0, 1, n) - 10 * junk
    labels = ImageLabels(np.where(junk, "another-object", "none"), cone, np.full((n, 2), np.nan), np.full((n, 4), np.nan))
    return {"match-score": quality, "expected-error": np.exp(-quality),
            "particle-probability": np.where(junk, 0.0, 1.0)}, labels


@pytest.mark.parametrize("criterion", [{}, {"keep_fraction": 0.5}, {"keep_count": 300}])
@pytest.mark.parametrize("measure", ["match-score", "expected-error"])
def test_no_cone_loses_more_than_its_junk(criterion, measure):
    measures, labels = labelled_views(np.random.default_rng(5))
    kept = select(measures, measure, labels=labels, **criterion).kept
    for cone in (3, 7):
        before, after = (labels.cone == cone).mean(), (labels.cone[kept] == cone).mean()
        junk = labels.is_rejected[labels.cone == cone].mean()
        assert after >= before * (1 - junk) - 1.5 / len(kept)


def test_views_are_not_protected_where_that_is_not_wanted_nor_against_a_limit():
    measures, labels = labelled_views(np.random.default_rng(5))
    rare = labels.cone == 7
    for options in ({"keep_fraction": 0.5, "protect_views": False}, {"threshold": 0.0}):
        selection = select(measures, "match-score", labels=labels, **options)
        assert rare[selection.kept].mean() < 0.5 * rare.mean()
        assert selection.n_short > 0
    assert (measures["match-score"][selection.kept] >= 0).all()


def test_only_the_reasons_asked_for_are_rejected():
    measures, labels = labelled_views(np.random.default_rng(6))
    labels = replace(labels, reason=np.where(np.arange(2000) < 50, "off-centre", labels.reason))
    measures["particle-probability"][:50] = 0.1
    selection = select(measures, labels=labels.rejecting(["off-centre"]))
    assert selection.rejected.tolist() == list(range(50))
    assert selection.summary()["reasons"] == {"off-centre": 50}


def test_particles_of_ambiguous_orientation_go_only_where_they_are_named():
    measures, labels = labelled_views(np.random.default_rng(6))
    reason = labels.reason.astype(object)
    ambiguous = np.flatnonzero(reason == "none")[:40]
    reason[ambiguous] = "ambiguous-orientation"
    labels = replace(labels, reason=reason.astype(str))
    assert not np.isin(ambiguous, select(measures, labels=labels).rejected).any()
    selection = select(measures, labels=labels.rejecting(["ambiguous-orientation"]))
    assert selection.rejected.tolist() == ambiguous.tolist()
    assert selection.summary()["reasons"] == {"ambiguous-orientation": 40} and "Ambiguous" in selection.explanation


def test_errors_beyond_the_limit_are_told_from_junk_and_from_ambiguous_orientations():
    reason = np.array(["none", "off-centre", "none", "ambiguous-orientation"])
    labels = ImageLabels(reason, np.zeros(4, dtype=int), np.full((4, 2), np.nan), np.full((4, 4), 0.5))
    selection = select({"expected-error": np.array([1.0, 60.0, 20.0, 50.0])}, max_error_deg=10.0, labels=labels)
    assert selection.reason.tolist() == ["off-centre", "error-beyond-limit", "ambiguous-orientation"]


def test_a_limit_of_errors_leaves_out_junk_of_the_kinds_that_matter():
    """An overlapping particle is oriented well, and its bound says so."""
    reason = np.array(["none", "overlapping-neighbour", "off-centre", "none"])
    labels = ImageLabels(reason, np.zeros(4, dtype=int), np.full((4, 2), np.nan), np.full((4, 4), np.nan))
    measures = {"expected-error": np.array([1.0, 1.0, 2.0, 20.0]), "error-bound": np.array([2.0, 2.0, 4.0, 40.0])}
    for limit in ({"max_error_deg": 10.0}, {"measure": "error-bound", "threshold": 10.0}):
        selection = select(measures, labels=labels, **limit)
        assert selection.kept.tolist() == [0] and "junk" in selection.explanation
        assert selection.reason.tolist() == ["overlapping-neighbour", "off-centre", "error-beyond-limit"]
        assert select(measures, labels=labels.rejecting(["off-centre"]), **limit).kept.tolist() == [0, 1]
        everything = select(measures, labels=labels.rejecting([]), **limit)
        assert everything.kept.tolist() == [0, 1, 2] and "junk" not in everything.explanation


def test_runs_without_classes_have_none():
    assert ImageLabels.of(PoseResults.from_arrays({"quaternion": np.zeros((2, 4))})) is None
    assert "particle-probability" not in measures_of(PoseResults.from_arrays({"eigenvalues": np.zeros((2, 4))}))
