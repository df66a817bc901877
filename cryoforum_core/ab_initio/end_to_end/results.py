"""Poses, maps and network of the end-to-end method, once it is trained, and their files.

The poses of both half sets come from one network, so the FSC is **not** gold-standard: errors that the network makes in
all images are in both half maps.
"""

import logging
import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int

from ...config import TrainConfig
from ...errors import InputError
from ...geometry.poses import Poses
from ...model.checkpoint import CheckpointMetadata, save_checkpoint
from ...model.network import OrientationNetwork
from ...model.orientation_head import PoseEstimate
from ...particles.image_state import images_of
from ...reconstruction.reconstruct import HalfMaps, reconstruct_halves
from ...results.write import write_results
from ...run_directory import RunDirectory
from ...training.loop import step_generator
from ...training.losses import bingham_loss
from ...training.map_from_labels import network_volume
from ...training.objective import Objective
from ...training.simulated_projections import ImageModel, ProjectionStream, TrainingBatch
from ..particle_results import of_network, with_estimated_errors
from ..plan import AbInitioPlan
from .setup import EndToEndSetup

logger = logging.getLogger("cryoforum")

# projections of the final map, for the unit of the network's matrices and for its pose errors
N_PROJECTIONS = 500
# natural logarithms of the factors that are tried for that unit: first, last, how many
_EXPONENTS = (-8, 8, 65)
# projections of particles that have no shifts
_MIN_SHIFT_ANGSTROM = 1e-3
# images whose poses are found at once
_BATCH = 256


def find_poses(setup: EndToEndSetup) -> PoseEstimate:
    """The best hypothesis for every particle, in their order, on the CPU; matrices are zero where no encoder was asked."""
    model = setup.model
    transform, parts = model.volume.transform(), []
    for rows in np.array_split(np.arange(len(setup.images)), -(-len(setup.images) // _BATCH)):
        estimate, _, winner = model.poses(setup.images.at(rows), transform)
        parts.append(estimate.to("cpu"))
        if not model.uses_table:
            model.count_wins(winner)
    found = PoseEstimate.concatenate(parts)
    shift_angstrom = found.shift_angstrom.float() if setup.config.shifts else torch.zeros_like(found.shift_angstrom)
    return PoseEstimate(found.quaternion.float(), found.bingham.float(), shift_angstrom)


def final_maps(plan: AbInitioPlan, found: PoseEstimate, halves: Int[np.ndarray, " n"]) -> HalfMaps:
    """At the particles' own box, from all poses as they were found."""
    particles = replace(plan.particles, poses=Poses(found.quaternion, found.shift_angstrom))
    return reconstruct_halves(particles, plan.images.transforms, halves, plan.group, plan.max_radius_px,
                              plan.mask_radius_px, device=plan.device)


def fitted_image_model(setup: EndToEndSetup, maps: HalfMaps) -> ImageModel | None:
    """Noise and signal of the images, by the final map; None where they have no signal of it."""
    try:
        return setup.views.image_model(setup.stream.rows, maps.both.cpu(), setup.config.seed)
    except InputError as error:
        logger.warning("The images show no signal like the map's. %s", error)
        return None


def finished_network(setup: EndToEndSetup, projections: list[TrainingBatch]) -> tuple[OrientationNetwork, float]:
    """The network as ``predict`` uses it, and the factor that gives its posteriors (4x4 matrices) their unit.

    The squared error trains no concentration. It is found afterwards: the common factor under which the poses of
    projections of the final map, noisy like the images, are likeliest. It holds as far as that map does.
    """
    network = setup.model.finished_network()
    if not projections:
        return network, 1.0
    with torch.no_grad():
        bingham = torch.cat([network(batch.images, batch.ctf).bingham for batch in projections])
        truth = torch.cat([batch.quaternion for batch in projections])
        exponents = torch.linspace(*_EXPONENTS).tolist()
        losses = [bingham_loss(math.exp(e) * bingham, truth, setup.plan.group).mean().item() for e in exponents]
        best = exponents[int(np.argmin(losses))]
        network.head.log_scale += best
    objective = Objective(TrainConfig(out=setup.config.out, particles=setup.config.particles), setup.plan.group,
                          network.box_size_angstrom, setup.plan.device)
    objective.calibrate(network, projections)
    return network, math.exp(best)


def noisy_projections(setup: EndToEndSetup, found: PoseEstimate, maps: HalfMaps, image_model: ImageModel
                      ) -> list[TrainingBatch]:
    """Images of the final map at random poses, noisy like the particles', as the network sees them."""
    views, settings = setup.views, setup.views.settings
    rows = torch.from_numpy(setup.stream.rows)
    stream = ProjectionStream(network_volume(maps.both.cpu(), settings.box_size_px), views.particles.ctf[rows],
                              views.ctf, settings.box_size_px, settings.pixel_size_angstrom, image_model,
                              max(found.shift_angstrom.std().item(), _MIN_SHIFT_ANGSTROM), views.mask,
                              device=setup.plan.device)
    plain, generator = stream.without_jitter(), step_generator(setup.config.seed, 0, 3, setup.plan.device)
    return [plain.batch(_BATCH, generator) for _ in range(-(-N_PROJECTIONS // _BATCH))]


def write_poses(plan: AbInitioPlan, run: RunDirectory, found: PoseEstimate, halves: Int[np.ndarray, " n"]) -> None:
    """particles.star, with the half sets of the maps; and where an encoder has a posterior of them, its expected errors and
    orientation_posterior.npz."""
    results = of_network(plan.particles.particle_id, found)
    if found.bingham.any():
        results = with_estimated_errors(results, None, plan, None)
    write_results(run, plan.particles, results, {"rlnRandomSubset": halves.astype(int)})


def save_network(setup: EndToEndSetup, run: RunDirectory, network: OrientationNetwork, image_model: ImageModel | None,
                   summary: dict) -> None:
    save_checkpoint(run.checkpoint, network, CheckpointMetadata(
        network=network.config, symmetry=setup.plan.symmetry, preprocessing=setup.views.settings.to_dict(),
        images=images_of(setup.plan.particles, setup.plan.state),
        noise_spectrum=None if image_model is None else image_model.noise_spectrum.tolist(),
        signal_scale=None if image_model is None else image_model.signal_scale, training=summary, reference=run.map))
