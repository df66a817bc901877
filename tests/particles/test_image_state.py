"""Dark protein and treated CTFs are noticed, and it is said where images do not tell."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoforum_core.config import ImageInputConfig
from cryoforum_core.errors import InputError
from cryoforum_core.imaging.ctf import CTFParameters, ctf_2d
from cryoforum_core.imaging.fourier import fft_image, ifft_image, radius_px
from cryoforum_core.imaging.masks import soft_circle
from cryoforum_core.mrc import write_stack
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_state import (
    NOISELESS_ABOVE,
    ImageState,
    contrast_z,
    ctf_state_statistic,
    determine_image_state,
    grey_unit,
    whiteness,
)
from cryoforum_core.particles.table import ParticleTable

DATA = Path(__file__).parents[1] / "data"
BOX, PIXEL = 48, 4.0


def ctf_parameters(n, generator, low=12000.0, high=28000.0):
    defocus = low + (high - low) * torch.rand(n, generator=generator)
    return CTFParameters(defocus + 100, defocus - 100, 180 * torch.rand(n, generator=generator), torch.zeros(n),
                         torch.full((n,), 300.0), torch.full((n,), 2.7), torch.full((n,), 0.1))


def particle_images(n, seed=0, snr=0.1, treatment="raw", is_coloured=False, has_particle=True):
    """Textured blobs of differing shape, up to 3 px off-centre, behind their CTFs, in noise: no 3-D map, no model of
    the statistics under test. Coloured noise is cut from larger fields, so that the box's edges do not match."""
    generator = torch.Generator().manual_seed(seed)
    ctf = ctf_parameters(n, generator)
    offset = torch.arange(BOX) - BOX // 2
    centre = 1.5 * torch.randn(n, 2, generator=generator)
    size = 9.0 + 3.0 * torch.rand(n, 2, generator=generator)
    x, y = ((offset - centre[:, i, None]) / size[:, i, None] for i in (0, 1))
    envelope = torch.exp(-(x[:, None, :].square() + y[:, :, None].square()).square())
    texture = 1.0 + 1.5 * torch.randn(n, BOX, BOX, generator=generator)
    contrast_transfer = ctf_2d(ctf, BOX, PIXEL)
    clean = ifft_image(fft_image(envelope * texture) * contrast_transfer)
    noise = torch.randn(n, 2 * BOX, 2 * BOX, generator=generator)
    if is_coloured:
        noise = ifft_image(fft_image(noise) / (1.0 + (8.0 * radius_px(2 * BOX) / (2 * BOX)).square()))
    noise = noise[:, :BOX, :BOX] / noise.std()
    images = has_particle * clean + noise * clean.std() * snr ** -0.5
    factor = {"raw": 1.0, "phase-flipped": contrast_transfer.sign(), "multiplied": contrast_transfer}[treatment]
    return ifft_image(fft_image(images) * factor), ctf


def low_passed(images):
    """Transforms of the images up to half Nyquist."""
    return fft_image(images) * (radius_px(BOX) < BOX / 4)


@pytest.mark.parametrize(("n", "is_coloured"), [(60, False), (300, True)])
def test_bright_and_dark_protein_at_snr_a_tenth(n, is_coloured):
    images, ctf = particle_images(n, is_coloured=is_coloured)
    z = contrast_z(images, ctf, PIXEL)
    assert z > 5.0
    assert contrast_z(-images, ctf, PIXEL) == pytest.approx(-z, abs=1e-3)
    # the scale and the grey level of an image say nothing
    assert contrast_z(3.0 * images + 7.0, ctf, PIXEL) == pytest.approx(z, abs=1e-2)


def test_noise_and_single_images_do_not_tell_the_contrast():
    for seed in range(4):
        images, ctf = particle_images(100, seed, has_particle=False, is_coloured=True)
        assert abs(contrast_z(images, ctf, PIXEL)) < 3.5
    assert contrast_z(images[:2], ctf[:2], PIXEL) == 0.0
    assert contrast_z(torch.ones(5, BOX, BOX), ctf[:5], PIXEL) == 0.0


def test_sets_without_noise_are_told(tmp_path, caplog):
    """Also by a background of exactly 0; one image full of noise, or of one bright pixel, does not count."""
    images, ctf = particle_images(60)
    assert grey_unit(images) is None
    spoilt = images.clone()
    spoilt[7, BOX // 2, BOX // 2] = 1e6
    assert grey_unit(spoilt) is None and determine_image_state(stored(tmp_path, spoilt, ctf), ImageInputConfig()
                                                               ).grey_unit is None
    clean = ifft_image(low_passed(particle_images(60, snr=1e6)[0])) * soft_circle(BOX, 0.4 * BOX, 2.0)
    clean[3] = torch.randn(BOX, BOX, generator=torch.Generator().manual_seed(0))
    unit = grey_unit(clean)
    spoilt = clean.clone()
    spoilt[5, 0, 0] = spoilt[6, BOX // 2, BOX // 2] = float("nan")
    assert grey_unit(spoilt) == pytest.approx(unit, rel=0.1) and whiteness(spoilt) == pytest.approx(whiteness(clean), rel=0.2)
    assert (clean / unit).var((1, 2)).median().item() == pytest.approx(NOISELESS_ABOVE, rel=1e-3)
    assert grey_unit(torch.ones(5, BOX, BOX)) is None
    (tmp_path / "clean").mkdir()
    assert determine_image_state(stored(tmp_path / "clean", clean, ctf), ImageInputConfig()).grey_unit == pytest.approx(unit)
    assert "almost none" in caplog.text


@pytest.mark.parametrize("snr", [0.1, 1.0])
def test_masked_images_are_refused(tmp_path, snr):
    """Noise is estimated where no particle is."""
    images, ctf = particle_images(60, snr=snr)
    with pytest.raises(InputError, match="Extract them again without a mask"):
        determine_image_state(stored(tmp_path, images * soft_circle(BOX, 0.4 * BOX, 2.0), ctf), ImageInputConfig())


def test_contrast_needs_no_ctf():
    images, _ = particle_images(60)
    assert contrast_z(images, None, PIXEL) > 4.0


def test_real_dark_particles_are_noticed(caplog):
    """EMPIAR-10076 (50S ribosome), 7 images, protein dark, binned to 64 px."""
    particles = load_particles(DATA / "empiar10076_7_64px.star")
    with caplog.at_level(logging.INFO, logger="cryoforum"):
        state = determine_image_state(particles, ImageInputConfig())
    assert state == ImageState("dark", "raw")
    assert "protein is dark" in caplog.text and "inverted" in caplog.text
    assert "whether phases are flipped cannot be determined" in caplog.text


@pytest.mark.parametrize("is_coloured", [False, True])
@pytest.mark.parametrize("treatment", ["raw", "phase-flipped", "multiplied"])
def test_ctf_state(treatment, is_coloured):
    statistic = ctf_state_statistic(*particle_images(400, treatment=treatment, is_coloured=is_coloured), PIXEL)
    assert statistic.state == treatment, statistic


@pytest.mark.parametrize("treatment", ["raw", "phase-flipped", "multiplied"])
def test_ctf_state_of_nearly_clean_images(treatment):
    statistic = ctf_state_statistic(*particle_images(150, snr=100.0, treatment=treatment), PIXEL)
    assert statistic.state == treatment, statistic


def test_noise_does_not_tell_the_ctf_state():
    for seed in range(4):
        images, ctf = particle_images(200, seed, has_particle=False, is_coloured=bool(seed % 2))
        statistic = ctf_state_statistic(images, ctf, PIXEL)
        assert statistic.state is None and abs(statistic.log_likelihood_ratio) < 4 * statistic.noise_deviation


def test_no_zero_of_the_ctf_in_reach_does_not_tell():
    images, _ = particle_images(100)
    near_focus = ctf_parameters(100, torch.Generator().manual_seed(0), 500.0, 1000.0)
    statistic = ctf_state_statistic(images, near_focus, PIXEL)
    assert statistic.state is None and statistic.log_likelihood_ratio == pytest.approx(0.0, abs=0.5)


def test_constant_images_are_passed_over():
    images, ctf = particle_images(150, snr=100.0)
    images[::5] = 2.0
    statistic = ctf_state_statistic(images, ctf, PIXEL)
    assert statistic.state == "raw" and statistic.n_images == 120
    assert ctf_state_statistic(torch.ones(3, BOX, BOX), ctf[:3], PIXEL).state is None


def stored(directory, images, ctf, more=None):
    write_stack(directory / "a.mrcs", images.numpy(), PIXEL)
    columns = {"rlnImageName": [f"{i + 1}@a.mrcs" for i in range(len(images))], "rlnDefocusU": ctf.defocus_u_angstrom,
               "rlnDefocusV": ctf.defocus_v_angstrom, "rlnDefocusAngle": ctf.defocus_angle_deg,
               "rlnVoltage": ctf.voltage_kv, "rlnSphericalAberration": ctf.spherical_aberration_mm,
               "rlnAmplitudeContrast": ctf.amplitude_contrast, **(more or {})}
    ParticleTable.from_columns(columns).write(directory / "in.star")
    return load_particles(directory / "in.star")


def test_measured_state_of_a_set(tmp_path, caplog):
    images, ctf = particle_images(400, treatment="phase-flipped")
    with caplog.at_level(logging.INFO, logger="cryoforum"):
        state = determine_image_state(stored(tmp_path, -images, ctf), ImageInputConfig(), n_sample=390)
    assert state == ImageState("dark", "phase-flipped")
    assert "CTF: the images are phase-flipped (log-likelihood ratio" in caplog.text and "390 images" in caplog.text


def test_settings_are_followed_with_a_warning_where_they_contradict(tmp_path, caplog):
    particles = stored(tmp_path, *particle_images(400))
    state = determine_image_state(particles, ImageInputConfig(contrast="dark", ctf_state="multiplied"))
    assert state == ImageState("dark", "multiplied")
    assert "--contrast says dark, but the images look bright" in caplog.text
    assert "--ctf-state says multiplied, but the images look raw" in caplog.text


def test_what_the_file_states_comes_before_what_is_measured(tmp_path):
    stated = {"rlnCtfDataArePhaseFlipped": np.ones(20, dtype=int)}
    particles = stored(tmp_path, *particle_images(20), stated)
    assert determine_image_state(particles, ImageInputConfig()).ctf_state == "phase-flipped"
    assert determine_image_state(particles, ImageInputConfig(ctf_state="raw")).ctf_state == "raw"


def test_an_undetermined_state_is_warned_of(tmp_path, caplog):
    images, ctf = particle_images(40, has_particle=False)
    assert determine_image_state(stored(tmp_path, images, ctf), ImageInputConfig()) == ImageState("bright", "raw")
    assert "whether protein is bright or dark cannot be determined" in caplog.text and "--contrast dark" in caplog.text
    assert "whether phases are flipped cannot be determined" in caplog.text and "--ctf-state" in caplog.text


def test_the_state_survives_a_checkpoint():
    state = ImageState("dark", "multiplied")
    assert ImageState.from_dict(state.to_dict()) == state
