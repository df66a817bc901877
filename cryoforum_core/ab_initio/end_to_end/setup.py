"""The end-to-end method before its first step: network, map, images, and what is held out."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...config import AbInitioConfig
from ...errors import InputError
from ...geometry.rotations import random_quaternions
from ...imaging.fourier import shell_index
from ...imaging.noise_spectrum import noise_power_spectrum
from ...model.encoder import MIN_BOX_SIZE_PX
from ...model.learnable_volume import LearnableVolume
from ...model.network import NetworkConfig, OrientationNetwork
from ...particles.image_preparation import PreprocessSettings
from ...training.autoencoder import AutoEncoder, AutoEncoderOptions, EndToEndObjective, fit_grey_values, mean_square
from ...training.image_batches import EpochStream, PreparedImages
from ...training.inputs import CPU_BOX_SIZE_PX
from ...training.training_particles import TrainingParticles
from ..plan import AbInitioPlan

# held out of the training, where there are many images
MAX_HELD_OUT = 500
# where there are few
HELD_OUT_FRACTION = 0.1
# images from which noise and grey values are estimated
N_FOR_ESTIMATES = 1000
# images that are read at once
_BATCH = 256
# CryoPoseNet's own, where no other is given
DEFAULT_ENCODER = "cryoposenet"
DEFAULT_HEAD = "s2s2"


@dataclass(frozen=True)
class EndToEndSetup:
    """Everything that is set before the first step of the end-to-end method."""

    plan: AbInitioPlan
    views: TrainingParticles
    images: PreparedImages
    model: AutoEncoder
    objective: EndToEndObjective
    held_out: Int[np.ndarray, " n"]
    noise_amplitude: Float[Tensor, "b b//2+1"]
    """of the prepared images' noise, relative to white noise of variance 1"""

    @property
    def config(self) -> AbInitioConfig:
        return self.plan.config

    @property
    def stream(self) -> EpochStream:
        return self.objective.stream

    @property
    def has_encoder(self) -> bool:
        return self.config.poses == "encoder"


def prepare(plan: AbInitioPlan) -> EndToEndSetup:
    """Network, map and images before the first step. Raises InputError where the options do not fit the particles."""
    config, particles = plan.config, plan.particles
    settings = _preprocess_settings(plan)
    views = TrainingParticles(particles, settings, plan.state, plan.device)
    torch.manual_seed(config.seed)
    rows, held_out = _split(len(particles), config.seed)
    some = np.random.default_rng(config.seed).permutation(rows)[:N_FOR_ESTIMATES]
    images, noise_amplitude = _prepared_images(views, some)
    stream = EpochStream(images, rows, held_out, config.batch_size, config.seed, _pose_steps_from(config, len(rows)))
    model = _model(plan, views, noise_amplitude, stream)
    estimated = list(images.batches(some))
    power = mean_square(estimated)
    model.input_scale.fill_(power ** -0.5)
    generator = torch.Generator().manual_seed(config.seed)
    fit_grey_values(model, estimated, lambda batch: (
        random_quaternions(len(batch), generator).to(plan.device), torch.zeros(len(batch), 2, device=plan.device)))
    return EndToEndSetup(plan, views, images, model, EndToEndObjective(stream, power, list(images.batches(held_out))),
                         held_out, noise_amplitude)


def _preprocess_settings(plan: AbInitioPlan) -> PreprocessSettings:
    box, wanted = plan.particles.box_size_px, plan.config.network_box_size_px
    if plan.config.poses == "known" and plan.particles.poses is None:
        raise InputError(f"--poses known takes the poses of the particles; {plan.config.particles} has none. Leave the "
                         "option out, or give particles with poses.")
    if box < MIN_BOX_SIZE_PX or (wanted is not None and (wanted % 2 or not MIN_BOX_SIZE_PX <= wanted <= box)):
        raise InputError(f"The network's box must be even, at least {MIN_BOX_SIZE_PX} px and at most that of the "
                         f"particles, {box} px; it is {wanted or box}. Change --network-box-size-px.")
    if wanted is None and plan.device.type == "cpu":
        wanted = min(CPU_BOX_SIZE_PX, box)
    return PreprocessSettings.for_images(box, plan.particles.pixel_size_angstrom, wanted)


def _split(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out."""
    shuffled = np.random.default_rng(seed).permutation(n)
    n_held_out = min(max(1, round(HELD_OUT_FRACTION * n)), MAX_HELD_OUT)
    return np.sort(shuffled[n_held_out:]), np.sort(shuffled[:n_held_out])


def _pose_steps_from(config: AbInitioConfig, n_rows: int) -> int | None:
    """The step from which on every image learns a pose of its own; None for never."""
    if config.poses == "per-image":
        return 0
    if config.poses == "known" or config.per_image_after_epoch is None:
        return None
    return config.per_image_after_epoch * -(-n_rows // config.batch_size)


def _prepared_images(views: TrainingParticles, some: np.ndarray) -> tuple[PreparedImages, Tensor]:
    """The images as the network sees them, and the amplitude of their noise (b, b // 2 + 1)."""
    unmasked = torch.cat([views.unmasked(views.particles.batch(part).to(views.device))
                          for part in np.array_split(some, -(-len(some) // _BATCH))])
    mask, box = views.mask.to(views.device), views.settings.box_size_px
    spectrum = noise_power_spectrum(unmasked, views.settings.mask_radius_fraction * box)

    def prepared(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        batch = views.particles.batch(rows).to(views.device)
        return views.unmasked(batch) * mask, views.ctf(batch.ctf)

    return (PreparedImages(prepared, len(views.particles), box),
            spectrum[shell_index(box, spectrum.device)].sqrt() / box)


def _model(plan: AbInitioPlan, views: TrainingParticles, noise_amplitude: Tensor, stream: EpochStream) -> AutoEncoder:
    config, settings = plan.config, views.settings
    network = OrientationNetwork(NetworkConfig(settings.box_size_px, settings.pixel_size_angstrom,
                                               config.encoder or DEFAULT_ENCODER, config.head or DEFAULT_HEAD))
    options = AutoEncoderOptions(config.shifts, config.symmetric_loss, config.n_heads, config.frequency_marching,
                                 config.random_pose_weight, stream.pose_steps_from, config.poses != "known")
    mask_radius_px = plan.mask_radius_px * settings.box_size_px / plan.particles.box_size_px
    volume = LearnableVolume.random(settings.box_size_px, mask_radius_px, torch.Generator().manual_seed(config.seed))
    has_table = config.poses != "encoder" or stream.pose_steps_from is not None
    model = AutoEncoder(network, volume, views.mask, options, plan.group.cpu(),
                        len(plan.particles) if has_table else 0, noise_amplitude.cpu()).to(plan.device)
    model.start_from_scratch()
    if config.poses != "encoder":
        model.uses_table.fill_(True)
    if config.poses == "known":
        poses = plan.particles.poses.to(plan.device)
        model.table.set(torch.arange(len(plan.particles), device=plan.device), poses.quaternion.float(),
                        poses.shift_angstrom.float())
    return model
