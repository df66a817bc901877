"""Small sets with known poses and known junk, made once for all tests that only read them."""

import numpy as np
import pytest

from cryoforum_core.catalogue import JUNK_KIND_COLUMN
from cryoforum_core.config import SimulateConfig
from cryoforum_core.jobs import simulate
from cryoforum_core.mrc import write_map
from cryoforum_core.particles.dataset import load_particles

N, BOX, PIXEL = 400, 24, 6.0


@pytest.fixture(scope="session")
def molecule(tmp_path_factory):
    offset = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(offset, offset, offset, indexing="ij")
    centres = np.random.default_rng(0).uniform(-5, 5, (12, 3))
    volume = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 3) for a, b, c in centres)
    path = tmp_path_factory.mktemp("molecule") / "map.mrc"
    write_map(path, volume, PIXEL)
    return path


@pytest.fixture(scope="session")
def make_set(tmp_path_factory, molecule):
    """Particles with the poses that they were drawn with (junk too), and which of them are junk (N,)."""
    made = {}

    def make(junk_fraction: float, snr: float = 0.3):
        if (junk_fraction, snr) not in made:
            run = simulate(SimulateConfig(
                out=tmp_path_factory.mktemp("set") / "run", model=molecule, n_particles=N, snr=snr, seed=3,
                junk_fraction=junk_fraction, junk_kinds=("noise", "off-centre", "blank")))
            particles = load_particles(run.truth, require_poses=True)
            made[junk_fraction, snr] = particles, particles.table.strings(JUNK_KIND_COLUMN) != "none"
        return made[junk_fraction, snr]

    return make
