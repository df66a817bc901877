"""One set of images and one run of the hybrid method for all tests that only read them."""

import sys
from pathlib import Path

import pytest

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.config import AbInitioConfig, EvaluateConfig

sys.path.insert(0, str(Path(__file__).parent))  # for hybrid_runs

from hybrid_runs import BOX, FAST, N, trainings_by_steps  # noqa: E402


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hybrid")


@pytest.fixture(scope="session")
def data(folder):
    """600 images of the embedded ribosome subunit with CTF and displacements, SNR 1; 5 % junk."""
    return cf.simulate(cf.SimulateConfig(out=folder / "set", n_particles=N, box_size_px=BOX, snr=1.0, shift_rms_px=1.0,
                                         junk_fraction=0.05, junk_kinds=("noise", "other-molecule"), seed=2))


@pytest.fixture(scope="session")
def run(folder, data):
    with trainings_by_steps():  # fixtures of the session come before the one below
        return jobs.ab_initio(AbInitioConfig(out=folder / "run", particles=data.particles, **FAST))


@pytest.fixture(scope="session")
def evaluation(folder, data, run):
    return jobs.evaluate(EvaluateConfig(out=folder / "evaluation", particles=run.particles, truth=data.truth,
                                        map=run.map, truth_map=data.map, align_frame=True, allow_mirror=True))


@pytest.fixture(autouse=True)
def _trainings_by_steps():
    with trainings_by_steps():
        yield
