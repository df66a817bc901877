"""Everything that prediction and reconstruction need, read and checked before they start."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ImageInputConfig, PredictConfig
from ..errors import InputError
from ..geometry.symmetry import normalise_name, symmetry_group
from ..model.checkpoint import load_checkpoint
from ..particles.dataset import Particles, load_particles
from ..particles.fields import Problems
from ..particles.image_check import ImageCheck, check_images
from ..particles.image_state import ImageState, determine_image_state
from ..particles.preprocess import PreprocessSettings
from ..run_directory import RunDirectory
from .auto_selection import ranked_rows
from .calibration import fewest_known
from .map_quality import HalfMapMaker
from .predict import PredictionSetup
from .preparation import ImagePreparation, matching_map
from .selection import Selection
from .training_set import doubts

logger = logging.getLogger("cryoforum")

# looking at every pixel of larger sets would take longer than it is worth; a sample finds what is common
_MAX_CHECKED = 20_000


def checked_pixels(particles: Particles) -> ImageCheck:
    """Which images are constant. Raises InputError where some hold NaN or infinite values, or most are constant."""
    check = check_images(particles, _MAX_CHECKED)
    if check.problems():
        raise InputError(check.problems())
    return check


def checked_image_state(particles: Particles, image_input: ImageInputConfig) -> ImageState:
    """Contrast and CTF state of images that a job can work with; a few constant images are named in the log.

    Raises InputError as ``checked_pixels``.
    """
    check = checked_pixels(particles)
    if check.warning():
        logger.warning(check.warning())
    return determine_image_state(particles, image_input)


def reconstruction_setup(particles: Particles, image_input: ImageInputConfig, device: torch.device) -> ImagePreparation:
    """The images in their own box. Raises InputError as ``checked_image_state``."""
    return ImagePreparation(particles, checked_image_state(particles, image_input), particles.box_size_px, device)


@dataclass(frozen=True, eq=False)
class MapSelectionSetup:
    """What selection by the map needs of a run: ``ranked`` (k,) rows of its particles, best first, and their maps."""

    ranked: np.ndarray
    maker: HalfMapMaker
    is_matched: bool
    """Poses were found by matching to a map."""


def map_selection_setup(run: RunDirectory, symmetry: str, suggested: Selection, measures: Mapping[str, np.ndarray],
                        particle_id: np.ndarray, seed: int, device: torch.device) -> MapSelectionSetup:
    """The particles of a finished run with the poses that it found, their images read as it read them.

    measures and particle_id: (n,) of the run. Raises InputError where images or poses are missing, or too few.
    """
    options = json.loads(run.config.read_text())
    image_input = ImageInputConfig(**{name: options[name] for name in ImageInputConfig.model_fields if name in options})
    particles = load_particles(run.particles, image_input, require_poses=True)
    ranked = ranked_rows(suggested, measures, particle_id, particles)
    images = reconstruction_setup(particles, image_input, device)
    group = symmetry_group(symmetry, torch.float32, device)
    return MapSelectionSetup(ranked, HalfMapMaker(particles, images, group, seed), options.get("refinement") != "none")


def prediction_setup(config: PredictConfig, particles: Particles, device: torch.device) -> PredictionSetup:
    """Network, map and images. Raises one InputError with all problems of network, map, symmetry and images."""
    problems = Problems()
    state = problems.attempt(checked_image_state, particles, config)
    loaded = problems.attempt(load_checkpoint, config.model, device)
    group = None if config.symmetry is None else problems.attempt(
        symmetry_group, config.symmetry, torch.float32, device)
    volume = settings = None
    if loaded is not None:
        settings = PreprocessSettings.from_dict(loaded[1].preprocessing)
        problems.extend(settings.problems(particles.box_size_px, particles.pixel_size_angstrom))
        # the network alone needs no map, but learns its errors from one where there is one
        if config.refinement != "none" or (config.calibrate and (config.reference or loaded[1].reference)):
            volume = problems.attempt(_map_to_match, config, loaded[1].reference, particles)
    labelled = None
    if config.calibration_particles is not None and state is not None:
        labelled = problems.attempt(_labelled, config, particles)
    problems.raise_if_any()
    network, metadata = loaded
    own_group = symmetry_group(metadata.symmetry, device=device)
    if group is None:
        group = own_group
    box_size_px = particles.box_size_px if volume is None else len(volume)
    images = ImagePreparation(particles, state, box_size_px, device, settings)
    if labelled is not None:
        labelled = replace(images, particles=labelled, state=checked_image_state(labelled, config))
    symmetry = normalise_name(config.symmetry or metadata.symmetry)
    return PredictionSetup(partial(network.predict, group=own_group), images,
                           None if volume is None else volume.to(device), group, symmetry, labelled,
                           doubts(metadata, images, symmetry, config.seed), metadata.training.get("shift_rms_angstrom"))


def _labelled(config: PredictConfig, particles: Particles) -> Particles:
    known = load_particles(config.calibration_particles, config, require_poses=True)
    fewest = fewest_known(config.coverage)
    if len(known) < fewest:
        raise InputError(f"Errors whose bound holds for {100 * config.coverage:g} % are learnt from at least {fewest} labelled "
                         f"particles; {config.calibration_particles} has {len(known)}. Give more, or leave out "
                         "--calibration-particles: images of the map are used then.")
    own, other = ((p.box_size_px, round(p.pixel_size_angstrom, 3)) for p in (particles, known))
    if own != other:
        raise InputError(f"Labelled particles must have the box and pixel size of the others, {own[0]} px of {own[1]:g} A; "
                         f"{config.calibration_particles} has {other[0]} px of {other[1]:g} A. Extract them alike.")
    return known


def _map_to_match(config: PredictConfig, own_reference: Path | None, particles: Particles) -> Tensor:
    path = config.reference or own_reference
    if path is None:
        raise InputError(f"--refinement {config.refinement} matches images to a map, and the network in {config.model} "
                         "has none. Give one with --reference, or use --refinement none.")
    return matching_map(path, particles, config.resolution_angstrom)
