"""The contrast transfer function, with RELION's signs. The only module that imports torch_ctf.

``CTF = sqrt(1 - ac^2) sin(chi) + ac cos(chi)``, ``chi = pi lambda df k^2 - pi/2 Cs lambda^3 k^4``, defocus > 0 is
underfocus, ``df(theta) = (U + V)/2 + (U - V)/2 cos 2(theta - angle)`` with the angle from +x towards +y. At k = 0 the
CTF is +ac: protein is bright.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch_ctf
from jaxtyping import Float
from torch import Tensor

from .aberrations import aberration_phase, turned_coefficients


@dataclass(frozen=True)
class CTFParameters:
    """RELION's CTF fields and units, one value for each image: every field but the last has shape (N,)."""

    defocus_u_angstrom: Float[Tensor, " n"]
    defocus_v_angstrom: Float[Tensor, " n"]
    defocus_angle_deg: Float[Tensor, " n"]
    phase_shift_deg: Float[Tensor, " n"]
    voltage_kv: Float[Tensor, " n"]
    spherical_aberration_mm: Float[Tensor, " n"]
    amplitude_contrast: Float[Tensor, " n"]
    even_zernike: Float[Tensor, "n z"] | None = None
    """Symmetric aberrations: RELION's coefficients, relative to the defocus angle, so that they turn with the astigmatism
    when an image is turned. Set by ``with_even_zernike``; None: there are none."""

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    def __getitem__(self, index) -> "CTFParameters":
        """The parameters of some images: ``index`` is a slice, or indices or a mask (k,)."""
        return self._map(lambda values: values[index])

    def to(self, device: torch.device | str) -> "CTFParameters":
        return self._map(lambda values: values.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "CTFParameters":
        values = (getattr(self, field.name) for field in fields(self))
        return CTFParameters(*(None if value is None else function(value) for value in values))

    def with_even_zernike(self, coefficients: Float[Tensor, "n z"]) -> "CTFParameters":
        """With the symmetric aberrations of rlnEvenZernike (radians times Angstrom^n), which are added to RELION's gamma."""
        turned = turned_coefficients(coefficients.double(), "even", -self.defocus_angle_deg.double())
        return dataclasses.replace(self, even_zernike=turned)

    @classmethod
    def without_effect(cls, n: int) -> "CTFParameters":
        """A CTF of 1 everywhere, in RELION's terms: amplitude contrast 1, no defocus, no aberration."""
        zero = torch.zeros(n)
        return cls(zero, zero, zero, zero, voltage_kv=torch.full((n,), 300.0), spherical_aberration_mm=zero,
                   amplitude_contrast=torch.ones(n))

    @property
    def has_effect(self) -> bool:
        """Whether any of the images' CTFs differs from 1."""
        return not bool(((self.defocus_u_angstrom == 0) & (self.defocus_v_angstrom == 0) & (self.phase_shift_deg == 0)
                         & (self.spherical_aberration_mm == 0) & (self.amplitude_contrast == 1)).all()
                    and self.even_zernike is None)

    @property
    def mean_defocus_angstrom(self) -> Float[Tensor, " n"]:
        return 0.5 * (self.defocus_u_angstrom + self.defocus_v_angstrom)


def ctf_2d(parameters: CTFParameters, box_size_px: int, pixel_size_angstrom: float
           ) -> Float[Tensor, "n {box_size_px} {box_size_px}//2+1"]:
    """The CTF (N, B, B // 2 + 1) float32 on the grid of ``fft_image``, in [-1, 1]."""
    u, v = parameters.defocus_u_angstrom.double(), parameters.defocus_v_angstrom.double()
    # torch_ctf works in micrometres, wants U >= V (its square root of a negative difference is NaN), and counts the
    # astigmatism angle on a grid whose first axis is y
    swap = v > u
    angle_deg = parameters.defocus_angle_deg.double() + 90.0 * swap
    ctf = torch_ctf.calculate_ctf_2d(
        defocus=(u + v) * 0.5e-4, astigmatism=(u - v).abs() * 0.5e-4, astigmatism_angle=angle_deg,
        voltage=parameters.voltage_kv.double(), spherical_aberration=parameters.spherical_aberration_mm.double(),
        amplitude_contrast=parameters.amplitude_contrast.double(),
        phase_shift=parameters.phase_shift_deg.double(),
        pixel_size=torch.full_like(u, pixel_size_angstrom), image_shape=(box_size_px, box_size_px),
        rfft=True, fftshift=False, return_complex_ctf=parameters.even_zernike is not None)
    if parameters.even_zernike is None:
        return ctf.to(torch.float32)
    turned = turned_coefficients(parameters.even_zernike.double(), "even", parameters.defocus_angle_deg.double())
    phase = aberration_phase(turned, "even", box_size_px, pixel_size_angstrom)
    # exp(-i gamma) of torch_ctf, whose imaginary part is the CTF
    return (ctf * torch.polar(torch.ones_like(phase), -phase)).imag.to(torch.float32)
