from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_core.imaging.ctf import CTFParameters, ctf_2d


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


def test_a_ctf_without_effect_is_one_everywhere():
    none = CTFParameters.without_effect(3)
    assert not none.has_effect and parameters([9000.0], [9000.0], [0.0]).has_effect
    torch.testing.assert_close(ctf_2d(none, 32, 2.0), torch.ones(3, 32, 17))


def test_protein_is_bright_at_the_origin_and_a_phase_plate_brings_it_to_its_maximum():
    """CTF(0) is the amplitude contrast; with a phase shift of 90 degrees the square root of the rest of its square."""
    plain, phase_plate = (ctf_2d(parameters([8000.0], [8000.0], [0.0], phase), 16, 4.0)[0, 0, 0].item() for phase in (0, 90))
    assert plain == pytest.approx(0.1, abs=1e-5) and phase_plate == pytest.approx(0.99 ** 0.5, abs=1e-5)


def test_symmetric_aberrations_are_added_to_relions_gamma():
    """-sin(gamma + offset), offset = 400 k^4 sin 4 phi (coefficient 4) of the second image; the first has none."""
    plain = parameters([12000.0, 9000.0], [11000.0, 8500.0], [20.0, 70.0])
    coefficients = torch.zeros(2, 9)
    coefficients[1, 4] = 400.0
    found, without = ctf_2d(plain.with_even_zernike(coefficients), 64, 2.0), ctf_2d(plain, 64, 2.0)
    torch.testing.assert_close(found[0], without[0])
    wavelength = 12.2643247 / np.sqrt(300e3 * (1 + 300e3 * 0.978466e-6))
    y, x = np.fft.fftfreq(64, 2.0)[:, None], np.arange(33)[None] / 128
    defocus = 8750 + 250 * np.cos(2 * (np.arctan2(y, x) - np.deg2rad(70.0)))
    k2 = x ** 2 + y ** 2
    gamma = -np.pi * wavelength * defocus * k2 + 0.5 * np.pi * 2.7e7 * wavelength ** 3 * k2 ** 2 - np.arcsin(0.1)
    gamma += 400 * 4 * x * y * (x ** 2 - y ** 2)
    np.testing.assert_allclose(found[1, :, :-1], -np.sin(gamma)[:, :-1], atol=2e-3)
    assert (found[1] - without[1]).abs().max() > 0.5


def test_symmetric_aberrations_turn_with_the_astigmatism():
    """What turns an image by 90 degrees adds 90 to the defocus angle: the whole CTF must turn, aberrations too."""
    plain = parameters([12000.0], [11000.0], [20.0])
    coefficients = torch.zeros(1, 9)
    coefficients[0, 5] = 300.0  # secondary astigmatism
    aberrated = plain.with_even_zernike(coefficients)
    found = ctf_2d(replace(aberrated, defocus_angle_deg=aberrated.defocus_angle_deg + 90.0), 32, 2.0)[0]
    before = ctf_2d(aberrated, 32, 2.0)[0]
    # at (kx, ky) lies what was at (ky, -kx)
    torch.testing.assert_close(found[1:16, 1:16], before[[-i for i in range(1, 16)], 1:16].T, atol=1e-4, rtol=0)
    assert aberrated[:1].even_zernike.shape == (1, 9) and aberrated.to("cpu").has_effect
