"""One path from stacks to the network and the matching."""

import pytest
import torch

from cryoforum_core.errors import InputError
from cryoforum_core.imaging.ctf import CTFParameters, ctf_2d
from cryoforum_core.imaging.fourier import fft_image, ifft_image
from cryoforum_core.imaging.masks import soft_circle
from cryoforum_core.particles.image_preparation import (
    PreprocessSettings,
    effective_ctf,
    network_ctf,
    network_images,
    normalise,
)
from cryoforum_core.particles.image_state import ImageState

BOX, PIXEL = 64, 2.0
BRIGHT_RAW, DARK_RAW, FLIPPED = ImageState(), ImageState("dark"), ImageState("bright", "phase-flipped")


def ctf_parameters(n):
    return CTFParameters(torch.linspace(12000.0, 20000.0, n), torch.linspace(11900.0, 19900.0, n), torch.zeros(n),
                         torch.zeros(n), torch.full((n,), 300.0), torch.full((n,), 2.7), torch.full((n,), 0.1))


def noisy_images(n=6, box=BOX, seed=0):
    return torch.randn(n, box, box, generator=torch.Generator().manual_seed(seed))


def gaussian_blob(box=BOX, width=6.0):
    offset = (torch.arange(box) - box // 2) / width
    return torch.exp(-0.5 * (offset[:, None].square() + offset.square()))


def test_background_is_normalised_and_the_particle_does_not_count():
    images = 5.0 * noisy_images() - 3.0 + 400.0 * gaussian_blob(width=4.0)
    normal = normalise(images, BRIGHT_RAW)
    corner = normal[:, :4, :4]
    assert corner.mean().abs() < 0.2 and 0.85 < corner.std() < 1.15
    assert (normal[:, BOX // 2, BOX // 2] > 50).all()
    assert torch.allclose(normalise(-images, DARK_RAW), normal, atol=1e-4)
    assert torch.allclose(normalise(0.1 * images + 9.0, BRIGHT_RAW), normal, atol=1e-3)


def test_images_without_noise_are_divided_by_one_unit_of_the_set():
    """What is left in their background is the particle itself; it may be constant."""
    brightness = torch.linspace(1.0, 2.0, 6)[:, None, None]
    images = 20.0 + brightness * gaussian_blob(width=4.0)
    images[2, 3, 4] = float("nan")
    for contrast, sign in (("bright", 1.0), ("dark", -1.0)):
        normal = normalise(images, ImageState(contrast, grey_unit=0.5))
        kept = [0, 1, 3, 4, 5]
        assert torch.allclose(normal[kept], sign * (images[kept] - 20.0) / 0.5, atol=1e-2)
        assert torch.equal(normal[2], torch.zeros(BOX, BOX))


def test_constant_images_become_zero_and_harm_no_other():
    images = noisy_images()
    expected = normalise(images, BRIGHT_RAW)
    images[2] = 7.0
    normal = normalise(images, BRIGHT_RAW)
    assert torch.equal(normal[2], torch.zeros(BOX, BOX))
    assert torch.equal(normal[[0, 1, 3, 4, 5]], expected[[0, 1, 3, 4, 5]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_no_numbers_become_zero_and_harm_no_other(value):
    """A check of a sample of a large set may miss them."""
    images = noisy_images()
    expected = normalise(images, BRIGHT_RAW)
    images[2, 3, 4] = value
    normal = normalise(images, BRIGHT_RAW)
    assert torch.equal(normal[2], torch.zeros(BOX, BOX))
    assert torch.equal(normal[[0, 1, 3, 4, 5]], expected[[0, 1, 3, 4, 5]])


def test_default_box_is_the_images_own_up_to_128():
    assert PreprocessSettings.for_images(100, 2.0) == PreprocessSettings(100, 2.0)
    large = PreprocessSettings.for_images(320, 1.0)
    assert large.box_size_px == 128 and large.pixel_size_angstrom == 2.5
    assert PreprocessSettings.for_images(64, 2.0, 32, phase_flip=False) == PreprocessSettings(32, 4.0, phase_flip=False)
    with pytest.raises(ValueError, match="even"):
        PreprocessSettings(33, 1.0)


def test_fourier_crop_keeps_the_particle_where_it_is():
    image = torch.roll(gaussian_blob(), (8, -4), dims=(0, 1))[None] + 0.01 * noisy_images(1)
    settings = PreprocessSettings.for_images(BOX, PIXEL, 32, phase_flip=False)
    small = network_images(image, None, PIXEL, BRIGHT_RAW, settings)[0]
    assert small.shape == (32, 32)
    assert divmod(small.argmax().item(), 32) == (16 + 4, 16 - 2)


def test_outside_the_mask_is_zero():
    settings = PreprocessSettings.for_images(BOX, PIXEL, 32, mask_radius_fraction=0.3, mask_edge_px=2.0)
    small = network_images(noisy_images(), ctf_parameters(6), PIXEL, BRIGHT_RAW, settings)
    assert small[:, 16, 16 + 12:].abs().max() == 0.0 and small[:, 16, 16 + 9].abs().min() > 0.0


def test_raw_and_flipped_images_look_the_same_to_the_network():
    images, ctf = noisy_images() + 5.0 * gaussian_blob(), ctf_parameters(6)
    flipped = ifft_image(fft_image(images) * ctf_2d(ctf, BOX, PIXEL).sign())
    settings = PreprocessSettings.for_images(BOX, PIXEL, 48)
    from_raw = network_images(images, ctf, PIXEL, BRIGHT_RAW, settings)
    from_flipped = network_images(flipped, ctf, PIXEL, FLIPPED, settings)
    assert torch.allclose(from_raw, from_flipped, atol=1e-4)
    kept = network_images(images, ctf, PIXEL, BRIGHT_RAW, PreprocessSettings.for_images(BOX, PIXEL, 48, phase_flip=False))
    assert (kept - from_raw).abs().max() > 0.5


def test_another_box_and_pixel_size_show_the_same_particle():
    """The network was trained on 48 px of 4 A; the same blob comes in a larger field of finer pixels."""
    settings = PreprocessSettings(48, 4.0, phase_flip=False)
    own = gaussian_blob(48, 5.0)[None] + 1e-3 * noisy_images(1, 48)
    finer = gaussian_blob(128, 10.0)[None] + 1e-3 * noisy_images(1, 128)
    seen_own = network_images(own, None, 4.0, BRIGHT_RAW, settings)[0]
    seen_finer = network_images(finer, None, 2.0, BRIGHT_RAW, settings)[0]
    peak = (24, 24)
    assert torch.allclose(seen_own / seen_own[peak], seen_finer / seen_finer[peak], atol=0.01)


def test_a_smaller_field_is_padded_with_background():
    settings = PreprocessSettings(64, 2.0, phase_flip=False)
    seen = network_images(gaussian_blob(48, 2.0)[None] + 0.01 * noisy_images(1, 48), None, 2.0, BRIGHT_RAW, settings)[0]
    assert seen.shape == (64, 64) and seen.argmax().item() == 32 * 64 + 32
    assert seen[32, :8].abs().max() == 0.0 and seen[32, 57:].abs().max() == 0.0


def test_images_that_cannot_be_shown_say_why():
    settings = PreprocessSettings(64, 2.0)
    settings.check(64, 2.0)
    settings.check(128, 1.0)
    with pytest.raises(InputError, match="at most the network's 2 A; these have 3 A"):
        settings.check(64, 3.0)
    with pytest.raises(InputError, match="within 2 %; 26 px at 1.9 A/px do not"):
        settings.check(26, 1.9)
    with pytest.raises(InputError, match="at most the network's"):
        network_images(noisy_images(), None, 3.0, BRIGHT_RAW, settings)
    with pytest.raises(ValueError, match="needs the CTF"):
        network_images(noisy_images(), None, 2.0, BRIGHT_RAW, settings)


def test_settings_survive_a_checkpoint():
    settings = PreprocessSettings(96, 1.5, 0.4, 4.0, False)
    assert PreprocessSettings.from_dict(settings.to_dict()) == settings


def test_effective_ctf():
    ctf = ctf_parameters(3)
    raw = ctf_2d(ctf, BOX, PIXEL)
    assert torch.equal(effective_ctf(ctf, BOX, PIXEL, "raw"), raw) and raw.min() < -0.5
    assert torch.equal(effective_ctf(ctf, BOX, PIXEL, "phase-flipped"), raw.abs())
    assert torch.equal(effective_ctf(ctf, BOX, PIXEL, "multiplied"), raw.square())


def test_network_ctf_is_that_of_network_images():
    """Images that are a point behind their CTF, prepared, have the transform of ``network_ctf`` up to a scale."""
    ctf = ctf_parameters(3)
    settings = PreprocessSettings.for_images(BOX, PIXEL, 32, mask_radius_fraction=0.2, mask_edge_px=1000.0)
    point_ft = ctf_2d(ctf, BOX, PIXEL).to(torch.complex64)
    for state, images_ft in ((BRIGHT_RAW, point_ft), (FLIPPED, point_ft.abs().to(torch.complex64)),
                             (ImageState("bright", "multiplied"), point_ft.square())):
        prepared = fft_image(network_images(ifft_image(images_ft), ctf, PIXEL, state, settings)).real
        expected = network_ctf(ctf, state, settings)
        inner = (slice(None), slice(1, 12), slice(1, 12))
        correlation = torch.nn.functional.cosine_similarity(prepared[inner].flatten(1), expected[inner].flatten(1))
        assert (correlation > 0.999).all(), (state, correlation)


def ramp(slope_y, slope_x, box=BOX):
    axis = torch.arange(box) - box // 2
    return slope_y * axis[:, None] / box + slope_x * axis / box


def test_gradients_of_the_background_are_subtracted_whatever_the_particle():
    images = noisy_images() + 40.0 * torch.roll(gaussian_blob(width=4.0), (6, -3), dims=(0, 1))
    level = normalise(images, BRIGHT_RAW)
    for slopes in ((3.0, 0.0), (-1.0, 5.0)):
        torch.testing.assert_close(normalise(images + ramp(*slopes), BRIGHT_RAW), level, atol=1e-3, rtol=0)
    steep = normalise(images * torch.linspace(0.1, 1, 6)[:, None, None] + ramp(20.0, 20.0), DARK_RAW)
    torch.testing.assert_close(-steep, level, atol=1e-2, rtol=0)


def test_what_is_subtracted_from_images_without_gradient_is_their_noise():
    """Each slope has the variance of a mean over the background, about 1,500 px; none stays as it is."""
    images = noisy_images(200)
    background = soft_circle(BOX, 0.45 * BOX, 0.0) == 0
    mean, deviation = (f(images[:, background], 1)[:, None, None] for f in (torch.mean, torch.std))
    change = normalise(images, BRIGHT_RAW) - (images - mean) / deviation
    at_the_edge = change[:, BOX // 2, -1]
    along = (torch.arange(BOX) - BOX // 2)[None].expand(BOX, BOX)[background].float()
    expected = (BOX / 2 - 1) / (along.square().sum().sqrt())
    assert abs(at_the_edge.std() / expected - 1) < 0.15
    flat = normalise(images, BRIGHT_RAW)
    torch.testing.assert_close(normalise(flat, BRIGHT_RAW), flat, atol=1e-4, rtol=0)


def test_images_without_noise_keep_their_slope():
    """It may be the particle's."""
    images = gaussian_blob(width=4.0)[None] + ramp(0.2, 0.1)
    kept = normalise(images, ImageState(grey_unit=1.0))[0]
    torch.testing.assert_close(kept - kept.mean(), images[0] - images[0].mean())
