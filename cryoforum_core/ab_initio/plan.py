"""What both methods of ab initio need, read and checked before anything is written."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..catalogue import AB_INITIO_PARTICLES
from ..config import AbInitioConfig
from ..geometry.symmetry import normalise_name, symmetry_group
from ..particles.dataset import Particles
from ..particles.image_preparation import ImagePreparation, matching_map
from ..particles.image_state import ImageState
from ..problems import Problems
from ..training.image_batches import PreparedImages
from ..training.inputs import check_network_box

# fewer determine no map
MIN_PARTICLES = AB_INITIO_PARTICLES.value
# at the Nyquist frequency itself a shell of the box is not whole
N_SPARE_SHELLS = 1
# a sphere a little smaller than the box, where the particle's diameter is not given
DEFAULT_MASK_RADIUS_BOXES = 0.45
# the largest that a given diameter may make
MAX_MASK_RADIUS_BOXES = 0.48
# particles are centred to a few pixels when they are picked
DEFAULT_MAX_DISPLACEMENT_BOXES = 1 / 8

OnEvaluate = Callable[[nn.Module, PreparedImages, np.ndarray], dict[str, float]]


@dataclass(frozen=True)
class AbInitioPlan:
    """Configuration, particles and settings of a run of ab-initio, fixed before it starts."""

    config: AbInitioConfig
    particles: Particles
    images: ImagePreparation
    """The images in their own box, on the device of the job."""
    group: Float[Tensor, "g 4"]
    """rotations of the point group ``symmetry``"""
    symmetry: str
    device: torch.device
    hand_reference: Float[Tensor, "b b b"] | None = None
    """map of known hand, with the particles' field of view"""

    @property
    def state(self) -> ImageState:
        return self.images.state

    @property
    def extent_angstrom(self) -> float:
        """Side of the particles' box."""
        return self.particles.box_size_px * self.particles.pixel_size_angstrom

    @property
    def max_radius_px(self) -> float:
        """Finest resolution, in cycles per box."""
        box, pixel_size_angstrom = self.particles.box_size_px, self.particles.pixel_size_angstrom
        finest = box / 2 - N_SPARE_SHELLS
        if self.config.resolution_angstrom is not None:
            finest = min(finest, box * pixel_size_angstrom / self.config.resolution_angstrom)
        return finest

    @property
    def max_displacement_px(self) -> float:
        limit_angstrom = self.config.max_shift_angstrom
        if limit_angstrom is None:
            return DEFAULT_MAX_DISPLACEMENT_BOXES * self.particles.box_size_px
        return limit_angstrom / self.particles.pixel_size_angstrom

    @property
    def mask_radius_px(self) -> float:
        """Radius of the sphere in which there may be density."""
        diameter_angstrom = self.config.particle_diameter_angstrom
        box = self.particles.box_size_px
        return DEFAULT_MASK_RADIUS_BOXES * box if diameter_angstrom is None else min(
            0.5 * diameter_angstrom / self.particles.pixel_size_angstrom, MAX_MASK_RADIUS_BOXES * box)


def plan_ab_initio(config: AbInitioConfig, particles: Particles, device: torch.device) -> AbInitioPlan:
    """Raises one InputError with all problems of the options and the particles."""
    with Problems() as problems:
        group = problems.attempt(symmetry_group, config.symmetry, torch.float32, device)
        if len(particles) < MIN_PARTICLES:
            problems.append(f"Ab initio needs at least {MIN_PARTICLES} particles; {config.particles} has {len(particles)}. "
                            "Give more particles, or train from a --reference map.")
        images = problems.attempt(ImagePreparation.checked, particles, config, device)
        if "distillation" not in config.skip:
            problems.attempt(check_network_box, config.network_box_size_px, particles.box_size_px)
        hand_reference = None
        if config.hand_reference is not None:
            hand_reference = problems.attempt(matching_map, config.hand_reference, particles)
    if config.method == "hybrid":
        images = images.with_micrograph_noise(config.seed)
    return AbInitioPlan(config, particles, images, group, normalise_name(config.symmetry), device, hand_reference)
