"""Everything that prediction needs, read and checked before it starts."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..catalogue import fewest_known
from ..config import PredictConfig
from ..errors import InputError
from ..geometry.symmetry import normalise_name, symmetry_group
from ..model.checkpoint import load_checkpoint
from ..particles.dataset import Particles, load_particles
from ..particles.image_preparation import ImagePreparation, PreprocessSettings, checked_image_state, matching_map
from ..problems import Problems
from .mismatch import mismatches
from .predict import PredictionSetup

logger = logging.getLogger("cryoforum")


def prediction_setup(config: PredictConfig, particles: Particles, device: torch.device) -> PredictionSetup:
    """Network, map and images. Raises one InputError with all problems of network, map, symmetry and images."""
    with Problems() as problems:
        state = problems.attempt(checked_image_state, particles, config)
        loaded = problems.attempt(load_checkpoint, config.model, device)
        group = None if config.symmetry is None else problems.attempt(
            symmetry_group, config.symmetry, torch.float32, device)
        volume = settings = None
        if loaded is not None:
            settings = PreprocessSettings.from_dict(loaded[1].preprocessing)
            problems.attempt(settings.check, particles.box_size_px, particles.pixel_size_angstrom)
            # the network alone needs no map, but learns its errors from one where there is one
            if config.refinement != "none" or (config.calibrate and (config.reference or loaded[1].reference)):
                volume = problems.attempt(_map_to_match, config, loaded[1].reference, particles)
        labelled = None
        if config.calibration_particles is not None and state is not None:
            labelled = problems.attempt(_labelled, config, particles)
    network, metadata = loaded
    own_group = symmetry_group(metadata.symmetry, device=device)
    if group is None:
        group = own_group
    box_size_px = particles.box_size_px if volume is None else len(volume)
    images = ImagePreparation(particles, state, box_size_px, device, settings)
    if labelled is not None:
        labelled = replace(images, particles=labelled, state=checked_image_state(labelled, config))
    if volume is not None:
        # matching weighs frequencies by their noise; the network alone does not
        images = images.with_micrograph_noise(config.seed)
        labelled = labelled and labelled.with_micrograph_noise(config.seed)
    symmetry = normalise_name(config.symmetry or metadata.symmetry)
    return PredictionSetup(partial(network.predict, group=own_group), images,
                           None if volume is None else volume.to(device), group, symmetry, labelled,
                           mismatches(metadata, images, symmetry, config.seed), metadata.training.get("shift_rms_angstrom"))


def _labelled(config: PredictConfig, particles: Particles) -> Particles:
    known = load_particles(config.calibration_particles, config, require_poses=True)
    fewest = fewest_known(config.coverage)
    if len(known) < fewest:
        raise InputError(f"Error bounds with a coverage of {100 * config.coverage:g} % need at least {fewest} particles "
                         f"with known poses for calibration; {config.calibration_particles} has {len(known)}. Give more, or "
                         "leave out --calibration-particles: projections of the map are used then.")
    own, other = ((p.box_size_px, round(p.pixel_size_angstrom, 3)) for p in (particles, known))
    if own != other:
        raise InputError(f"Calibration particles must have the box and pixel size of the others, {own[0]} px at {own[1]:g} "
                         f"A/px; {config.calibration_particles} has {other[0]} px at {other[1]:g} A/px. "
                         "Extract them with the same box and pixel size.")
    return known


def _map_to_match(config: PredictConfig, own_reference: Path | None, particles: Particles) -> Tensor:
    path = config.reference or own_reference
    if path is None:
        raise InputError(f"--refinement {config.refinement} matches images to a map, and the network in {config.model} "
                         "has none. Give one with --reference, or use --refinement none.")
    return matching_map(path, particles, config.resolution_angstrom)
