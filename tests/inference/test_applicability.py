"""Verdicts on sets whose fault is known, from the images that ``simulate`` makes."""

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.config import ImageInputConfig
from cryoforum_core.imaging.ctf import ctf_2d
from cryoforum_core.imaging.fourier import fft_image, ifft_image, low_pass_volume
from cryoforum_core.inference.applicability import Applicability, assess_poses
from cryoforum_core.inference.predict import applicability
from cryoforum_core.inference.setup import prediction_setup
from cryoforum_core.mrc import write_stack
from cryoforum_core.particles.image_state import determine_image_state

from ..matching.conftest import blobs

BOX, PIXEL, N = 32, 5.0, 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("applicability")
    for name, seed in (("own", 3), ("other", 8)):
        cf.write_map(folder / f"{name}.mrc", blobs(seed=seed).numpy(), PIXEL)
    return folder


@pytest.fixture(scope="module")
def images(folder):
    """images(name, molecule, **options) -> STAR file of simulated images, made once."""
    made = {}

    def make(name="matched", molecule="own", **options):
        if name not in made:
            made[name] = cf.simulate(cf.SimulateConfig(
                out=folder / name, model=folder / f"{molecule}.mrc", device="cpu",
                **{"n_particles": N, "snr": 0.3, "seed": 5, "shift_rms_px": 1.0, "defocus_min_angstrom": 15000.0,
                   "defocus_max_angstrom": 25000.0, **options})).particles
        return made[name]

    return make


@pytest.fixture(scope="module")
def network(folder, images):
    """A network that knows nothing yet: verdicts come from the map."""
    return cf.train(cf.TrainConfig(out=folder / "network", particles=images(), reference=folder / "own.mrc",
                                   max_steps=5, batch_size=32, device="cpu")).path


@pytest.fixture
def verdict(network, tmp_path):
    def judged(particles, **options) -> Applicability:
        config = cf.PredictConfig(out=tmp_path / "run", particles=particles, model=network, device="cpu", **options)
        loaded = cf.load_particles(particles, config)
        return applicability(config, prediction_setup(config, loaded, torch.device("cpu")))

    return judged


def changed(star, change):
    """The set with other images: ``change(images, CTFs)``, in a directory of its own."""
    particles = cf.load_particles(star)
    out = star.with_name(f"{change.__name__}.star")
    ctf = ctf_2d(particles.ctf, BOX, PIXEL)
    write_stack(out.with_suffix(".mrcs"), change(particles.images(np.arange(N)), ctf).numpy(), PIXEL)
    out.write_text(star.read_text().replace("particles.mrcs", out.with_suffix(".mrcs").name))
    return out


def inverted(images, ctf):
    return -images


def flipped(images, ctf):
    return ifft_image(fft_image(images) * torch.where(ctf < 0, -1.0, 1.0))


def test_a_model_applies_to_matching_particles(verdict, images):
    found = verdict(images())
    assert found.applies and found.cause == "none"
    assert found.figures["promise_kept"] > 0.8 and found.figures["promise_significance"] > 5
    assert found.figures["estimated_pixel_size_angstrom"] == pytest.approx(PIXEL, rel=0.01)


@pytest.mark.parametrize("name, options", [
    ("much noise", {"snr": 0.02}),
    ("junk and preferred views", {"junk_fraction": 0.2, "junk_kinds": ("noise", "blank", "off-centre"),
                                  "preferred_view_fraction": 0.8})])
def test_a_model_applies_to_matching_particles_of_poor_sets(verdict, images, name, options):
    assert verdict(images(name, **options)).applies


def test_a_model_with_a_low_pass_filtered_map_applies(verdict, images, folder):
    cf.write_map(folder / "low.mrc", low_pass_volume(blobs(), 6.0).numpy(), PIXEL)
    found = verdict(images(), reference=folder / "low.mrc")
    assert found.applies, found


def test_a_wrong_pixel_size_is_named_and_the_right_one_estimated(verdict, images):
    factor = 1 / 1.05
    found = verdict(images(), pixel_size_angstrom=PIXEL * factor)
    assert not found.applies and found.cause == "pixel-size"
    assert found.figures["estimated_pixel_size_angstrom"] == pytest.approx(PIXEL, rel=0.015)
    assert found.figures["estimated_magnification"] == pytest.approx(factor, rel=0.015)


def test_inverted_contrast_is_found_by_itself_and_a_wrong_setting_named(verdict, images):
    dark = changed(images(), inverted)
    assert determine_image_state(cf.load_particles(dark), ImageInputConfig()).contrast == "dark"
    found = verdict(dark, contrast="bright")
    assert not found.applies and found.cause == "contrast" and "--contrast dark" in found.reason


def test_flipped_phases_taken_as_raw_are_named(verdict, images):
    corrected = changed(images(), flipped)
    found = verdict(corrected, ctf_state="raw")
    assert not found.applies and found.cause == "ctf-state" and "--ctf-state phase-flipped" in found.reason
    raw = verdict(images(), ctf_state="phase-flipped")
    assert raw.cause == "ctf-state" and "--ctf-state raw" in raw.reason


@pytest.mark.parametrize("noise", ["white", "coloured"])
def test_images_of_noise_alone_are_recognised(verdict, images, noise):
    found = verdict(images(f"{noise} noise", snr=1e-6, noise=noise))
    assert not found.applies and found.cause == "noise-only"


def test_another_molecule_is_named_in_summary_log_and_report(images, network, folder, caplog):
    run = cf.predict(cf.PredictConfig(out=folder / "predicted", particles=images("another", "other"), model=network,
                                      device="cpu"))
    summary = run.read_summary()
    assert summary["model_applies"] is False and summary["model_applies_cause"] == "another-molecule"
    assert abs(summary["promise_kept"]) < 0.4 and np.isfinite(summary["fit_median"])
    assert "Network or map does not fit" in caplog.text
    page = run.report.read_text()
    assert 'class="alarm"' in page and "not particles of this molecule" in page


def test_a_map_without_the_symmetry_asked_for_does_not_apply(verdict, images):
    found = verdict(images(), symmetry="d2")
    assert not found.applies and found.cause == "symmetry" and "d2" in found.reason


def test_poses_that_do_not_fit_are_reported_though_the_map_does():
    good = Applicability(True, "none", "", {"promise_significance": 20.0})
    assert assess_poses(good, 0.9).applies and assess_poses(good, 0.3).cause == "poses"
    undecided = Applicability(True, "none", "", {"promise_significance": 2.0})
    assert assess_poses(undecided, 0.3).applies
