import torch

from cryoforum_core.imaging.fourier import fft_image, ifft_image, radius_px, shell_index
from cryoforum_core.imaging.masks import soft_circle
from cryoforum_core.imaging.noise_spectrum import background_mask, noise_power_spectra, noise_power_spectrum, noise_weight
from cryoforum_core.particles.image_preparation import normalise
from cryoforum_core.particles.image_state import ImageState


def test_noise_spectrum_of_coloured_noise_beside_a_particle():
    generator = torch.Generator().manual_seed(0)
    box = 64
    true = 4.0 / (1.0 + (torch.arange(box // 2 + 1) / 10.0) ** 2) * box ** 2
    filter_ = true.sqrt()[shell_index(box)] / box
    noise = ifft_image(fft_image(torch.randn(300, box, box, generator=generator)) * filter_)
    images = noise + 30.0 * soft_circle(box, 12.0)
    estimate = noise_power_spectrum(images, particle_radius_px=26.0)
    torch.testing.assert_close(estimate[3:31], true[3:31], rtol=0.12, atol=0)
    power = (noise_weight(estimate, box) * fft_image(noise).abs().square()).mean(0)
    inside = (radius_px(box) > 3) & (radius_px(box) < 31)
    assert abs(power[inside].mean() - 1) < 0.05


def test_white_noise_gives_its_variance_in_each_shell():
    images = 3.0 * torch.randn(400, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(noise_power_spectrum(images, 12.0), torch.full((17,), 9.0 * 32 ** 2), rtol=0.06, atol=0)


def test_the_background_is_what_the_circle_leaves():
    mask = background_mask(32, 8.0)
    torch.testing.assert_close(mask, 1 - soft_circle(32, 8.0))


def test_a_background_without_noise_has_a_power_above_zero():
    """Its inverse must stay finite: images without noise are weighted by it, too."""
    spectrum = noise_power_spectrum(torch.zeros(4, 32, 32), 12.0)
    assert (spectrum > 0).all()


def test_the_mean_of_the_spectra_of_images_is_that_of_all():
    images = torch.linspace(1, 3, 20)[:, None, None] * torch.randn(20, 32, 32, generator=torch.Generator().manual_seed(1))
    each = noise_power_spectra(images, 12.0)
    torch.testing.assert_close(each.mean(0), noise_power_spectrum(images, 12.0))
    torch.testing.assert_close(each[3:4].mean(0), noise_power_spectrum(images[3:4], 12.0))


def test_neither_a_gradient_nor_the_plane_that_is_fitted_to_it_changes_the_spectrum():
    """The plane takes a quarter of the power of the second shell, in a background of 36 % of the image."""
    images, axis = torch.randn(2000, 32, 32, generator=torch.Generator().manual_seed(2)), torch.arange(32) / 32
    level = noise_power_spectrum(images, 0.45 * 32)
    torch.testing.assert_close(level, torch.full((17,), 32.0 ** 2), rtol=0.05, atol=0)
    tilted = images + 3 * axis - 5 * axis[:, None] + 2
    torch.testing.assert_close(noise_power_spectrum(tilted, 0.45 * 32), level, rtol=1e-3, atol=0)
    torch.testing.assert_close(noise_power_spectrum(normalise(images, ImageState()), 0.45 * 32), level, rtol=0.02, atol=0)
