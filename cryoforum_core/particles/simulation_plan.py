"""What a simulated set will show, decided before any image is made: poses, CTFs, which particles are junk."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from ..config import JunkKind, SimulateConfig
from ..geometry.poses import Poses, shift_angstrom
from ..geometry.rotations import random_quaternions, relion_euler_to_quaternion
from ..imaging.ctf import CTFParameters
from .session_plan import NEIGHBOUR_BOXES, SessionPlan, plan_session, session_ctf

# range of distances of an off-centre particle from the image's centre, in boxes: partly outside, but not all of it
OFF_CENTRE_BOXES = (0.27, 0.45)
# the same of the second particle where two overlap
OVERLAP_BOXES = (0.25, 0.40)


@dataclass(frozen=True, eq=False)
class SimulationPlan:
    """Row i describes image i. ``junk_kind`` holds ``none`` or a kind of junk.

    ``poses`` of the kinds noise, blank and other-molecule mean nothing for the molecule.
    ``companion`` is the second particle of the kind overlap, or a neighbour in a session; its shift is as large as the kind
    says. ``session``: what differs between micrographs and particles; None for a clean set.
    """

    poses: Poses
    companion: Poses
    ctf: CTFParameters
    junk_kind: Shaped[np.ndarray, " n"]
    noise_seed: int
    session: SessionPlan | None = None

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def is_junk(self) -> Bool[np.ndarray, " n"]:
        return self.junk_kind != "none"


def plan_simulation(config: SimulateConfig, box_size_px: int, pixel_size_angstrom: float) -> SimulationPlan:
    """Draws everything at random but the noise, seeded by ``config.seed``."""
    generator = torch.Generator().manual_seed(config.seed)
    n = config.n_particles
    junk_kind = _draw_junk(n, config.junk_fraction, config.junk_kinds, generator)
    quaternion = _draw_rotations(config, generator)
    displacement_px = config.shift_rms_px * torch.randn(n, 2, generator=generator)
    off_centre = torch.from_numpy(junk_kind == "off-centre")[:, None]
    displacement_px = torch.where(off_centre, _draw_ring(n, OFF_CENTRE_BOXES, generator) * box_size_px, displacement_px)
    companion_px = _draw_ring(n, OVERLAP_BOXES, generator) * box_size_px
    companion = Poses(random_quaternions(n, generator), shift_angstrom(companion_px, pixel_size_angstrom))
    plan = SimulationPlan(
        poses=Poses(quaternion, shift_angstrom(displacement_px, pixel_size_angstrom)), companion=companion,
        ctf=_draw_ctf(config, generator), junk_kind=junk_kind,
        noise_seed=int(torch.randint(2**62, (), generator=generator)))
    return plan if config.like == "clean" else _like_session(config, plan, box_size_px * pixel_size_angstrom, generator)


def _like_session(config: SimulateConfig, plan: SimulationPlan, box_angstrom: float, generator: torch.Generator
                  ) -> SimulationPlan:
    """The plan with CTFs by micrograph, neighbours and all else of a session, drawn last: a clean set of the same seed has
    the same poses, but for preferred views."""
    session = plan_session(config, plan.junk_kind, generator)
    neighbour = -box_angstrom * _draw_ring(len(plan), NEIGHBOUR_BOXES, generator)
    shift = torch.where(torch.from_numpy(session.has_neighbour)[:, None], neighbour, plan.companion.shift_angstrom)
    return replace(plan, session=session, companion=Poses(plan.companion.quaternion, shift),
                   ctf=plan.ctf if config.ctf == "none" else session_ctf(config, session, generator))


def _draw_junk(n: int, fraction: float, kinds: tuple[JunkKind, ...], generator: torch.Generator) -> np.ndarray:
    """Equal shares of the kinds, at random places but the first, which programs take the format from: (n,) of text."""
    junk_kind = np.full(n, "none", dtype=object)
    rows = (torch.randperm(n - 1, generator=generator)[:round(fraction * n)] + 1).tolist()
    for number, row in enumerate(rows):
        junk_kind[row] = kinds[number % len(kinds)]
    return junk_kind.astype(str)


def _draw_rotations(config: SimulateConfig, generator: torch.Generator) -> Tensor:
    """Uniform over SO(3), but for the part whose viewing directions lie in a cap around one direction."""
    n = config.n_particles
    uniform = random_quaternions(n, generator)
    in_cap = torch.rand(n, generator=generator) < config.preferred_view_fraction
    # uniform over the cap: the cosine of the angle to its axis is uniform
    lowest = math.cos(math.radians(min(config.preferred_view_width_deg, 180.0)))
    tilt = torch.rad2deg(torch.acos(lowest + (1 - lowest) * torch.rand(n, generator=generator)))
    rot, psi = 360 * torch.rand(2, n, generator=generator) - 180
    around_z = relion_euler_to_quaternion(torch.stack([rot, tilt, psi], dim=-1))
    return torch.where(in_cap[:, None], around_z, uniform)


def _draw_ring(n: int, radii: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Points (n, 2) at distances between the two radii, in all directions."""
    radius = radii[0] + (radii[1] - radii[0]) * torch.rand(n, generator=generator)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    return radius[:, None] * torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)


def _draw_ctf(config: SimulateConfig, generator: torch.Generator) -> CTFParameters:
    n = config.n_particles
    if config.ctf == "none":
        return CTFParameters.without_effect(n)
    span = config.defocus_max_angstrom - config.defocus_min_angstrom
    mean = config.defocus_min_angstrom + span * torch.rand(n, generator=generator)
    difference = config.astigmatism_angstrom * torch.rand(n, generator=generator)
    return CTFParameters(
        defocus_u_angstrom=mean + difference / 2, defocus_v_angstrom=mean - difference / 2,
        defocus_angle_deg=180 * torch.rand(n, generator=generator), phase_shift_deg=torch.zeros(n),
        voltage_kv=torch.full((n,), config.voltage_kv),
        spherical_aberration_mm=torch.full((n,), config.spherical_aberration_mm),
        amplitude_contrast=torch.full((n,), config.amplitude_contrast))
