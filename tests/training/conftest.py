"""A small molecule, and particle sets made of it by the package's own simulation."""

import numpy as np
import pytest
import torch

from cryoforum_core.config import SimulateConfig
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.mrc import write_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.simulate import load_molecule, simulate
from cryoforum_core.run_directory import RunDirectory

BOX, PIXEL_SIZE = 24, 6.0


def blobs(box: int = BOX, seed: int = 4, n: int = 7) -> torch.Tensor:
    """An asymmetric map (box, box, box): Gaussian blobs of different weights within 0.25 box of the centre."""
    generator = torch.Generator().manual_seed(seed)
    axis = (torch.arange(box) - box // 2).float()
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    volume = torch.zeros(box, box, box)
    for weight in torch.linspace(0.5, 1.5, n):
        centre = torch.randn(3, generator=generator)
        centre = centre / centre.norm() * 0.25 * box * torch.rand(1, generator=generator) ** (1 / 3)
        squared = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        volume += weight * torch.exp(-squared / (2 * 1.3 ** 2))
    return volume


@pytest.fixture(scope="session")
def volume():
    """The molecule, ready to be projected, in a box of 24 px."""
    return FourierVolume.from_real(blobs())


@pytest.fixture(scope="session")
def molecule(tmp_path_factory):
    """Path of the map."""
    path = tmp_path_factory.mktemp("molecule") / "blobs.mrc"
    write_map(path, blobs().numpy(), PIXEL_SIZE)
    return path


@pytest.fixture(scope="session")
def particle_set(molecule, tmp_path_factory):
    """Makes sets: ``particle_set(n, snr, ...)`` returns Particles with true poses; the same call gives the same set."""
    made = {}

    def make(n: int = 300, snr: float = 1.0, **options):
        key = (n, snr, tuple(sorted(options.items())))
        if key not in made:
            directory = tmp_path_factory.mktemp("set")
            config = SimulateConfig(out=directory / "run", model=molecule, n_particles=n, snr=snr, shift_rms_px=0.5,
                                    defocus_min_angstrom=6000, defocus_max_angstrom=12000, **options)
            run = RunDirectory(config.out)
            run.prepare(config)
            simulate(config, run, load_molecule(molecule, None, None), None)
            made[key] = load_particles(run.truth)
        return made[key]

    return make


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    np.random.seed(0)
