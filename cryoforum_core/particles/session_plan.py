"""What differs between the images of a simulated microscope session, decided before any image is made."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..config import SimulateConfig
from ..imaging.ctf import CTFParameters

# range of distances of a neighbour's centre from that of the box, in boxes: at the rim, so that a part of it shows
NEIGHBOUR_BOXES = (0.5, 0.75)
# these never have a neighbour: one has its second particle nearer by, the other shows nothing
_WITHOUT_NEIGHBOUR = ("overlap", "blank")
# of the mean contrast: ice is never so thick that nothing is left
_LEAST_CONTRAST = 0.3


@dataclass(frozen=True, eq=False)
class SessionPlan:
    """Row i describes image i."""

    micrograph: Int[np.ndarray, " n"]
    """0-based, ascending."""
    optics_group: Int[np.ndarray, " n"]
    """1-based, of the micrograph."""
    noise_level: Float[Tensor, " n"]
    """Standard deviation of the micrograph's noise over that of a typical one."""
    noise_excess: Float[Tensor, " n"]
    """Of the micrograph's noise at low resolution, in units of that of real micrographs."""
    b_factor: Float[Tensor, " n"]
    """Of the micrograph, A^2."""
    contrast: Float[Tensor, " n"]
    """Relative to the mean."""
    state: Int[np.ndarray, " n"]
    """1, or 2 for the minor state, which lacks a domain."""
    has_neighbour: Bool[np.ndarray, " n"]
    domain_direction: Float[Tensor, "3"]
    """Unit vector (x, y, z) in the frame of the molecule: the domain is its end in this direction."""

    @property
    def is_minor(self) -> Bool[np.ndarray, " n"]:
        return self.state == 2


def plan_session(config: SimulateConfig, junk_kind: Shaped[np.ndarray, " n"], generator: torch.Generator) -> SessionPlan:
    """Draws everything that differs between micrographs and particles but the CTF."""
    options, n = config.session, len(junk_kind)
    n_micrographs = options.micrographs
    micrograph = torch.randint(n_micrographs, (n,), generator=generator).sort().values
    noise_level = torch.exp(options.noise_spread * torch.randn(n_micrographs, generator=generator))
    noise_excess = options.noise_colour * (0.5 + torch.rand(n_micrographs, generator=generator))
    b_factor = options.b_factor_max * torch.rand(n_micrographs, generator=generator)
    contrast = (1 + options.contrast_spread * torch.randn(n, generator=generator)).clamp_min(_LEAST_CONTRAST)
    is_minor = torch.rand(n, generator=generator) < options.minor_state
    has_neighbour = (torch.rand(n, generator=generator) < options.neighbours).numpy()
    return SessionPlan(
        micrograph=micrograph.numpy(), optics_group=(micrograph % len(options.voltages_kv) + 1).numpy(),
        noise_level=noise_level[micrograph], noise_excess=noise_excess[micrograph], b_factor=b_factor[micrograph],
        contrast=contrast, state=1 + is_minor.long().numpy(),
        has_neighbour=has_neighbour & ~np.isin(junk_kind, _WITHOUT_NEIGHBOUR),
        domain_direction=torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0))


def session_ctf(config: SimulateConfig, plan: SessionPlan, generator: torch.Generator) -> CTFParameters:
    """Defocus and astigmatism of each micrograph, the voltage of its optics group, and the particles' own defocus."""
    options, n = config.session, len(plan.micrograph)
    micrograph = torch.from_numpy(plan.micrograph)
    defocus, difference, angle = torch.rand(3, options.micrographs, generator=generator)
    span = config.defocus_max_angstrom - config.defocus_min_angstrom
    mean = (config.defocus_min_angstrom + span * defocus)[micrograph]
    mean = mean + options.defocus_spread_angstrom * torch.randn(n, generator=generator)
    difference = config.astigmatism_angstrom * difference[micrograph]
    return CTFParameters(
        defocus_u_angstrom=mean + difference / 2, defocus_v_angstrom=mean - difference / 2,
        defocus_angle_deg=180 * angle[micrograph], phase_shift_deg=torch.zeros(n),
        voltage_kv=torch.tensor(options.voltages_kv)[torch.from_numpy(plan.optics_group) - 1],
        spherical_aberration_mm=torch.full((n,), config.spherical_aberration_mm),
        amplitude_contrast=torch.full((n,), config.amplitude_contrast))
