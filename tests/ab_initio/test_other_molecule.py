"""Another molecule among the rejected images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.ab_initio import other_molecule
from cryoforum_core.ab_initio.other_molecule import find_other_molecule, other_molecule_figures, unlike_the_molecule
from cryoforum_core.junk.features import FEATURES
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.results.pose_results import JunkLabels, Match, MatchEvidence, PoseResults
from cryoforum_core.run_directory import RunDirectory

from ..matching.conftest import blobs

N, BOX = 400, 32


@pytest.fixture(scope="module")
def rejected(tmp_path_factory):
    """Images of the embedded ribosome subunit, SNR 1: all that another set has rejected."""
    return cf.simulate(cf.SimulateConfig(out=tmp_path_factory.mktemp("other") / "set", n_particles=N, box_size_px=BOX, snr=1.0,
                                         shift_rms_px=1.0, seed=4))


@pytest.fixture(autouse=True)
def _short_searches(monkeypatch):
    monkeypatch.setattr(other_molecule, "_STEPS", 120)


def prepared(run):
    particles = load_particles(run.particles)
    return ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))


def labelled(reason, features):
    n = len(reason)
    zeros = np.zeros((n, 1))
    evidence = MatchEvidence(zeros + 1, zeros, np.ones((n, 3)), np.ones((n, 2)), np.zeros((n, 4)), junk_features=features)
    return PoseResults(np.arange(n), np.zeros((n, 4)), np.zeros((n, 2)), match=Match(evidence=evidence),
                       junk=JunkLabels(np.asarray(reason), np.zeros(n)))


@pytest.fixture(scope="module")
def results():
    """All images are rejected as other objects."""
    return labelled(["another-object"] * N, np.random.default_rng(0).normal(size=(N, len(FEATURES))))


def test_neither_particles_nor_contamination_are_searched():
    features = np.random.default_rng(0).normal(size=(6, len(FEATURES)))
    features[4, FEATURES.index("low_power")] = 500
    reason = ["none", "not-a-particle", "another-object", "off-centre", "not-a-particle", "overlapping-neighbour"]
    assert unlike_the_molecule(labelled(reason, features)).tolist() == [1, 2]


def test_another_molecule_is_found_with_its_map(rejected, results, tmp_path):
    run, images = RunDirectory(tmp_path), prepared(rejected)
    figures = other_molecule_figures(images, blobs(), results, run, seed=0)
    assert 0.8 * N < figures["other_molecule_images"] <= N
    assert figures["other_molecule_sentence"].startswith("Another molecule: up to ")
    volume, pixel_size_angstrom = read_map(run.map_other_molecule)
    assert volume.shape == (BOX,) * 3 and pixel_size_angstrom == pytest.approx(images.particles.pixel_size_angstrom)


def test_rejected_particles_of_the_set_are_no_other_molecule(rejected, results, tmp_path):
    run = RunDirectory(tmp_path)
    volume = torch.from_numpy(np.array(read_map(rejected.map)[0]))
    figures = other_molecule_figures(prepared(rejected), volume, results, run, seed=0)
    assert figures["other_molecule_images"] == 0 and not run.map_other_molecule.exists()
    assert figures["other_molecule_sentence"].startswith("Particles of this molecule among the rejected images")


def test_noise_holds_no_other_molecule(tmp_path, results, monkeypatch):
    monkeypatch.setattr(other_molecule, "MAX_STARTS", 1)
    noise = cf.simulate(cf.SimulateConfig(out=tmp_path / "noise", n_particles=N, box_size_px=BOX, snr=0.3, junk_fraction=0.99,
                                          junk_kinds=("noise",), seed=6))
    run = RunDirectory(tmp_path)
    figures = other_molecule_figures(prepared(noise), blobs(), results, run, seed=0)
    assert figures["other_molecule_images"] == 0 and not run.map_other_molecule.exists()
    assert figures["other_molecule_sentence"].startswith("No other molecule found")


def test_a_few_images_are_not_searched(rejected, results, tmp_path):
    rows = np.arange(50)
    assert find_other_molecule(prepared(rejected), rows, blobs(), 0, tmp_path) is None
    few = replace(results, junk=replace(results.junk, reason=np.array(["none"] * N)))
    assert other_molecule_figures(prepared(rejected), blobs(), few, RunDirectory(tmp_path), seed=0) == {}
