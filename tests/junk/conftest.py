"""A set with junk of every kind, predicted and selected, for all tests that only read it."""

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.imaging.fourier import ifft_image
from cryoforum_core.imaging.noise_spectrum import noise_power_spectrum
from cryoforum_core.junk.features import PowerMap
from cryoforum_core.junk.simulation import JunkSimulation
from cryoforum_core.matching.matcher import Matcher
from cryoforum_core.matching.matching_model import MatchingModel
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.uncertainty.simulated_images import ImageSource

BOX, PIXEL, N = 32, 8.2, 240


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """240 simulated images, a quarter of them junk."""
    folder = tmp_path_factory.mktemp("junk")
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    centres = np.random.default_rng(3).uniform(-6, 6, (14, 3))
    cf.write_map(folder / "molecule.mrc",
                 sum(np.exp(-((x - a)**2 + (y - b)**2 + (z - c)**2) / 3) for a, b, c in centres), PIXEL)
    return cf.simulate(cf.SimulateConfig(out=folder / "set", model=folder / "molecule.mrc", n_particles=N, snr=0.5,
                                         junk_fraction=0.25, shift_rms_px=1.0, seed=4))


@pytest.fixture(scope="session")
def runs(made):
    """The set, its prediction by a network trained for five steps, the default selection from it, the arrays of the
    prediction, and the table of what is true."""
    folder = made.path.parent
    network = cf.train(cf.TrainConfig(out=folder / "network", particles=made.particles, reference=made.map,
                                      max_steps=5, batch_size=16))
    poses = cf.predict(cf.PredictConfig(out=folder / "poses", particles=made.particles, model=network.path,
                                        calibrate=False))
    kept = cf.select(cf.SelectConfig(out=folder / "kept", run=poses.path))
    with np.load(poses.orientation_posterior, allow_pickle=False) as arrays:
        posterior = dict(arrays)
    return made, poses, kept, posterior, ParticleTable.read(made.truth)


IDENTITY = torch.tensor([[0.0, 0.0, 0.0, 1.0]])


@pytest.fixture(scope="session")
def simulation(made):
    """Junk simulated like that of the set."""
    particles = load_particles(made.truth, require_poses=True)
    images = ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))
    images_ft, ctf = images.transforms(np.arange(len(particles)))
    volume = torch.from_numpy(read_map(made.map)[0])
    model = MatchingModel.estimate(volume, images_ft, ctf, noise_power_spectrum(ifft_image(images_ft), 0.45 * BOX), IDENTITY,
                                   BOX / 2 - 1, BOX / 8)
    return JunkSimulation(images, ImageSource.like(images, model), volume, PowerMap.build(model, ctf[:64]),
                          Matcher(model, adaptive=True))
