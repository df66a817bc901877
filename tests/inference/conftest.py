"""A set of 120 images of 32 px with known poses, SNR 0.3, and a network trained on them for five steps."""

import pytest

import cryoforum_core as cf
from cryoforum_core.particles.dataset import load_particles

from ..matching.conftest import BOX, blobs

PIXEL, N = 5.0, 120


@pytest.fixture(scope="session")
def simulated_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inference")
    cf.write_map(folder / "own.mrc", blobs().numpy(), PIXEL)
    return cf.simulate(cf.SimulateConfig(out=folder / "set", model=folder / "own.mrc", n_particles=N, snr=0.3, seed=5,
                                         shift_rms_px=1.0, defocus_min_angstrom=15000.0, defocus_max_angstrom=25000.0))


@pytest.fixture(scope="session")
def trained(simulated_run):
    """Directory of the network's run; matching finds the poses, not the network."""
    return cf.train(cf.TrainConfig(out=simulated_run.path.parent / "network", particles=simulated_run.particles,
                                   reference=simulated_run.map, max_steps=5, batch_size=32, device="cpu")).path


@pytest.fixture(scope="session")
def truth(simulated_run):
    """The particles with their true poses."""
    particles = load_particles(simulated_run.truth, require_poses=True)
    assert particles.box_size_px == BOX
    return particles
