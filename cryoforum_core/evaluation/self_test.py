"""A self-test of the installation against known results, in a few seconds on any device: conventions, CTF,
projection, matching."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.rotations import (
    angular_distance_deg,
    compose,
    quaternion_to_matrix,
    random_quaternions,
    relion_euler_to_quaternion,
    rotation_vector_to_quaternion,
)
from ..geometry.symmetry import symmetry_group
from ..imaging.ctf import CTFParameters, ctf_2d
from ..imaging.fourier import fft_image, half_plane_pixels, ifft_image, shift_phase
from ..imaging.projection import FourierVolume, Reconstructor, slice_points
from ..matching.matching_model import MatchingModel

logger = logging.getLogger("cryoforum")

# small enough for a few seconds on any device
BOX_SIZE_PX = 48
# of the images whose poses are refined
PIXEL_SIZE_ANGSTROM = 4.0
# of each comparison
N_IMAGES = 64
# RELION's matrix for rot 20, tilt 50, psi 70
_MATRIX = [[-0.114806, 0.958214, -0.262003], [-0.684574, 0.114806, 0.719846], [0.719846, 0.262003, 0.642788]]
# (ky, kx) -> CTF of 64 px of 3 A, defocus 15000 and 14000 A at 30 degrees, 300 kV, 2.7 mm, 0.1, by RELION's formula
_CTF = {(0, 0): 0.1, (0, 5): 0.658413, (5, 0): 0.642484, (7, 12): -0.972249, (-7, 12): -0.999968, (20, 20): 0.909423,
        (-31, 3): -0.812698}


@dataclass(frozen=True)
class Check:
    """A comparison with a known result: ``figure`` must be at most ``limit``."""

    name: str
    figure: float
    limit: float
    unit: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.figure <= self.limit  # False for NaN


def run_self_test(device: torch.device | str = "cpu") -> list[Check]:
    """Runs all checks and logs each one. Exceptions are not caught, since their traceback shows the cause."""
    return [_measured(*check, device) for check in (
        ("Euler angles against RELION's matrix", _euler_error, 1e-5, ""),
        ("CTF against RELION's formula", _ctf_error, 1e-3, ""),
        ("projections against analytic projections of Gaussians, 1 - correlation", _projection_error, 2e-3, ""),
        ("slice extraction and insertion are adjoint, relative error", _adjoint_error, 1e-4, ""),
        ("pose refinement from a start 6 degrees off, median error", _refinement_error_deg, 2.0, "degrees"),
    )]


def _measured(name: str, measure: Callable[[torch.device | str], float], limit: float, unit: str,
              device: torch.device | str) -> Check:
    start = time.monotonic()
    check = Check(name, measure(device), limit, unit, time.monotonic() - start)
    logger.info("  %-6s %s: %.2g%s (at most %g; %.1f s)", "ok" if check.ok else "FAILED", name, check.figure,
                f" {unit}" if unit else "", limit, check.seconds)
    return check


def _euler_error(device) -> float:
    found = quaternion_to_matrix(relion_euler_to_quaternion(torch.tensor([20.0, 50.0, 70.0], device=device)))
    return float((found.cpu() - torch.tensor(_MATRIX)).abs().max())


def _ctf_error(device) -> float:
    values = (15000.0, 14000.0, 30.0, 0.0, 300.0, 2.7, 0.1)
    found = ctf_2d(CTFParameters(*(torch.tensor([value], device=device) for value in values)), 64, 3.0)[0]
    return max(abs(float(found[ky, kx]) - expected) for (ky, kx), expected in _CTF.items())


def _atoms() -> Tensor:
    """Positions (30, 3) in px within a quarter of the box, as x, y, z."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.nn.functional.normalize(torch.randn(30, 3, generator=generator), dim=-1)
    return direction * torch.rand(30, 1, generator=generator) ** (1 / 3) * BOX_SIZE_PX / 4


# standard deviation of the Gaussians that stand for atoms
_WIDTH_PX = 1.5


def _profile(offset_px: Tensor) -> Tensor:
    axis = torch.arange(BOX_SIZE_PX) - BOX_SIZE_PX // 2
    return torch.exp(-0.5 * ((axis - offset_px[..., None]) / _WIDTH_PX) ** 2)


def _volume() -> Tensor:
    """(B, B, B): a Gaussian at each atom."""
    x, y, z = _profile(_atoms()).unbind(1)
    return torch.einsum("nz,ny,nx->zyx", z, y, x)


def _exact_images(quaternion: Tensor) -> Tensor:
    """Projections (N, B, B) without interpolation: a two-dimensional Gaussian where A r puts each atom."""
    rotated = _atoms() @ quaternion_to_matrix(quaternion).transpose(-1, -2)
    along_z = _WIDTH_PX * (2 * torch.pi) ** 0.5
    return along_z * torch.einsum("bny,bnx->byx", _profile(rotated[..., 1]), _profile(rotated[..., 0]))


def _projection_error(device) -> float:
    quaternion = random_quaternions(N_IMAGES, torch.Generator().manual_seed(2))
    found = ifft_image(FourierVolume.from_real(_volume().to(device)).project(quaternion.to(device))).cpu().flatten(1)
    expected = _exact_images(quaternion).flatten(1)
    correlation = torch.nn.functional.cosine_similarity(found - found.mean(1, True), expected - expected.mean(1, True))
    return 1 - float(correlation.min())


def _adjoint_error(device) -> float:
    """<slice(V), y> = <V, insert(y)> for random y."""
    generator = torch.Generator().manual_seed(3)
    quaternion = random_quaternions(N_IMAGES, generator).to(device)
    _, k = half_plane_pixels(BOX_SIZE_PX, BOX_SIZE_PX / 2 - 1, device=device)
    points = slice_points(quaternion, k)
    volume = FourierVolume.from_real(_volume().to(device), max_radius_px=BOX_SIZE_PX / 2 - 1)
    values = torch.view_as_complex(torch.randn(*points.shape[:2], 2, generator=generator)).to(device)
    reconstructor = Reconstructor(BOX_SIZE_PX, device=device)
    reconstructor.insert_points(values, values.real.square(), points)
    left = (volume.sample(points).conj() * values).real.double().sum()
    right = (volume.data[0].double() * reconstructor.sums[0, :2].double()).sum()
    scale = (volume.sample(points).abs() * values.abs()).double().sum()
    return float((left - right).abs() / scale)


def _refinement_error_deg(device) -> float:
    generator = torch.Generator().manual_seed(4)
    volume, quaternion = _volume(), random_quaternions(N_IMAGES, generator)
    displacement = torch.randn(N_IMAGES, 2, generator=generator).clamp(-2, 2)
    one = torch.ones(N_IMAGES)
    defocus = 8000 + 12000 * torch.rand(N_IMAGES, generator=generator)
    ctf = ctf_2d(CTFParameters(defocus + 200, defocus, 40 * one, 0 * one, 300 * one, 2.7 * one, 0.1 * one), BOX_SIZE_PX,
                 PIXEL_SIZE_ANGSTROM)
    clean = ifft_image(fft_image(_exact_images(quaternion)) * ctf * shift_phase(displacement, BOX_SIZE_PX))
    variance = clean.var()  # signal-to-noise ratio 1
    images_ft = fft_image(clean + variance.sqrt() * torch.randn(clean.shape, generator=generator)).to(device)
    spectrum = torch.full((BOX_SIZE_PX // 2 + 1,), float(variance) * BOX_SIZE_PX**2, device=device)
    model = MatchingModel.estimate(volume.to(device), images_ft, ctf.to(device), spectrum,
                                   symmetry_group("c1", device=device), BOX_SIZE_PX / 2 - 1, 6.0)
    axis = torch.nn.functional.normalize(torch.randn(N_IMAGES, 3, generator=generator), dim=-1)
    start = compose(quaternion, rotation_vector_to_quaternion(torch.deg2rad(6.0 * axis))).to(device)
    refined = model.refine_from(model.images(images_ft, ctf.to(device)), start[:, None], displacement.to(device)[:, None])
    return float(angular_distance_deg(refined.quaternion[:, 0].cpu(), quaternion).median())
