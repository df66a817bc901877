"""One set of images and one run of the hybrid method for all tests that only read them."""

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.ab_initio.background import background_spectrum
from cryoforum_core.ab_initio.half_sets import HalfSets
from cryoforum_core.config import AbInitioConfig, EvaluateConfig
from cryoforum_core.geometry.pose_hypotheses import PoseHypotheses
from cryoforum_core.geometry.poses import displacement_px
from cryoforum_core.geometry.rotations import compose, rotation_vector_to_quaternion
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.published_benchmarks.published import MODEL

from .hybrid_runs import BOX, FAST, N_CLEAN, N, trainings_by_steps


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


@pytest.fixture(scope="session")
def clean_data(tmp_path_factory):
    """400 images without junk, SNR 1."""
    return cf.simulate(cf.SimulateConfig(out=tmp_path_factory.mktemp("half") / "set", n_particles=N_CLEAN,
                                         box_size_px=BOX, snr=1.0, shift_rms_px=1.0, seed=4))


@pytest.fixture(scope="session")
def truth(clean_data):
    """True poses of the images without junk."""
    return load_particles(clean_data.truth).poses


@pytest.fixture(scope="session")
def half_sets(clean_data):
    """The images without junk in two half sets."""
    particles = load_particles(clean_data.particles)
    images = ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))
    spectrum = background_spectrum(images, np.arange(N_CLEAN))
    return HalfSets(images, particles.half_set, symmetry_group("c1"), 0.45, 4.0, spectrum)


@pytest.fixture(scope="session")
def poses(half_sets, truth):
    """Off by 6 degrees and half a pixel."""
    generator = torch.Generator().manual_seed(0)
    off = torch.nn.functional.normalize(torch.randn(N_CLEAN, 3, generator=generator), dim=1) * np.deg2rad(6.0)
    found_px = displacement_px(truth.shift_angstrom, half_sets.images.pixel_size_angstrom)
    return PoseHypotheses.of(compose(truth.quaternion, rotation_vector_to_quaternion(off)),
                             found_px + 0.5 * torch.randn(N_CLEAN, 2, generator=generator))


@pytest.fixture(scope="session")
def adenylate_kinase(tmp_path_factory):
    """Two chains that differ little, 102 A box, SNR 3."""
    out = tmp_path_factory.mktemp("pseudo_symmetry") / "kinase"
    return cf.simulate(cf.SimulateConfig(out=out, model=MODEL, n_particles=N, box_size_px=BOX,
                                         pixel_size_angstrom=102.4 / BOX, snr=3.0, shift_rms_px=1.0, seed=4))
