"""A set of 400 images of 32 px, SNR 0.3, that several files read."""

import pytest

import cryoforum_core as cf

from ..matching.conftest import blobs

BOX, PIXEL, N = 32, 5.0, 400


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    cf.write_map(folder / "molecule.mrc", blobs().numpy(), PIXEL)
    return folder


def simulated(folder, name, **options):
    options = {"n_particles": N, "snr": 0.3, "seed": 1} | options
    return cf.simulate(cf.SimulateConfig(out=folder / name, model=folder / "molecule.mrc", shift_rms_px=1.0, **options))


@pytest.fixture(scope="session")
def data(folder):
    return simulated(folder, "set")
