"""What a set of particles has that the network's training had not."""

import json

import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.inference.mismatch import broken_symmetry
from cryoforum_core.inference.setup import prediction_setup

from ..matching.conftest import blobs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training_set")
    cf.write_map(folder / "map.mrc", blobs().numpy(), 5.0)
    return folder


@pytest.fixture(scope="module")
def simulated(folder):
    """simulated(kind of noise) -> STAR file, made once."""
    made = {noise: cf.simulate(cf.SimulateConfig(out=folder / noise, model=folder / "map.mrc", n_particles=100, snr=0.1,
                                                 noise=noise, device="cpu")).particles
            for noise in ("white", "coloured")}
    return made.__getitem__


@pytest.fixture(scope="module")
def network(folder, simulated):
    return cf.train(cf.TrainConfig(out=folder / "network", particles=simulated("white"), reference=folder / "map.mrc",
                                   max_steps=3, batch_size=16, device="cpu")).path


def test_a_symmetric_map_has_its_symmetry():
    volume = blobs()
    for axes in ((1, 2), (0, 2)):  # half turns about z and y, about the centre D // 2
        volume = volume + torch.roll(torch.flip(volume, axes), (1, 1), axes)
    assert broken_symmetry(volume, symmetry_group("d2"), "d2") is None
    assert broken_symmetry(volume, symmetry_group("c1"), "c1") is None


def test_differences_from_the_training_are_reported(simulated, network, tmp_path):
    def mismatches(particles, **options):
        config = cf.PredictConfig(out=tmp_path / "run", particles=particles, model=network, device="cpu", **options)
        return prediction_setup(config, cf.load_particles(particles, config), torch.device("cpu")).mismatches

    assert mismatches(simulated("white")) == ()
    size, = mismatches(simulated("white"), pixel_size_angstrom=4.7)
    assert "32 px at 5 A/px" in size
    assert any("noise spectrum differs" in text for text in mismatches(simulated("coloured")))
    assert any("symmetry c1, and c2" in text for text in mismatches(simulated("white"), symmetry="c2"))


def test_checkpoints_of_earlier_versions_have_no_mismatches(simulated, network, tmp_path):
    metadata = network / "checkpoint/checkpoint.json"
    now = metadata.read_text()
    old = {name: value for name, value in json.loads(now).items() if name != "images"} | {"format": 1}
    metadata.write_text(json.dumps(old))
    try:
        config = cf.PredictConfig(out=tmp_path / "run", particles=simulated("white"), model=network, pixel_size_angstrom=4.7)
        setup = prediction_setup(config, cf.load_particles(simulated("white"), config), torch.device("cpu"))
    finally:
        metadata.write_text(now)
    assert setup.mismatches == ()
