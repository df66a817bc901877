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


def blobs(box: int = BOX) -> torch.Tensor:
    """An asymmetric map (box, box, box): four Gaussian blobs of different weights in the corners of a tetrahedron."""
    axis = (torch.arange(box) - box // 2).float()
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    volume = torch.zeros(box, box, box)
    for weight, corner in zip((1.6, 1.2, 0.8, 0.5), ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)), strict=True):
        squared = sum((axis - 0.13 * box * c) ** 2 for axis, c in zip((x, y, z), corner, strict=True))
        volume += weight * torch.exp(-squared / (2 * (0.08 * box) ** 2))
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
