"""What prediction reads and checks before it starts."""

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.errors import InputError
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.inference.setup import prediction_setup
from cryoforum_core.particles.dataset import load_particles

from .conftest import BOX, PIXEL, N

CPU = torch.device("cpu")


def setup_of(simulated_run, trained, out, **options):
    config = cf.PredictConfig(out=out, **{"particles": simulated_run.particles, "model": trained, "device": "cpu"} | options)
    return prediction_setup(config, load_particles(config.particles, config), CPU)


def test_the_map_of_the_training_is_matched_in_the_particles_box(simulated_run, trained, tmp_path):
    setup = setup_of(simulated_run, trained, tmp_path / "run")
    assert setup.volume.shape == (BOX,) * 3 and setup.pixel_size_angstrom == pytest.approx(PIXEL)
    assert setup.symmetry == "c1" and len(setup.group) == 1 and setup.mismatches == () and setup.labelled is None
    estimate = setup.network(*setup.images.network_input(np.arange(3)))
    assert estimate.quaternion.shape == (3, 4)


def test_a_coarser_resolution_needs_a_smaller_box(simulated_run, trained, tmp_path):
    setup = setup_of(simulated_run, trained, tmp_path / "run", resolution_angstrom=20.0)
    # 160 A of 20 A: 16 px, and four more so that the last shells are whole
    assert len(setup.volume) == setup.images.box_size_px == 20 and setup.pixel_size_angstrom == pytest.approx(8.0)


def test_a_network_alone_without_calibration_needs_no_map(simulated_run, trained, tmp_path):
    assert setup_of(simulated_run, trained, tmp_path / "run", refinement="none", calibrate=False).volume is None
    assert setup_of(simulated_run, trained, tmp_path / "run", refinement="none").volume is not None  # to calibrate with


def test_the_symmetry_asked_for_goes_before_that_of_the_network(simulated_run, trained, tmp_path):
    setup = setup_of(simulated_run, trained, tmp_path / "run", symmetry="C2")
    assert setup.symmetry == "c2" and torch.equal(setup.group, symmetry_group("c2"))
    assert any("symmetry" in mismatch for mismatch in setup.mismatches)


def test_labelled_particles_are_prepared_as_the_others(simulated_run, trained, tmp_path):
    setup = setup_of(simulated_run, trained, tmp_path / "run", calibration_particles=simulated_run.truth)
    assert len(setup.labelled.particles) == N and setup.labelled.particles.poses is not None
    assert setup.labelled.box_size_px == setup.images.box_size_px and setup.labelled.state == setup.images.state


def test_all_problems_of_a_prediction_are_reported_at_once(simulated_run, trained, tmp_path):
    with pytest.raises(InputError) as caught:
        setup_of(simulated_run, tmp_path / "no_network", tmp_path / "run", symmetry="x1",
                 calibration_particles=simulated_run.particles)
    text = str(caught.value)
    assert all(words in text for words in ("no_network", "x1", "lacks rlnAngleRot")) and len(caught.value.problems) >= 3


def test_the_noise_of_micrographs_is_measured_where_images_are_matched(simulated_run, trained, tmp_path):
    matched = setup_of(simulated_run, trained, tmp_path / "run", calibration_particles=simulated_run.truth)
    assert len(matched.images.noise.groups) == 2 and matched.images.noise.are_alike
    assert matched.labelled.noise.amplitude.shape == (2, BOX // 2 + 1)
    assert setup_of(simulated_run, trained, tmp_path / "run", refinement="none", calibrate=False).images.noise is None
