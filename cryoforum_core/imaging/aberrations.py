"""Higher-order aberrations as RELION 3.1 and later describe them: Zernike polynomials of the frequency in 1/Angstrom.

``Z_nm = R_n|m|(k) cos(m phi)`` for m >= 0, ``R_n|m|(k) sin(|m| phi)`` for m < 0, with the angle from +x towards +y and the
frequency *not* divided by a largest one: coefficients are radians times Angstrom^n. Checked against RELION's source
(``Zernike.cpp``, ``obs_model.cpp``, ``tilt_helper.cpp``) and its programs. torch_ctf's aberrations are not used: they
know six monomials of the third, fourth and sixth order, and their beam tilt has the opposite sign.
"""

import math
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from .fourier import frequency_grid

Parity = Literal["even", "odd"]
# the first odd coefficients: y, x, and after the trefoil in y, coma in y and x
_TILT_Y, _TILT_X, _COMA_Y, _COMA_X = 0, 1, 3, 4


def zernike_modes(n_coefficients: int, parity: Parity) -> list[tuple[int, int]]:
    """(m, n) of RELION's coefficients, by order n = 0, 2, 4, ... (even) or 1, 3, 5, ... (odd), and m from -n to n."""
    modes, n = [], 0 if parity == "even" else 1
    while len(modes) < n_coefficients:
        modes += [(m, n) for m in range(-n, n + 1, 2)]
        n += 2
    return modes[:n_coefficients]


def zernike_polynomial(m: int, n: int, x: Float[Tensor, " *grid"], y: Float[Tensor, " *grid"]) -> Float[Tensor, " *grid"]:
    """``Z_nm`` at the frequencies (x, y), in 1/Angstrom."""
    radius, angle, order = torch.hypot(x, y), torch.atan2(y, x), abs(m)
    radial = torch.zeros_like(radius)
    for k in range((n - order) // 2 + 1):
        factor = (-1) ** k * math.factorial(n - k) / (
            math.factorial(k) * math.factorial((n + order) // 2 - k) * math.factorial((n - order) // 2 - k))
        radial = radial + factor * radius ** (n - 2 * k)
    return radial * (torch.cos(order * angle) if m >= 0 else torch.sin(order * angle))


@lru_cache(maxsize=8)
def _basis(n_coefficients: int, parity: Parity, box_size_px: int, pixel_size_angstrom: float,
           device: torch.device) -> Tensor:
    """The polynomials on the grid of ``fft_image``: (z, b, b // 2 + 1) float64."""
    ky, kx = (k.double().round() / (box_size_px * pixel_size_angstrom) for k in frequency_grid(box_size_px, device))
    ky, kx = torch.broadcast_tensors(ky, kx)
    return torch.stack([zernike_polynomial(m, n, kx, ky) for m, n in zernike_modes(n_coefficients, parity)])


def aberration_phase(coefficients: Float[Tensor, "n z"], parity: Parity, box_size_px: int, pixel_size_angstrom: float
                     ) -> Float[Tensor, "n {box_size_px} {box_size_px}//2+1"]:
    """The sum of Zernike polynomials in radians, for each row of coefficients: (n, b, b // 2 + 1) float64."""
    basis = _basis(coefficients.shape[1], parity, box_size_px, float(pixel_size_angstrom), coefficients.device)
    return torch.einsum("nz,zyx->nyx", coefficients.double(), basis)


def turned_coefficients(coefficients: Float[Tensor, "n z"], parity: Parity, angle_deg: Float[Tensor, " n"]
                        ) -> Float[Tensor, "n complete"]:
    """The coefficients of aberrations turned by an angle (from +x towards +y), as the image is turned, up to the end of the
    last order."""
    modes = zernike_modes(coefficients.shape[1], parity)
    # an order that is not complete lacks partners, which the turned one may have
    padded = torch.nn.functional.pad(coefficients, (0, _n_complete(modes, parity) - len(modes)))
    place = {mode: index for index, mode in enumerate(zernike_modes(padded.shape[1], parity))}
    turned = padded.clone()
    for (m, n), index in place.items():
        if m > 0:
            partner, angle = place[-m, n], m * torch.deg2rad(angle_deg)
            cosine, sine = padded[:, index], padded[:, partner]
            turned[:, index] = cosine * angle.cos() - sine * angle.sin()
            turned[:, partner] = cosine * angle.sin() + sine * angle.cos()
    return turned


def _n_complete(modes: list[tuple[int, int]], parity: Parity) -> int:
    """How many coefficients there are up to the last order of ``modes``."""
    highest = modes[-1][1] if modes else 0
    return sum(n + 1 for n in range(0 if parity == "even" else 1, highest + 1, 2))


def with_beam_tilt(odd_coefficients: tuple[float, ...], tilt_mrad: tuple[float, float], spherical_aberration_mm: float,
                   voltage_kv: float) -> tuple[float, ...]:
    """The odd coefficients with a beam tilt (x, y) added: the phase ``-2 pi Cs lambda^2 k^2 (tilt . k)``, RELION's sign."""
    volts = 1e3 * voltage_kv
    wavelength_angstrom = 12.2643247 / math.sqrt(volts * (1.0 + volts * 0.978466e-6))
    coma = [-2e-3 * math.pi * 1e7 * spherical_aberration_mm * wavelength_angstrom**2 / 3.0 * tilt for tilt in tilt_mrad]
    coefficients = list(odd_coefficients) + [0.0] * (6 - len(odd_coefficients))
    # k^3 cos phi = (Z_31 + 2 Z_11) / 3
    for axis, (linear, cubic) in enumerate(((_TILT_X, _COMA_X), (_TILT_Y, _COMA_Y))):
        coefficients[linear] += 2.0 * coma[axis]
        coefficients[cubic] += coma[axis]
    return tuple(coefficients)


def phase_factors(odd_coefficients: tuple[float, ...], box_size_px: int, pixel_size_angstrom: float,
                  device: torch.device | str = "cpu") -> Complex[Tensor, "{box_size_px} {box_size_px}//2+1"]:
    """``exp(i phase)`` of antisymmetric aberrations (b, b // 2 + 1): what the microscope multiplied the transform by."""
    coefficients = torch.tensor([odd_coefficients], dtype=torch.float64, device=device)
    phase = aberration_phase(coefficients, "odd", box_size_px, pixel_size_angstrom)[0]
    return torch.polar(torch.ones_like(phase), phase).to(torch.complex64)


def demodulated(images: Float[Tensor, "n b b"], odd_coefficients: tuple[float, ...], pixel_size_angstrom: float
                ) -> Float[Tensor, "n b b"]:
    """Images (n, b, b) without the phases of antisymmetric aberrations; noise keeps its power."""
    box_size_px = images.shape[-1]
    mean = images.mean((-2, -1), keepdim=True)
    factors = phase_factors(odd_coefficients, box_size_px, pixel_size_angstrom, images.device)
    return torch.fft.irfft2(torch.fft.rfft2(images - mean) * factors.conj(), s=(box_size_px, box_size_px)) + mean
