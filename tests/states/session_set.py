"""A simulated session whose particles are in two states, for tests of what is made of it."""

import numpy as np

import cryoforum_core as cf
from cryoforum_core.config import SimulateConfig
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.session_config import SessionConfig

N, BOX = 600, 32


def two_state_session(folder):
    """Run of 600 images of the embedded ribosome subunit, a third without a fifth of it; no junk, no neighbours."""
    session = SessionConfig(micrographs=8, neighbours=0.0, minor_state=0.33, domain=0.2, gradient=0.0)
    return cf.simulate(SimulateConfig(out=folder, like="session", session=session, n_particles=N, box_size_px=BOX, snr=2.0,
                                      junk_fraction=0.0, shift_rms_px=1.0, seed=3))


def truth_of(run):
    """The particles with true poses, and which of them are in the minor state (N,)."""
    particles = load_particles(run.truth, require_poses=True)
    return particles, np.asarray(particles.table.floats("rlnClassNumber")) == 2
