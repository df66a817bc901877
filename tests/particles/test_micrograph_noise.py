"""The noise of micrographs relative to the set's, and images divided by it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.imaging.fourier import fft_image, ifft_image, shell_index
from cryoforum_core.imaging.noise_spectrum import noise_power_spectra
from cryoforum_core.mrc import write_stack
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation, normalise
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.particles.micrograph_noise import ALIKE_WITHIN, MicrographNoise
from cryoforum_core.particles.particle_groups import ParticleGroups
from cryoforum_core.run_directory import RunDirectory

from ..matching.conftest import blobs

BOX, G, EACH = 32, 12, 40
N = G * EACH
GROUPS = ParticleGroups(tuple(f"m{i}.mrc" for i in range(G)), np.tile(np.arange(G), EACH))


def true_amplitudes(spread, seed=0):
    """Micrographs (G, shells) that differ at low frequencies, by a factor exp(spread) in amplitude; geometric mean 1."""
    size = spread * torch.randn(G, 1, generator=torch.Generator().manual_seed(seed))
    return torch.exp((size - size.mean()) / (1 + (torch.arange(BOX // 2 + 1) / 8.0) ** 4))


def images_with(amplitude, seed=1):
    white = torch.randn(len(GROUPS.of_particle), BOX, BOX, generator=torch.Generator().manual_seed(seed))
    return ifft_image(fft_image(white) * amplitude[GROUPS.of_particle][:, shell_index(BOX)])


def measured(images, groups=GROUPS):
    read = []

    def read_rows(rows):
        read.append(rows)
        return images[rows]

    return MicrographNoise.measure(groups, read_rows), np.concatenate(read)


def test_amplitudes_are_found_and_closer_to_the_truth_than_those_of_each_micrograph_alone():
    true = true_amplitudes(0.15)
    images = images_with(true)
    found = measured(images)[0].amplitude
    spectra = noise_power_spectra(images, 0.45 * BOX)
    alone = torch.stack([spectra[GROUPS.of_particle == g].mean(0) for g in range(G)])
    alone = (alone / alone.mean(0)).sqrt()
    low = slice(2, 9)
    error, error_alone = ((each / true)[:, low].log().square().mean().sqrt() for each in (found, alone))
    # 15 % are to be found to a third of that: 40 images have a sampling error of about 3 % in amplitude at these shells
    assert error < 0.05 and error < 0.9 * error_alone
    assert np.corrcoef(found[:, 4], true[:, 4])[0, 1] > 0.95


def test_micrographs_that_differ_by_chance_alone_are_exactly_alike():
    found, _ = measured(images_with(torch.ones(G, BOX // 2 + 1)))
    assert found.are_alike and (found.amplitude == 1).all() and (found.level() == 1).all()


def test_a_micrograph_of_two_images_is_shrunk_more():
    """Two images that are as loud as 40 others say less."""
    images = images_with(true_amplitudes(0.15))
    loud = int(measured(images)[0].amplitude[:, 4].argmax())
    own = np.flatnonzero(GROUPS.of_particle == loud)
    group = np.concatenate([GROUPS.of_particle, [G, G]])
    # both of them have the median power of that micrograph's
    power = noise_power_spectra(images[own], 0.45 * BOX)[:, 2:7].mean(1)
    middle = own[power.argsort()[19:21].numpy()]
    found = MicrographNoise.measure(ParticleGroups((*GROUPS.names, "few"), group),
                                    lambda rows: torch.cat([images, images[middle]])[rows]).amplitude[:, 4].log()
    assert 0.02 < found[G] < 0.8 * found[loud]


def test_an_image_with_ice_says_nothing_of_the_others_of_its_micrograph():
    images = images_with(true_amplitudes(0.15))
    before, _ = measured(images)
    images[7] *= 10
    after, _ = measured(images)
    torch.testing.assert_close(after.amplitude[:, 2:], before.amplitude[:, 2:], atol=0.06, rtol=0)


def test_no_more_images_are_read_than_a_sample_needs_and_empty_ones_do_not_count():
    many = ParticleGroups(("a", "b"), np.repeat([0, 1], 300))
    images = torch.randn(600, BOX, BOX, generator=torch.Generator().manual_seed(3))
    images[1::2] = 0
    found, rows = measured(images, many)
    assert len(rows) == 128 and found.are_alike
    nothing, _ = measured(torch.zeros_like(images), many)
    assert (nothing.amplitude == 1).all()


def test_levels_are_the_power_in_three_bands():
    amplitude = torch.ones(2, BOX // 2 + 1)
    amplitude[1, :3], amplitude[1, 9:] = 2.0, 0.5
    np.testing.assert_allclose(MicrographNoise(ParticleGroups(("a", "b"), np.array([0, 1])), amplitude).level(),
                               [[1, 1, 1], [4, 1, 0.25]], rtol=1e-6)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A clean set of 480 images, and the same in 12 micrographs with noise spectra of their own."""
    folder = tmp_path_factory.mktemp("micrographs")
    cf.write_map(folder / "molecule.mrc", blobs().numpy(), 5.0)
    run = cf.simulate(cf.SimulateConfig(out=folder / "clean", model=folder / "molecule.mrc", n_particles=N, snr=0.1, seed=1))
    (folder / "session").mkdir()
    session, particles = RunDirectory(folder / "session"), load_particles(run.particles)
    images_ft = fft_image(particles.images(np.arange(N))) * true_amplitudes(0.15)[GROUPS.of_particle][:, shell_index(BOX)]
    write_stack(session.particle_images, ifft_image(images_ft).numpy(), 5.0)
    particles.table.with_columns({
        "rlnImageName": [f"{i + 1:06d}@{session.particle_images}" for i in range(N)],
        "rlnMicrographName": np.array(GROUPS.names)[GROUPS.of_particle]}).write(session.particles)
    return {"session": session, "clean": run}


def prepared(run):
    particles = load_particles(run.particles)
    return ImagePreparation(particles, ImageState(), particles.box_size_px, torch.device("cpu"))


def test_transforms_and_ctf_are_divided_by_the_amplitude_of_their_own_micrograph(coloured):
    plain = prepared(coloured["session"])
    divided, rows = plain.with_micrograph_noise(), np.arange(0, N, 3)
    assert not divided.noise.are_alike
    for small in (False, True):
        if small:
            plain, divided = (replace(each, box_size_px=20) for each in (plain, divided))
        amplitude = divided.noise.of_images(rows, plain.box_size_px)
        assert (amplitude - 1).abs().max() > ALIKE_WITHIN
        for before, after in zip(plain.transforms(rows), divided.transforms(rows), strict=True):
            torch.testing.assert_close(after * amplitude, before)


def test_division_makes_the_noise_of_micrographs_alike(coloured):
    plain = prepared(coloured["session"])
    noise = plain.with_micrograph_noise().noise
    images = normalise(plain.particles.images(np.arange(N)), plain.state)
    whitened = ifft_image(fft_image(images) / noise.of_images(np.arange(N), BOX))
    again = MicrographNoise.measure(noise.groups, lambda rows: whitened[rows], seed=1)
    spread = [each.level()[:, 1].std() for each in (noise, again)]
    assert spread[1] < 0.5 * spread[0]


def test_sets_without_differences_or_without_several_micrographs_are_as_they_were(coloured):
    plain, rows = prepared(coloured["clean"]), np.arange(50)
    found = plain.with_micrograph_noise()
    assert len(found.noise.groups) == 5 and found.noise.are_alike
    for before, after in zip(plain.transforms(rows), found.transforms(rows), strict=True):
        assert torch.equal(before, after)
    particles = plain.particles.subset(np.arange(50))
    one = ImagePreparation(particles, ImageState(), particles.box_size_px, torch.device("cpu"))
    assert one.with_micrograph_noise().noise is None
    for state in (ImageState(grey_unit=1.0), ImageState(ctf_state="multiplied")):
        assert replace(plain, state=state).with_micrograph_noise().noise is None
