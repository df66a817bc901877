"""Simulated particle images with known poses, and with junk of several kinds.

An image is the projection of the map, displaced, times the CTF, plus noise of variance 1; the map is scaled so that
the variance of all pixels of the clean images (after CTF, junk not counted) is the signal-to-noise ratio. ``map.mrc``
has that scale: the sum over z of the map is the image. ``session_images.py`` says what images of a session have besides.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ..catalogue import JUNK_KIND_COLUMN, NEIGHBOUR_COLUMN, NOISE_LEVEL_COLUMN, STATE_COLUMN
from ..config import SimulateConfig
from ..errors import InputError
from ..geometry.poses import displacement_px
from ..imaging.ctf import CTFParameters, ctf_2d
from ..imaging.fourier import displaced_out_of_box, fft_image, ifft_image, radius_px, shift_phase
from ..imaging.projection import FourierVolume
from ..imaging.resample import resample_volume
from ..mrc import StackWriter, read_map, write_map
from ..progress import Progress
from ..run_directory import RunDirectory
from .atomic_model import default_pixel_size_angstrom, is_atomic_model, potential_map, read_atomic_model
from .session_images import SessionBackground, envelope, in_ice, real_scale, without_domain
from .simulation_plan import SimulationPlan, plan_simulation
from .table import ParticleTable

# of the package
DATA = Path(__file__).parents[1] / "data"
# the bacterial 30S subunit: asymmetric, of a common size
DEFAULT_MODEL = DATA / "ribosome_30s_4v4r.pdb.gz"
# beta-galactosidase, of another size and shape
DEFAULT_OTHER_MODEL = DATA / "beta_galactosidase_5a1a.pdb.gz"
# small enough for minutes on a CPU
DEFAULT_BOX_SIZE_PX = 64

# beside the tables, in the run directory
STACK_NAME = "particles.mrcs"
# the map of the minor state of a session
MINOR_STATE_NAME = "map_minor_state.mrc"
# kinds of junk without any particle, but for a neighbour
WITHOUT_PARTICLE = ("noise", "blank", "ice", "carbon-edge")

# some megabytes in memory at once, whatever the box
_PIXELS_PER_BATCH = 2**20
# images that fix the variance to about a percent
_N_FOR_VARIANCE = 1000
# as many as are usually picked
_PARTICLES_PER_MICROGRAPH = 100
# side of a usual camera
_MICROGRAPH_SIZE_PX = 4096
# power of coloured noise at frequency 0 over that at the highest frequencies, less 1: the solvent of raw micrographs
_COLOURED_EXCESS = 8.0
# cycles per pixel at which the excess has fallen to a half
_COLOURED_CORNER = 0.1


@dataclass(frozen=True, eq=False)
class Molecule:
    """A map, float32 [z, y, x], and its pixel size."""

    volume: Float[Tensor, "d d d"]
    pixel_size_angstrom: float


def load_molecule(path: Path | None, box_size_px: int | None, pixel_size_angstrom: float | None, ice_density: float = 0.0
                  ) -> Molecule:
    """The map of a file (map or atomic model) in the box and at the pixel size asked for.

    Without ``path`` it is the molecule that comes with the package; without box or pixel size they are the map's own,
    for an atomic model 64 px and a pixel size at which it fills 70 % of the box. A map is resampled where its own box
    or pixel size differs. ``ice_density``: of the ice that an atomic model displaces, relative to the molecule's.
    Raises InputError where the file cannot be read or the box is odd.
    """
    path = DEFAULT_MODEL if path is None else path
    if box_size_px is not None and box_size_px % 2:
        raise InputError(f"The box must be even; --box-size-px is {box_size_px}. Use {box_size_px + 1}.")
    if is_atomic_model(path):
        model = read_atomic_model(path)
        box_size_px = box_size_px or DEFAULT_BOX_SIZE_PX
        pixel_size_angstrom = pixel_size_angstrom or default_pixel_size_angstrom(model, box_size_px)
        volume = potential_map(model, box_size_px, pixel_size_angstrom)
        return Molecule(in_ice(volume, pixel_size_angstrom, ice_density) if ice_density else volume, pixel_size_angstrom)
    array, own_pixel_size = read_map(path)
    pixel_size_angstrom = pixel_size_angstrom or own_pixel_size
    box_size_px = box_size_px or 2 * round(len(array) * own_pixel_size / pixel_size_angstrom / 2)
    volume = resample_volume(torch.from_numpy(array), own_pixel_size, pixel_size_angstrom, box_size_px)
    return Molecule(volume, pixel_size_angstrom)


class ImageMaker:
    """Clean images of a plan: projections, displaced, times the CTF. ``scale`` multiplies the molecule.

    ``ctf``: where the CTF acts, as ``SimulateConfig.ctf`` says. ``minor``: map of the minor state of a session.
    """

    def __init__(self, molecule: Molecule, plan: SimulationPlan, other: Molecule | None = None,
                 device: torch.device | str = "cpu", ctf: Literal["box", "padded", "none"] = "box",
                 minor: Float[Tensor, "d d d"] | None = None):
        self.ctf = ctf
        self.plan, self.device, self.scale = plan, device, 1.0
        self.pixel_size_angstrom = molecule.pixel_size_angstrom
        self.box_size_px = len(molecule.volume)
        self._molecule = FourierVolume.from_real(molecule.volume.to(device))
        self._other = None if other is None else FourierVolume.from_real(_as_strong_as(molecule, other).to(device))
        self._minor = None if minor is None else FourierVolume.from_real(minor.to(device))

    def clean(self, rows: Int[np.ndarray, " k"]) -> Float[Tensor, "k b b"]:
        """Images of the 0-based ``rows`` of the plan, on the device."""
        kind, session = self.plan.junk_kind[rows], self.plan.session
        images_ft = self._displaced(self._molecule, self.plan.poses[rows], is_far=kind == "off-centre")
        for here, replacement in ((self._is_minor(rows), self._minor), (kind == "other-molecule", self._other),
                                  (np.isin(kind, WITHOUT_PARTICLE), None)):
            some = torch.from_numpy(np.flatnonzero(here)).to(self.device)
            if len(some):
                images_ft[some] = 0 if replacement is None else self._displaced(
                    replacement, self.plan.poses[rows[here]], is_far=kind[here] == "off-centre")
        both = kind == "overlap"
        if session is not None:
            both |= session.has_neighbour[rows]
        if both.any():
            rows_of_both = torch.from_numpy(np.flatnonzero(both)).to(self.device)
            images_ft[rows_of_both] += self._displaced(self._molecule, self.plan.companion[rows[both]],
                                                       is_far=np.ones(both.sum(), dtype=bool))
        if session is not None:
            images_ft *= envelope(session, rows, self.box_size_px, self.pixel_size_angstrom).to(self.device)
        return self.scale * self._seen_through_ctf(images_ft, self.plan.ctf[rows].to(self.device))

    def _is_minor(self, rows: np.ndarray) -> np.ndarray:
        """Which of ``rows`` show the minor state (k,)."""
        return np.zeros(len(rows), dtype=bool) if self._minor is None else self.plan.session.is_minor[rows]

    def _seen_through_ctf(self, images_ft: Tensor, ctf: CTFParameters) -> Tensor:
        """Images (k, B, B) from transforms without CTF."""
        if self.ctf == "none":
            return ifft_image(images_ft)
        if self.ctf == "box":
            return ifft_image(images_ft * ctf_2d(ctf, self.box_size_px, self.pixel_size_angstrom))
        margin = self.box_size_px // 2
        padded_ft = fft_image(functional.pad(ifft_image(images_ft), (margin,) * 4))
        spread = ifft_image(padded_ft * ctf_2d(ctf, 2 * self.box_size_px, self.pixel_size_angstrom))
        return spread[:, margin:-margin, margin:-margin].contiguous()

    def _displaced(self, volume: FourierVolume, poses, is_far: np.ndarray) -> Tensor:
        """Transforms of displaced projections; what is far from the centre leaves the box, and does not come in again
        at the other side."""
        poses = poses.to(self.device)
        offset_px = displacement_px(poses.shift_angstrom, self.pixel_size_angstrom)
        projections_ft = volume.project(poses.quaternion)
        images_ft = projections_ft * shift_phase(offset_px, self.box_size_px)
        far = torch.from_numpy(np.flatnonzero(is_far)).to(self.device)
        if len(far):
            images_ft[far] = displaced_out_of_box(projections_ft[far], offset_px[far])
        return images_ft


def _as_strong_as(molecule: Molecule, other: Molecule) -> Tensor:
    """The other molecule scaled to the same variance: maps come in many units."""
    return other.volume * (molecule.volume.std() / other.volume.std())


def noise_images(n: int, box_size_px: int, is_coloured: bool, generator: torch.Generator
                 ) -> Float[Tensor, "{n} {box_size_px} {box_size_px}"]:
    """Noise of variance 1, white or with more power at low frequencies."""
    white = torch.randn(n, box_size_px, box_size_px, generator=generator)
    if not is_coloured:
        return white
    frequency = radius_px(box_size_px) / box_size_px  # cycles per pixel
    power = 1 + _COLOURED_EXCESS / (1 + (frequency / _COLOURED_CORNER).square())
    # over the full transform: columns of the half with a mate count twice
    mates = torch.full((box_size_px // 2 + 1,), 2.0)
    mates[[0, -1]] = 1.0
    mean_power = (power * mates).sum() / box_size_px**2
    return ifft_image(fft_image(white) * (power / mean_power).sqrt())


def simulate(config: SimulateConfig, run: RunDirectory, molecule: Molecule, other: Molecule | None,
             device: torch.device | str = "cpu") -> dict:
    """Writes particles.mrcs, particles.star (without poses), truth.star (with them) and map.mrc; returns the summary.

    ``other``: the molecule of the junk kind other-molecule, needed where the configuration asks for that kind.
    """
    plan = plan_simulation(config, len(molecule.volume), molecule.pixel_size_angstrom)
    minor = None
    if plan.session is not None and plan.session.is_minor.any():
        minor = without_domain(molecule.volume, plan.session.domain_direction, config.session.domain)
    maker = ImageMaker(molecule, plan, other, device, config.ctf, minor)
    has_noise = config.snr is None or math.isfinite(config.snr)
    clean_variance = _clean_variance(maker)
    maker.scale = (real_scale(molecule.volume, molecule.pixel_size_angstrom) if config.snr is None
                   else math.sqrt((config.snr if has_noise else 1.0) / clean_variance))
    write_map(run.map, maker.scale * molecule.volume.numpy(), molecule.pixel_size_angstrom)
    if minor is not None:
        write_map(run.path / MINOR_STATE_NAME, maker.scale * minor.numpy(), molecule.pixel_size_angstrom)
    background = None if plan.session is None else SessionBackground(
        plan.session, plan.junk_kind, molecule.pixel_size_angstrom, maker.scale * math.sqrt(clean_variance),
        config.session.gradient, has_noise)
    signal_variance = _write_stack(config, run.path / STACK_NAME, maker, has_noise, background)
    columns, optics = particle_columns(config, plan, maker.box_size_px, maker.pixel_size_angstrom)
    ParticleTable.from_columns(columns, optics).write(run.particles)
    ParticleTable.from_columns(columns | truth_columns(plan), optics).write(run.truth)
    kinds, counts = np.unique(plan.junk_kind[plan.is_junk], return_counts=True)
    return {"n_particles": len(plan), "box_size_px": maker.box_size_px,
            "pixel_size_angstrom": maker.pixel_size_angstrom, "snr": signal_variance if has_noise else None,
            "n_junk": int(plan.is_junk.sum()), "junk": dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
            "symmetry": config.symmetry} | _session_counts(plan)


def _session_counts(plan: SimulationPlan) -> dict:
    """Entries of the summary for a set like a session."""
    if plan.session is None:
        return {}
    good = ~plan.is_junk
    return {"n_micrographs": len(np.unique(plan.session.micrograph)),
            "n_minor_state": int((plan.session.is_minor & good).sum()),
            "n_with_neighbour": int((plan.session.has_neighbour & good).sum())}


def _batches(n: int, box_size_px: int) -> list[np.ndarray]:
    size = max(1, _PIXELS_PER_BATCH // box_size_px**2)
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]


def _clean_variance(maker: ImageMaker) -> float:
    """Variance of all pixels of clean images, from a thousand of them."""
    good = np.flatnonzero(~maker.plan.is_junk)[:_N_FOR_VARIANCE]
    moments = _Moments()
    for batch in _batches(len(good), maker.box_size_px):
        moments.add(maker.clean(good[batch]))
    return moments.variance


class _Moments:
    """Running variance of all pixels."""

    def __init__(self):
        self._n, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, images: Tensor) -> None:
        images = images.double()
        self._n += images.numel()
        self._sum += float(images.sum())
        self._squares += float(images.square().sum())

    @property
    def variance(self) -> float:
        return self._squares / self._n - (self._sum / self._n) ** 2


def _write_stack(config: SimulateConfig, path: Path, maker: ImageMaker, has_noise: bool,
                 background: SessionBackground | None) -> float:
    """Makes and writes all images; returns the variance of the clean ones that are no junk."""
    plan, box = maker.plan, maker.box_size_px
    generator = torch.Generator().manual_seed(plan.noise_seed)
    moments = _Moments()
    with StackWriter(path, len(plan), box, maker.pixel_size_angstrom) as stack, \
            Progress(len(plan), "simulate") as progress:
        for rows in _batches(len(plan), box):
            images = maker.clean(rows).cpu()
            moments.add(images[torch.from_numpy(~plan.is_junk[rows])])
            if background is not None:
                images = background.added_to(images, rows, generator)
            elif has_noise:
                images += noise_images(len(rows), box, config.noise == "coloured", generator)
            blank = torch.from_numpy(plan.junk_kind[rows] == "blank")
            images[blank] = images[blank][:, :1, :1]  # one grey value, a different one for each
            stack.append(images.numpy())
            progress.update(len(rows))
    return moments.variance


def particle_columns(config: SimulateConfig, plan: SimulationPlan, box_size_px: int, pixel_size_angstrom: float
                     ) -> tuple[dict, dict]:
    """The columns of particles.star, without poses, and of its optics table, as RELION 3.1 writes them."""
    n = len(plan)
    number = np.arange(n)
    rng = np.random.default_rng(config.seed)
    margin = min(box_size_px, _MICROGRAPH_SIZE_PX // 4)
    coordinates = rng.integers(margin, _MICROGRAPH_SIZE_PX - margin, (2, n)).astype(float)
    # a CTF without effect, as RELION's columns say it
    aberration_mm, contrast = (0.0, 1.0) if config.ctf == "none" else (config.spherical_aberration_mm,
                                                                     config.amplitude_contrast)
    micrograph, group, voltages_kv = number // _PARTICLES_PER_MICROGRAPH, np.ones(n, dtype=int), [config.voltage_kv]
    if plan.session is not None:
        micrograph, group, voltages_kv = plan.session.micrograph, plan.session.optics_group, config.session.voltages_kv
    columns = {
        "rlnImageName": [f"{i + 1:06d}@{STACK_NAME}" for i in number],
        "rlnParticleId": number + 1,
        "rlnMicrographName": [f"simulated/micrograph_{m + 1:04d}.mrc" for m in micrograph],
        "rlnCoordinateX": coordinates[0], "rlnCoordinateY": coordinates[1],
        "rlnOpticsGroup": group,
        "rlnRandomSubset": number % 2 + 1,
        "rlnDefocusU": plan.ctf.defocus_u_angstrom.double().numpy(),
        "rlnDefocusV": plan.ctf.defocus_v_angstrom.double().numpy(),
        "rlnDefocusAngle": plan.ctf.defocus_angle_deg.double().numpy(),
        "rlnPhaseShift": plan.ctf.phase_shift_deg.double().numpy(),
    }
    groups = range(1, len(voltages_kv) + 1)
    alike = {"rlnSphericalAberration": aberration_mm, "rlnAmplitudeContrast": contrast,
             "rlnImagePixelSize": pixel_size_angstrom, "rlnImageSize": box_size_px, "rlnImageDimensionality": 2}
    optics = {"rlnOpticsGroupName": [f"opticsGroup{g}" for g in groups], "rlnOpticsGroup": list(groups),
              "rlnVoltage": list(voltages_kv)} | {name: [value for _ in groups] for name, value in alike.items()}
    return columns, optics


def truth_columns(plan: SimulationPlan) -> dict:
    """The columns that truth.star has beyond particles.star: poses, the kind of junk or ``none``, and what is known of the
    particles of a session, by RELION's names where it has some."""
    euler_deg, origin_angstrom = plan.poses.euler_deg().double().numpy(), plan.poses.shift_angstrom.double().numpy()
    return {
        "rlnAngleRot": euler_deg[:, 0], "rlnAngleTilt": euler_deg[:, 1], "rlnAnglePsi": euler_deg[:, 2],
        "rlnOriginXAngst": origin_angstrom[:, 0], "rlnOriginYAngst": origin_angstrom[:, 1],
        JUNK_KIND_COLUMN: plan.junk_kind,
    } | ({} if plan.session is None else {
        STATE_COLUMN: plan.session.state, NEIGHBOUR_COLUMN: plan.session.has_neighbour.astype(int),
        NOISE_LEVEL_COLUMN: plan.session.noise_level.double().numpy(),
        "rlnCtfBfactor": plan.session.b_factor.double().numpy(),
        "rlnCtfScalefactor": plan.session.contrast.double().numpy(),
    })
