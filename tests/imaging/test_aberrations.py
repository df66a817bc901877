"""Zernike polynomials with RELION's numbering, and the phases made of them."""

import numpy as np
import pytest
import torch

from cryoforum_core.imaging.aberrations import (
    aberration_phase,
    demodulated,
    phase_factors,
    turned_coefficients,
    with_beam_tilt,
    zernike_modes,
    zernike_polynomial,
)

BOX, PIXEL = 32, 1.5
WAVELENGTH = 12.2643247 / np.sqrt(300e3 * (1 + 300e3 * 0.978466e-6))


def frequencies():
    """kx, ky in 1/Angstrom on the half-complex grid."""
    ky, kx = np.fft.fftfreq(BOX, PIXEL)[:, None], np.arange(BOX // 2 + 1)[None] / (BOX * PIXEL)
    return np.broadcast_arrays(kx, ky)


def phase_of(index, value, parity):
    coefficients = torch.zeros(1, index + 1).double()
    coefficients[0, index] = value
    return aberration_phase(coefficients, parity, BOX, PIXEL)[0].numpy()


def test_modes_are_numbered_as_in_relion():
    """Zernike.cpp: i = 3 of the odd ones is (m, n) = (-1, 3), i = 4 of the even ones (-4, 4)."""
    assert zernike_modes(6, "odd") == [(-1, 1), (1, 1), (-3, 3), (-1, 3), (1, 3), (3, 3)]
    assert zernike_modes(9, "even") == [(0, 0), (-2, 2), (0, 2), (2, 2), (-4, 4), (-2, 4), (0, 4), (2, 4), (4, 4)]
    assert zernike_modes(12, "odd")[6:] == [(-5, 5), (-3, 5), (-1, 5), (1, 5), (3, 5), (5, 5)]


@pytest.mark.parametrize("parity, index, formula", [
    ("odd", 1, lambda x, y: x), ("odd", 0, lambda x, y: y),
    ("odd", 5, lambda x, y: x**3 - 3 * x * y**2), ("odd", 2, lambda x, y: 3 * x**2 * y - y**3),
    ("odd", 4, lambda x, y: (3 * (x**2 + y**2) - 2) * x), ("odd", 3, lambda x, y: (3 * (x**2 + y**2) - 2) * y),
    ("even", 0, lambda x, y: np.ones_like(x)), ("even", 2, lambda x, y: 2 * (x**2 + y**2) - 1),
    ("even", 6, lambda x, y: 6 * (x**2 + y**2)**2 - 6 * (x**2 + y**2) + 1),
    ("even", 8, lambda x, y: x**4 - 6 * x**2 * y**2 + y**4), ("even", 4, lambda x, y: 4 * x * y * (x**2 - y**2)),
    ("even", 7, lambda x, y: (4 * (x**2 + y**2) - 3) * (x**2 - y**2))])
def test_polynomials_are_the_textbooks(parity, index, formula):
    np.testing.assert_allclose(phase_of(index, 2.5, parity), 2.5 * formula(*frequencies()), atol=1e-12)


def test_beam_tilt_is_the_phase_of_coma_with_relions_sign():
    """Zivanov et al. (2020), eq. 3: 2 pi Cs lambda^2 |k|^2 (tilt . k), which RELION's insertTilt subtracts."""
    x, y = frequencies()
    expected = -2 * np.pi * 2.7e7 * WAVELENGTH**2 * (x**2 + y**2) * (0.7e-3 * x - 0.4e-3 * y)
    coefficients = torch.tensor([with_beam_tilt((), (0.7, -0.4), 2.7, 300.0)], dtype=torch.float64)
    np.testing.assert_allclose(aberration_phase(coefficients, "odd", BOX, PIXEL)[0], expected, atol=1e-9)
    added = with_beam_tilt((0.1,) * 8, (0.7, -0.4), 2.7, 300.0)
    np.testing.assert_allclose(added[:6], coefficients[0].numpy() + 0.1, rtol=1e-12)
    assert added[6:] == (0.1, 0.1)


@pytest.mark.parametrize("parity, n", [("even", 9), ("odd", 4)])
def test_turned_coefficients_are_those_of_the_turned_pattern(parity, n):
    """The pattern at (x, y) is found at the place turned by the angle; an order that is not complete is completed."""
    generator = torch.Generator().manual_seed(0)
    coefficients, angle = torch.randn(2, n, generator=generator).double(), torch.tensor([30.0, -75.0]).double()
    turned = turned_coefficients(coefficients, parity, angle)
    assert turned.shape == (2, {"even": 9, "odd": 6}[parity])
    x, y = torch.randn(2, 40, generator=generator).double()
    for row in range(2):
        cos, sin = torch.deg2rad(angle[row]).cos(), torch.deg2rad(angle[row]).sin()

        def value(values, x, y):
            modes = zernike_modes(len(values), parity)
            return sum(c * zernike_polynomial(*mode, x, y) for c, mode in zip(values, modes, strict=True))

        torch.testing.assert_close(value(turned[row], cos * x - sin * y, sin * x + cos * y), value(coefficients[row], x, y))


def test_demodulation_undoes_the_phases_and_keeps_the_power():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, BOX, BOX, generator=generator) + 5.0
    odd = with_beam_tilt((0.0, 0.0, 3.0), (2.0, 1.0), 2.7, 300.0)
    aberrated = torch.fft.irfft2(torch.fft.rfft2(images) * phase_factors(odd, BOX, PIXEL), s=(BOX, BOX))
    # the Nyquist row and column of a real image hold no phase
    kx, ky = np.meshgrid(np.arange(BOX // 2 + 1), np.fft.fftfreq(BOX, 1 / BOX))
    inside = torch.from_numpy((kx < BOX // 2) & (np.abs(ky) < BOX // 2))
    difference = torch.fft.rfft2(demodulated(aberrated, odd, PIXEL) - images)[:, inside].abs().max()
    assert difference < 1e-3 < torch.fft.rfft2(aberrated - images)[:, inside].abs().median()
    assert demodulated(images, odd, PIXEL).var() == pytest.approx(images.var().item(), rel=0.02)
