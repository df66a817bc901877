"""The inputs of a training, read and checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..catalogue import LABELLED_PARTICLES
from ..config import TrainConfig
from ..errors import InputError
from ..geometry.symmetry import normalise_name, symmetry_group
from ..imaging.resample import resample_volume
from ..model.checkpoint import CheckpointMetadata, load_checkpoint
from ..model.encoder import ENCODERS, MIN_BOX_SIZE_PX
from ..model.network import NetworkConfig, OrientationNetwork
from ..particles.dataset import Particles
from ..particles.image_preparation import PreprocessSettings
from ..particles.simulate import load_molecule
from ..problems import Problems

# labelled particles that a training without a map needs
MIN_LABELLED = LABELLED_PARTICLES.value
# in minutes on a CPU the number of images seen limits a network, not their detail (``docs/decisions/0025-network-box.md``)
CPU_BOX_SIZE_PX = 32


@dataclass(frozen=True)
class TrainingInputs:
    """What was read and checked."""

    parent: OrientationNetwork | None
    settings: PreprocessSettings
    network: NetworkConfig
    group: Float[Tensor, "g 4"]
    volume: Float[Tensor, "b b b"] | None
    """the reference on the particles' grid; None where the labels are to make it"""
    rows: Int[np.ndarray, " n"]
    """rows of the particles that may be used"""


def check_inputs(config: TrainConfig, particles: Particles, device: torch.device) -> TrainingInputs:
    """Reads reference and checkpoint. Raises one InputError with all problems found."""
    with Problems() as problems:
        parent = volume = None
        if config.from_checkpoint is not None:
            parent = problems.attempt(load_checkpoint, config.from_checkpoint)
        settings = problems.attempt(_settings, config, particles, parent, device)
        group = problems.attempt(symmetry_group, config.symmetry)
        if parent is not None and group is not None:
            problems.attempt(_check_symmetry, config, parent[1])
        if config.reference is not None:
            volume = problems.attempt(read_reference, config.reference, particles)
        rows = problems.attempt(_usable_rows, config, particles)
        if particles.ctf is None:
            problems.append("Training needs the particles' CTF, and they have none. Estimate it, or export them with it.")
        if ENCODERS[config.encoder].pooling is None and config.pooling != "auto" and config.from_checkpoint is None:
            problems.append(f"The encoder {config.encoder} has no pooling to choose; --pooling is {config.pooling}. Leave "
                            "it out, or choose another --encoder.")
        if config.reference is None and particles.poses is None:
            problems.append("Training needs poses or a map; these particles have no poses. Give particles of a 3-D "
                            "refinement, or a map with --reference.")
    network = parent[0].config if parent else _network_config(config, settings, device)
    return TrainingInputs(parent[0] if parent else None, settings, network, group, volume, rows)


def _check_symmetry(config: TrainConfig, trained: CheckpointMetadata) -> None:
    """With another group the network would learn to tell equivalent poses apart, or to confuse different ones, and the
    checkpoint would name the wrong symmetry."""
    asked, own = normalise_name(config.symmetry), normalise_name(trained.symmetry)
    if asked != own:
        raise InputError(f"A network that is trained further must keep its symmetry; that in {config.from_checkpoint} "
                         f"was trained with {own}, and --symmetry is {asked}. Give --symmetry {own}, or train a new "
                         "network (without --from-checkpoint).")


def _network_config(config: TrainConfig, settings: PreprocessSettings, device: torch.device) -> NetworkConfig:
    width = config.width
    if width is None and device.type != "cpu":
        width = ENCODERS[config.encoder].gpu_width
    return NetworkConfig(settings.box_size_px, settings.pixel_size_angstrom, config.encoder, config.head,
                         config.filter_channels, config.pooling, config.activation, width, config.dropout)


def _settings(config: TrainConfig, particles: Particles,
              parent: tuple[OrientationNetwork, CheckpointMetadata] | None,
              device: torch.device) -> PreprocessSettings:
    """How images are prepared: as the parent network was trained, else for the network's box."""
    box_size_px, pixel_size_angstrom = particles.box_size_px, particles.pixel_size_angstrom
    if parent is not None:
        settings = PreprocessSettings.from_dict(parent[1].preprocessing)
        settings.check(box_size_px, pixel_size_angstrom)
        return settings
    wanted = config.network_box_size_px
    check_network_box(wanted, box_size_px)
    if wanted is None and device.type == "cpu":
        wanted = min(CPU_BOX_SIZE_PX, box_size_px)
    return PreprocessSettings.for_images(box_size_px, pixel_size_angstrom, wanted)


def check_network_box(wanted_px: int | None, box_size_px: int) -> None:
    """Raises InputError where a network cannot work at the box asked for, or at that of the particles."""
    if wanted_px is not None and (wanted_px % 2 or not MIN_BOX_SIZE_PX <= wanted_px <= box_size_px):
        raise InputError(f"The network's box must be even, at least {MIN_BOX_SIZE_PX} px and at most that of the "
                         f"particles, {box_size_px} px; --network-box-size-px is {wanted_px}.")
    if box_size_px < MIN_BOX_SIZE_PX:
        raise InputError(f"The particles' box must be at least {MIN_BOX_SIZE_PX} px; it is {box_size_px} px.")


def read_reference(path: Path, particles: Particles) -> Float[Tensor, "b b b"]:
    """A map or atomic model on the particles' grid. Raises InputError where it cannot be read."""
    molecule = load_molecule(path, None, None)
    volume = resample_volume(molecule.volume, molecule.pixel_size_angstrom, particles.pixel_size_angstrom,
                             particles.box_size_px)
    if not volume.std() > 0:
        raise InputError(f"A reference must show a molecule; {path} has one value in all voxels. Give another map.")
    return volume


def _usable_rows(config: TrainConfig, particles: Particles) -> np.ndarray:
    """The rows of the half set asked for."""
    rows = np.arange(len(particles))
    if config.half_set != "all":
        if particles.half_set is None:
            raise InputError(f"--half-set {config.half_set} needs the column rlnRandomSubset; the particles have none. "
                             "Leave the option out, or give particles of a refinement.")
        rows = np.flatnonzero(particles.half_set == int(config.half_set))
    enough = MIN_LABELLED if config.reference is None else 1
    if len(rows) < enough:
        raise InputError(f"Training from labels needs at least {enough} particles; there are {len(rows)}. Give more, "
                         "or a map with --reference." if config.reference is None else
                         f"Half set {config.half_set} has no particles. Leave --half-set out.")
    return rows
