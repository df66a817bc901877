import numpy as np
import pytest
import torch

from cryoforum_core.imaging.ctf import CTFParameters, ctf_2d
from cryoforum_core.imaging.fourier import fft_image, ifft_image, radius_px, shell_index
from cryoforum_core.imaging.masks import soft_circle, soft_sphere
from cryoforum_core.imaging.noise_spectrum import noise_power_spectrum, noise_weight
from cryoforum_core.imaging.resolution import fourier_shell_correlation, resolution_angstrom


def parameters(u, v, angle, phase_shift=0.0):
    u = torch.tensor(u)
    one = torch.ones_like(u)
    return CTFParameters(u, torch.tensor(v), torch.tensor(angle), phase_shift * one, 300 * one, 2.7 * one, 0.1 * one)


def relion_ctf(u, v, angle_deg, box, pixel_size, phase_shift_deg=0.0):
    """The formula of RELION's CTF, written out once more in numpy."""
    wavelength = 12.2643247 / np.sqrt(300e3 * (1 + 300e3 * 0.978466e-6))
    ky = np.fft.fftfreq(box, pixel_size)[:, None]
    kx = np.arange(box // 2 + 1)[None] / (box * pixel_size)
    k2 = kx ** 2 + ky ** 2
    defocus = 0.5 * (u + v + (u - v) * np.cos(2 * (np.arctan2(ky, kx) - np.deg2rad(angle_deg))))
    chi = np.pi * wavelength * defocus * k2 - 0.5 * np.pi * 2.7e7 * wavelength ** 3 * k2 ** 2
    chi += np.deg2rad(phase_shift_deg)
    return np.sqrt(1 - 0.01) * np.sin(chi) + 0.1 * np.cos(chi)


@pytest.mark.parametrize("u, v, angle, phase", [(12000.0, 11000.0, 20.0, 0.0), (9000.0, 12000.0, 75.0, 0.0),
                                                (15000.0, 15000.0, 0.0, 0.0), (20000.0, 17000.0, 130.0, 40.0)])
def test_ctf_is_relions_formula(u, v, angle, phase):
    ours = ctf_2d(parameters([u], [v], [angle], phase), 64, 3.0)[0]
    # at the Nyquist column +kx and -kx share a pixel, and astigmatism makes them differ
    np.testing.assert_allclose(ours[:, :-1], relion_ctf(u, v, angle, 64, 3.0, phase)[:, :-1], atol=2e-3)


def test_parameters_can_be_subset():
    two = parameters([12000.0, 9000.0], [11000.0, 9000.0], [0.0, 10.0])
    assert len(two[torch.tensor([1])]) == 1
    assert two[1:].defocus_u_angstrom.item() == 9000.0
    assert two.mean_defocus_angstrom.tolist() == [11500.0, 9000.0]


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


def test_masks_are_one_inside_zero_outside_and_smooth():
    disc, ball = soft_circle(32, 8.0, 4.0), soft_sphere(32, 8.0, 4.0)
    assert disc[16, 16] == 1 and disc[16, 24] == 1 and disc[16, 29] == 0
    assert 0 < disc[16, 26] < 1
    torch.testing.assert_close(ball[16], disc)


def test_fsc_of_equal_opposite_and_unrelated_maps():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 24, 24, 24, generator=generator)
    torch.testing.assert_close(fourier_shell_correlation(a, 2 * a), torch.ones(13, dtype=torch.float64))
    torch.testing.assert_close(fourier_shell_correlation(a, -a), -torch.ones(13, dtype=torch.float64))
    assert fourier_shell_correlation(a, b)[4:].abs().max() < 0.25


def test_fsc_of_noisy_halves_is_the_known_ratio():
    """Signal s and independent noise n of equal variance in both halves: FSC = s / (s + n) = 0.5."""
    generator = torch.Generator().manual_seed(3)
    signal, first, second = torch.randn(3, 32, 32, 32, generator=generator)
    fsc = fourier_shell_correlation(signal + first, signal + second)
    assert abs(fsc[5:].mean() - 0.5) < 0.03


def test_resolution_is_where_the_curve_crosses():
    fsc = torch.tensor([1.0, 1.0, 0.9, 0.243, 0.043, 0.0])
    # crossing half-way between shells 3 and 4 of a 100 A field of view
    assert resolution_angstrom(fsc, 10, 10.0) == pytest.approx(100 / 3.5)
    assert resolution_angstrom(torch.ones(6), 10, 10.0) == 20.0
    # maps of no numbers agree nowhere
    assert resolution_angstrom(torch.full((6,), torch.nan), 10, 10.0) >= 100
