"""Images as a microscope with aberrations records them, and their STAR files: the physics written out independently of
``cryoforum_core.imaging``, from the formulas of RELION's documentation and source, in float64."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from cryoforum_core.geometry.rotations import quaternion_to_relion_euler, random_quaternions
from cryoforum_core.imaging.projection import FourierVolume, slice_points
from cryoforum_core.mrc import read_map, write_stack
from cryoforum_core.particles.table import ParticleTable

GOLDEN_MAP = Path(__file__).parents[1] / "data" / "golden" / "70S_map.mrc"
PIXEL = 2.0  # the 70S map's voxels are 6 A; aberrations act at the frequencies of smaller ones
WAVELENGTH = 12.2643247 / np.sqrt(300e3 * (1 + 300e3 * 0.978466e-6))


@dataclass(frozen=True)
class Microscope:
    """What one optics group has of its own. ``trefoil`` and ``fourfold`` multiply k^3 cos 3 phi and k^4 sin 4 phi."""

    pixel: float = PIXEL
    box: int = 64
    voltage_kv: float = 300.0
    tilt_mrad: tuple[float, float] = (0.0, 0.0)
    trefoil: float = 0.0
    fourfold: float = 0.0
    magnification: np.ndarray = field(default_factory=lambda: np.eye(2))

    @property
    def row(self) -> dict[str, object]:
        """The optics table's columns; RELION's lists of coefficients have k^3 cos 3 phi at 5 and k^4 sin 4 phi at 4."""
        odd, even = np.zeros(6), np.zeros(9)
        odd[5], even[4] = self.trefoil, self.fourfold
        (m00, m01), (m10, m11) = self.magnification.tolist()
        return {"rlnVoltage": self.voltage_kv, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1,
                "rlnImagePixelSize": self.pixel, "rlnImageSize": self.box, "rlnImageDimensionality": 2,
                "rlnBeamTiltX": self.tilt_mrad[0], "rlnBeamTiltY": self.tilt_mrad[1],
                "rlnOddZernike": _list(odd), "rlnEvenZernike": _list(even),
                "rlnMagMat00": m00, "rlnMagMat01": m01, "rlnMagMat10": m10, "rlnMagMat11": m11}


def _list(values: np.ndarray) -> str:
    return "[" + ",".join(f"{value:.6g}" for value in values) + "]"


def molecule() -> torch.Tensor:
    return torch.from_numpy(read_map(GOLDEN_MAP)[0]).double()


def record(folder: Path, microscopes: list[Microscope], n: int, seed: int = 0, noise: float = 0.0,
           shift_rms_angstrom: float = 6.0) -> tuple[Path, torch.Tensor]:
    """Writes ``n`` images, by turns with each microscope, and ``truth.star``; returns its path and the poses (n, 4)."""
    generator = torch.Generator().manual_seed(seed)
    volume = FourierVolume.from_real(molecule())
    quaternion = random_quaternions(n, generator).double()
    origin = shift_rms_angstrom * torch.randn(n, 2, generator=generator).double().numpy()
    defocus = torch.linspace(6000.0, 12000.0, n).double().numpy()
    group = np.arange(n) % len(microscopes)
    names = np.empty(n, dtype=object)
    for number, microscope in enumerate(microscopes):
        rows = np.flatnonzero(group == number)
        images = _images(volume, microscope, quaternion[rows], origin[rows], defocus[rows])
        images = images / images.std() + noise * np.random.default_rng(seed + number).normal(size=images.shape)
        write_stack(folder / f"group{number + 1}.mrcs", images.astype(np.float32), microscope.pixel)
        names[rows] = [f"{i + 1:06d}@group{number + 1}.mrcs" for i in range(len(rows))]
    euler = quaternion_to_relion_euler(quaternion).numpy()
    columns = {"rlnImageName": names.tolist(), "rlnOpticsGroup": group + 1, "rlnRandomSubset": 1 + np.arange(n) // 2 % 2,
               "rlnDefocusU": defocus + 150, "rlnDefocusV": defocus - 150, "rlnDefocusAngle": np.full(n, 25.0),
               "rlnAngleRot": euler[:, 0], "rlnAngleTilt": euler[:, 1], "rlnAnglePsi": euler[:, 2],
               "rlnOriginXAngst": origin[:, 0], "rlnOriginYAngst": origin[:, 1]}
    optics = {"rlnOpticsGroup": [*range(1, len(microscopes) + 1)],
              "rlnOpticsGroupName": [f"group{i + 1}" for i in range(len(microscopes))]}
    optics |= {name: [each.row[name] for each in microscopes] for name in microscopes[0].row}
    ParticleTable.from_columns(columns, optics).write(folder / "truth.star")
    return folder / "truth.star", quaternion


def _images(volume: FourierVolume, microscope: Microscope, quaternion: torch.Tensor, origin: np.ndarray,
            defocus: np.ndarray) -> np.ndarray:
    """Images (n, box, box): ``I(k) = exp(i phase) CTF P``, all at the frequency M k, moved by minus the origin."""
    box, pixel = microscope.box, microscope.pixel
    ky, kx = np.fft.fftfreq(box, pixel)[:, None], np.arange(box // 2 + 1)[None] / (box * pixel)
    k = np.stack(np.broadcast_arrays(kx, ky), -1).reshape(-1, 2)
    x, y = (k @ microscope.magnification.T).T
    scaled = torch.from_numpy(np.stack([x, y], -1)) * volume.box_size_px * PIXEL
    inside = torch.from_numpy(np.hypot(x, y) < 0.5 / PIXEL)
    projection = volume.sample(slice_points(quaternion, scaled)).numpy() * inside.numpy()
    wavelength = 12.2643247 / np.sqrt(microscope.voltage_kv * 1e3 * (1 + microscope.voltage_kv * 0.978466e-3))
    k2 = x**2 + y**2
    u, v = (defocus + 150)[:, None], (defocus - 150)[:, None]
    local = 0.5 * (u + v + (u - v) * np.cos(2 * (np.arctan2(y, x) - np.deg2rad(25.0))))
    gamma = -np.pi * wavelength * local * k2 + 0.5 * np.pi * 2.7e7 * wavelength**3 * k2**2 - np.arcsin(0.1)
    gamma = gamma + microscope.fourfold * 4 * x * y * (x**2 - y**2)
    phase = -2 * np.pi * 2.7e7 * wavelength**2 * k2 * 1e-3 * (microscope.tilt_mrad[0] * x + microscope.tilt_mrad[1] * y)
    phase = phase + microscope.trefoil * (x**3 - 3 * x * y**2)
    moved = np.exp(2j * np.pi * (origin @ k.T))
    centred = (-1.0) ** (np.arange(box)[:, None] + np.arange(box // 2 + 1)[None])
    transform = (-np.sin(gamma) * np.exp(1j * phase) * moved * projection).reshape(-1, box, box // 2 + 1) * centred
    return np.fft.irfft2(transform, s=(box, box))
