"""Images with the noise of a set's own images, and the map at known poses in the place of the particle."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.geometry.poses import displacement_px
from cryoforum_core.geometry.rotations import angular_distance_rad, random_quaternions
from cryoforum_core.imaging.fourier import ifft_image
from cryoforum_core.imaging.noise_spectrum import noise_power_spectrum
from cryoforum_core.matching.likelihood import contrast_from_poses, predicted
from cryoforum_core.matching.matching_model import MatchingModel
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import determine_image_state
from cryoforum_core.particles.micrograph_noise import MicrographNoise
from cryoforum_core.particles.particle_groups import ParticleGroups
from cryoforum_core.uncertainty.simulated_images import ImageSource, particles_like
from cryoforum_core.uncertainty.transplanted_images import TransplantedParticles

from ..matching.conftest import blobs
from .conftest import BOX, PIXEL, N
from .matched_results import results_of


def model_of(images):
    images_ft, ctf = images.transforms(np.arange(N))
    spectrum = noise_power_spectrum(ifft_image(images_ft), 0.45 * BOX)
    return MatchingModel.estimate(blobs(), images_ft, ctf, spectrum, torch.tensor([[0.0, 0, 0, 1]]), BOX / 2 - 1, 4.0)


@pytest.fixture(params=[("bright", "raw"), ("dark", "phase-flipped"), ("bright", "multiplied")], ids=" ".join)
def images(request, data):
    """Prepared images of the molecule at known poses, of either contrast and in each state of the CTF."""
    particles = load_particles(data.particles)
    state = determine_image_state(particles, cf.PredictConfig(out="x", particles="x", model="x"))
    raw = ImagePreparation(particles, state, BOX, torch.device("cpu"))
    truth = load_particles(data.truth, require_poses=True).poses
    contrast, ctf_state = request.param
    source = replace(ImageSource.like(raw, model_of(raw)), state=replace(state, contrast=contrast, ctf_state=ctf_state))
    made = particles_like(source, raw, truth.quaternion, displacement_px(truth.shift_angstrom, PIXEL), seed=5)
    return replace(raw, particles=made, state=source.state)


@pytest.fixture
def source(images):
    return ImageSource.like(images, model_of(images))


def test_a_particle_put_back_where_it_was_leaves_the_image_as_it_is(images, source):
    rows, truth = np.arange(0, N, 3), images.particles.poses
    found = results_of(truth.quaternion[rows], truth.shift_angstrom[rows])
    same = TransplantedParticles.of_matched(images, source, rows, found, truth.quaternion[rows],
                                            displacement_px(truth.shift_angstrom[rows], PIXEL), 0)
    transforms, own = replace(images, particles=same).transforms(np.arange(len(rows))), images.transforms(rows)
    for a, b in zip(transforms, own, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3 * float(b.abs().max()), rtol=0)


def test_the_image_shows_the_particle_at_its_new_pose_and_no_longer_at_the_old_one(images, source):
    rows, truth = np.arange(N), images.particles.poses
    found = results_of(truth.quaternion, truth.shift_angstrom)
    new = random_quaternions(N, torch.Generator().manual_seed(3)), torch.randn(N, 2, generator=torch.Generator().manual_seed(4))
    known = TransplantedParticles.of_matched(images, source, rows, found, *new, 0)
    model = source.model
    seen = model.images(*replace(images, particles=known).transforms(rows))
    old = truth.quaternion, displacement_px(truth.shift_angstrom, PIXEL)
    for poses, expected, tolerance in ((new, 1.0, 0.1), (old, 0.2, 0.3)):
        value, variance = contrast_from_poses(seen, predicted(seen, model.volume, *poses), 0.0)
        assert abs(float((value / variance).sum() / (1 / variance).sum()) - expected) < tolerance
    torch.testing.assert_close(known.poses.quaternion, new[0])
    torch.testing.assert_close(displacement_px(known.poses.shift_angstrom, PIXEL), new[1])
    # the noise is that of the same rows
    power = [model.images(*each.transforms(rows)).data.abs().square().mean() for each in (
        images, replace(images, particles=known))]
    assert abs(power[1] / power[0] - 1) < 0.05


def test_the_old_pose_is_drawn_from_its_posterior(images, source):
    """Residuals from the best pose have too little noise where a pose moves the projection: stated errors were 6 % too small."""
    truth = images.particles.poses
    found = results_of(truth.quaternion, truth.shift_angstrom, 0.05, 2.0)
    known = TransplantedParticles.of_matched(images, source, np.arange(N), found, truth.quaternion,
                                             displacement_px(truth.shift_angstrom, PIXEL), 7)
    angle = angular_distance_rad(known.found.quaternion, truth.quaternion)
    # Maxwell's distribution: three directions of that deviation
    assert angle.square().mean().sqrt().item() == pytest.approx(0.05 * 3 ** 0.5, rel=0.1)
    assert (known.found.shift_angstrom - truth.shift_angstrom).std().item() == pytest.approx(2.0, rel=0.1)


@pytest.fixture(scope="module")
def coloured(data):
    """Prepared images that count as from two micrographs, whose ratio of low to high frequencies differs."""
    particles = load_particles(data.particles)
    group = np.arange(N) % 2
    amplitude = torch.ones(2, BOX // 2 + 1)
    amplitude[1, :6] = 2.0
    amplitude[1, 6:] = 0.8
    noise = MicrographNoise(ParticleGroups(("a", "b"), group), amplitude / amplitude.square().mean(0).sqrt())
    state = determine_image_state(particles, cf.PredictConfig(out="x", particles="x", model="x"))
    plain = ImagePreparation(particles, state, BOX, torch.device("cpu"))
    return replace(plain, noise=noise), group


def test_simulated_images_have_the_noise_of_the_micrograph_whose_ctf_they_got(coloured):
    """Prepared with its relative amplitude, their noise is that of the set whatever the micrograph."""
    images, group = coloured
    white = torch.full((BOX // 2 + 1,), float(BOX ** 2))
    source = replace(ImageSource.like(images, model_of(images)), noise_spectrum=white)
    truth = torch.nn.functional.normalize(torch.randn(N, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    made = replace(particles_like(source, images, truth, torch.zeros(N, 2), seed=5), contrast=torch.zeros(N))
    own, rows = group[made.noise_rows(np.arange(N))], np.arange(N)
    assert torch.equal(made.ctf.defocus_u_angstrom, images.particles.ctf.defocus_u_angstrom[made.noise_rows(rows)])
    before, after = (noise_power_spectrum(ifft_image(
        replace(images, particles=made, noise=noise).transforms(rows[own == 1])[0]), 0.45 * BOX) for noise in (None, images.noise))
    # 2.05 in amplitude squared, less what the background's mask smooths
    assert before[4] / before[12] > 1.6 and abs(after[4] / after[12] - 1) < 0.2


def test_transplanted_images_have_the_micrograph_of_their_donors(coloured, data):
    images, group = coloured
    rows = np.arange(1, N, 5)
    truth = load_particles(data.truth, require_poses=True).poses
    found = results_of(truth.quaternion[rows], truth.shift_angstrom[rows])
    source = ImageSource.like(images, model_of(images))
    known = TransplantedParticles.of_matched(images, source, rows, found, truth.quaternion[rows],
                                             displacement_px(truth.shift_angstrom[rows], PIXEL), 0)
    some = np.arange(len(rows))[::-1].copy()
    assert known.noise_rows(some).tolist() == rows[some].tolist()
    # a particle put back where it was leaves the image, divided by the same amplitude
    for a, b in zip(replace(images, particles=known).transforms(some), images.transforms(rows[some]), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3 * float(b.abs().max()), rtol=0)
    # and so do particles whose noise is from others that have it from the set
    nested = replace(images, particles=known)
    again = particles_like(source, nested, truth.quaternion[rows], torch.zeros(len(rows), 2), seed=2)
    assert set(again.noise_rows(np.arange(len(rows))).tolist()) <= set(rows.tolist())
