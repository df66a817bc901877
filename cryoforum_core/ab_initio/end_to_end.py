"""CryoPoseNet as a job: encoder and map learn together from random weights, then everything is written.

The map is learnt at the network's box; the final maps are reconstructed at the particles' own box from the poses found.
Both half maps rest on poses of one network, so their correlation is **not** a gold standard: it may agree in what the
network learnt from all images together.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..config import AbInitioConfig, TrainConfig
from ..errors import InputError
from ..geometry.poses import Poses
from ..geometry.rotations import random_quaternions
from ..geometry.symmetry import symmetric_distance_deg
from ..imaging.fourier import fft_image, ifft_image, shell_index
from ..imaging.noise_spectrum import noise_power_spectrum
from ..imaging.resolution import resolution_angstrom
from ..model.checkpoint import CheckpointMetadata, save_checkpoint
from ..model.encoder import ENCODERS, MIN_BOX_SIZE_PX
from ..model.learnable_volume import LearnableVolume
from ..model.network import NetworkConfig, OrientationNetwork
from ..particles.image_state import images_of
from ..particles.preprocess import PreprocessSettings
from ..reconstruction.reconstruct import HalfMaps, half_sets, reconstruct_halves, write_half_maps
from ..results.pose_results import NetworkPoses, PoseResults
from ..results.write import write_results
from ..run_directory import RunDirectory
from ..training.autoencoder import (
    AutoEncoder,
    AutoEncoderOptions,
    EndToEndObjective,
    fit_grey_values,
    joint_optimizer,
    mean_square,
    turn_errors_deg,
    unexplained_power,
)
from ..training.inputs import CPU_BOX_SIZE_PX
from ..training.label_map import network_volume
from ..training.loop import LoopResult, LoopSettings, step_generator, train_network
from ..training.losses import bingham_loss
from ..training.objective import Objective
from ..training.prepared_images import EpochStream, ImageBatch, PreparedImages
from ..training.projections import ImageModel, ProjectionStream, TrainingBatch
from ..training.views import ParticleViews
from ..uncertainty.calibration import with_errors
from .live import LiveRun
from .plan import AbInitioPlan, OnEvaluate

logger = logging.getLogger("cryoforum")

MAX_HELD_OUT, HELD_OUT_FRACTION, N_FOR_ESTIMATES = 500, 0.1, 1000
N_CALIBRATION = 500
# what convergence means (``docs/decisions.md``, End to end)
SMALLEST_SIGNAL, LEAST_DEVIATIONS, MOST_TURN_ERROR_DEG, LEAST_SHELLS = 0.02, 5.0, 25.0, 3
# of projections of the map; the second where turns tell nothing, since the encoder follows them whatever it has learnt
MOST_PROJECTION_ERROR_DEG, MOST_PROJECTION_ERROR_SEEING_ALL_VIEWS_DEG = 60.0, 15.0
# a network whose poses follow the turns of the images may still be unsure of them; poses of single images, which nothing
# else can judge, explain 54 to 70 % where they are wrong
EXPLAINED_ABOVE, EXPLAINED_ABOVE_WITHOUT_ENCODER = 0.4, 0.75
# relative lengths of the stages, for the estimate of the time left
SHARES = {"training": 20.0, "poses and maps": 1.0}
_BATCH = 256


@dataclass(frozen=True)
class EndToEndSetup:
    """Everything that is decided before the first step."""

    plan: AbInitioPlan
    views: ParticleViews
    images: PreparedImages
    model: AutoEncoder
    objective: EndToEndObjective
    held_out: np.ndarray
    noise_amplitude: Tensor
    """(b, b // 2 + 1) of the prepared images' noise, relative to white noise of variance 1"""

    @property
    def config(self) -> AbInitioConfig:
        return self.plan.config

    @property
    def stream(self) -> EpochStream:
        return self.objective.stream

    @property
    def has_encoder(self) -> bool:
        return self.config.poses == "encoder"


def end_to_end(plan: AbInitioPlan, run: RunDirectory, on_evaluate: OnEvaluate | None = None,
               clock: Callable[[], float] = time.monotonic) -> dict:
    """Trains, writes all files of the run, and returns the summary, with ``converged`` and why.

    ``on_evaluate``: figures for ``metrics.csv`` that the training must not know, of the model, the images and the rows that
    it learns from; nothing else depends on them. ``clock`` counts the seconds of ``--train-minutes``; a comparison on a
    shared machine takes those of its process.
    """
    live = LiveRun(run, SHARES)
    if plan.config.resume:
        live.go_on_after({})
    run.checkpoint.mkdir(parents=True, exist_ok=True)
    with live.stage("training"):
        setup = prepare(plan)
        result = _train(setup, run, live, on_evaluate, clock)
    with live.stage("poses and maps"):
        summary = _finish(setup, run, result, live)
    live.log_times()
    live.show(1.0, message="finished" if summary["converged"] else "did not converge")
    return summary | {"stages": {name: round(seconds, 1) for name, seconds in live.seconds.items()}}


def _train(setup: EndToEndSetup, run: RunDirectory, live: LiveRun, on_evaluate: OnEvaluate | None,
           clock: Callable[[], float]) -> LoopResult:
    pixel_size_angstrom = setup.views.settings.pixel_size_angstrom

    def evaluate(model: AutoEncoder) -> dict[str, float]:
        figures = setup.objective.evaluate(model)
        return figures if on_evaluate is None else figures | on_evaluate(model, setup.images, setup.stream.rows)

    def show(progress: float, figures: dict[str, float]) -> None:
        live.map(setup.model.volume.map(), pixel_size_angstrom)
        live.show(progress, "network and map learn together", loss=figures["validation_loss"])

    live.map(setup.model.volume.map(), pixel_size_angstrom)
    result = train_network(setup.model, setup.stream, setup.objective, evaluate, _loop_settings(setup), run.training_state,
                           run.metrics, clock, joint_optimizer, show)
    setup.model.eval()
    return result


def _finish(setup: EndToEndSetup, run: RunDirectory, result: LoopResult, live: LiveRun) -> dict:
    """Everything after the training: poses, maps, the network as ``predict`` uses it, and the verdict."""
    plan = setup.plan
    live.map(setup.model.volume.map(), setup.views.settings.pixel_size_angstrom)
    found = find_poses(setup)
    halves, halves_source = half_sets(plan.particles, plan.config.seed)
    maps = _reconstruct(plan, found, halves)
    write_half_maps(run, maps, plan.particles.pixel_size_angstrom)
    image_model = _image_model(setup, maps)
    projections = _projections(setup, found, maps, image_model) if setup.has_encoder and image_model is not None else []
    if setup.has_encoder:
        network, factor = _finished_network(setup, projections)
        found = replace(found, bingham=found.bingham * factor)
    _write_poses(plan, run, found, halves)
    summary = _summary(setup, result, judge(setup, maps, projections), maps) | {"half_sets": halves_source}
    live.map(maps.both, plan.particles.pixel_size_angstrom, {"half maps": maps.fsc}, summary["resolution_angstrom"])
    if setup.has_encoder:
        _save(setup, run, network, image_model, summary)
    return summary


def prepare(plan: AbInitioPlan) -> EndToEndSetup:
    """Network, map and images before the first step. Raises InputError where the options do not fit the particles."""
    config, particles = plan.config, plan.particles
    settings = _preprocess_settings(plan)
    views = ParticleViews(particles, settings, plan.state, plan.device)
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


def _prepared_images(views: ParticleViews, some: np.ndarray) -> tuple[PreparedImages, Tensor]:
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


def _model(plan: AbInitioPlan, views: ParticleViews, noise_amplitude: Tensor, stream: EpochStream) -> AutoEncoder:
    config, settings = plan.config, views.settings
    network = OrientationNetwork(NetworkConfig(settings.box_size_px, settings.pixel_size_angstrom,
                                               config.encoder or "cryoposenet", config.head or "s2s2"))
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


def _loop_settings(setup: EndToEndSetup) -> LoopSettings:
    config = setup.config
    steps = config.epochs * setup.stream.steps_per_epoch if config.train_minutes is None else 10 ** 9
    # a plateau before the poses fall into place is usual: no early stop
    rate = config.learning_rate or ENCODERS[setup.model.network.config.encoder].end_to_end_learning_rate
    return LoopSettings(steps, rate, config.seed, config.train_minutes,
                        patience_evaluations=10 ** 9, resume=config.resume)


@dataclass(frozen=True)
class FoundPoses:
    """Of all particles, in their order."""

    quaternion: Tensor
    """(N, 4)"""
    shift_angstrom: Tensor
    """(N, 2)"""
    bingham: Tensor
    """(N, 4, 4); zeros where no encoder was asked"""


def find_poses(setup: EndToEndSetup) -> FoundPoses:
    """The best hypothesis for every particle."""
    model = setup.model
    transform, parts = model.volume.transform(), []
    for rows in np.array_split(np.arange(len(setup.images)), -(-len(setup.images) // _BATCH)):
        estimate, _, winner = model.poses(setup.images.at(rows), transform)
        parts.append(estimate.to("cpu"))
        if not model.uses_table:
            model.count_wins(winner)
    shift_angstrom = torch.cat([part.shift_angstrom for part in parts])
    return FoundPoses(torch.cat([part.quaternion for part in parts]).float(),
                      shift_angstrom.float() if setup.config.shifts else torch.zeros_like(shift_angstrom),
                      torch.cat([part.bingham for part in parts]).float())


def _reconstruct(plan: AbInitioPlan, found: FoundPoses, halves: np.ndarray) -> HalfMaps:
    """At the particles' own box, from all poses as they were found."""
    particles = replace(plan.particles, poses=Poses(found.quaternion, found.shift_angstrom))
    return reconstruct_halves(particles, plan.images.transforms, halves, plan.group, plan.max_radius_px,
                              plan.mask_radius_px, device=plan.device)


def _image_model(setup: EndToEndSetup, maps: HalfMaps) -> ImageModel | None:
    """Noise and signal of the images against the final map; None where they hold nothing like it."""
    try:
        return setup.views.image_model(setup.stream.rows, maps.both.cpu(), setup.config.seed)
    except InputError as error:
        logger.warning("The images show no signal like the map's. %s", error)
        return None


def _finished_network(setup: EndToEndSetup, projections: list[TrainingBatch]) -> tuple[OrientationNetwork, float]:
    """The network as ``predict`` uses it, and the factor that gives its beliefs (4x4 matrices) their unit.

    The squared error trains no concentration. It is found afterwards: the common factor under which the poses of
    projections of the final map, noisy like the images, are likeliest. The belief holds as far as that map does.
    """
    network = setup.model.finished_network()
    if not projections:
        return network, 1.0
    with torch.no_grad():
        bingham = torch.cat([network(batch.images, batch.ctf).bingham for batch in projections])
        truth = torch.cat([batch.quaternion for batch in projections])
        exponents = torch.linspace(-8, 8, 65).tolist()
        losses = [bingham_loss(math.exp(e) * bingham, truth, setup.plan.group).mean().item() for e in exponents]
        best = exponents[int(np.argmin(losses))]
        network.head.log_scale += best
    objective = Objective(TrainConfig(out=setup.config.out, particles=setup.config.particles), setup.plan.group,
                          network.box_size_angstrom, setup.plan.device)
    objective.calibrate(network, projections)
    return network, math.exp(best)


def _projections(setup: EndToEndSetup, found: FoundPoses, maps: HalfMaps, image_model: ImageModel
                 ) -> list[TrainingBatch]:
    """Images of the final map at random poses, noisy like the particles', as the network sees them."""
    views, settings = setup.views, setup.views.settings
    rows = torch.from_numpy(setup.stream.rows)
    stream = ProjectionStream(network_volume(maps.both.cpu(), settings.box_size_px), views.particles.ctf[rows],
                              views.ctf, settings.box_size_px, settings.pixel_size_angstrom, image_model,
                              max(found.shift_angstrom.std().item(), 1e-3), views.mask, device=setup.plan.device)
    plain, generator = stream.without_jitter(), step_generator(setup.config.seed, 0, 3, setup.plan.device)
    return [plain.batch(_BATCH, generator) for _ in range(-(-N_CALIBRATION // _BATCH))]


def _write_poses(plan: AbInitioPlan, run: RunDirectory, found: FoundPoses, halves: np.ndarray) -> None:
    """particles.star, with the half sets of the maps; and where an encoder has a belief about them, its expected errors
    and the posterior."""
    results = PoseResults(plan.particles.particle_id, found.quaternion.numpy(), found.shift_angstrom.numpy(),
                          found.bingham.numpy())
    if found.bingham.any():
        network = NetworkPoses(torch.linalg.eigvalsh(found.bingham).numpy(), results.quaternion)
        results = with_errors(replace(results, network=network), plan.group, coverage=plan.config.coverage)
    write_results(run, plan.particles, results, {"rlnRandomSubset": halves.astype(int)})


@dataclass(frozen=True)
class Judgement:
    """What held-out images say of encoder and map. Losses are parts of the images' power: 1 for an empty map."""

    loss: float
    """unexplained by network and map"""
    loss_without_poses: float
    """unexplained by the best image that is the same for all, times each CTF"""
    loss_of_noise: float
    """what nothing can explain, by the noise of the background"""
    noise_gain_deviations: float | None
    """how much more of the images is explained than of images of noise alone, in standard deviations; None without an
    encoder"""
    turn_error_deg: float | None
    """median disagreement between the poses of images and of their copies turned by 90 degrees; None as before"""
    projection_error_deg: float | None
    """median error of the poses found for projections of the map at random poses; None as before, or where images hold
    nothing like the map"""
    shells: float
    """Fourier shells up to the half maps' resolution"""
    most_projection_error_deg: float = MOST_PROJECTION_ERROR_DEG

    @property
    def explained_fraction(self) -> float:
        """Of what poses can explain beyond the image that is the same for all: 0 to 1."""
        return (self.loss_without_poses - self.loss) / max(self.loss_without_poses - self.loss_of_noise, 1e-9)

    def verdict(self) -> tuple[bool, str]:
        """Whether the run converged, and why, in a sentence."""
        if self.loss_without_poses - self.loss_of_noise < SMALLEST_SIGNAL:
            return False, "The images hold no signal beyond noise that would depend on the orientation."
        if self.noise_gain_deviations is not None and self.noise_gain_deviations < LEAST_DEVIATIONS:
            return False, "Network and map explain held-out images no better than they explain noise."
        percent = 100 * max(self.explained_fraction, 0)
        figure = f"{percent:.0f} % of the signal in held-out images that depends on the pose"
        least = EXPLAINED_ABOVE_WITHOUT_ENCODER if self.turn_error_deg is None else EXPLAINED_ABOVE
        if self.explained_fraction < least:
            return False, (f"Network and map explain {figure}, less than {100 * least:.0f} %: a wrong map, poses that "
                           "are not found, or too short a training.")
        if self.turn_error_deg is not None and self.turn_error_deg > MOST_TURN_ERROR_DEG:
            return False, (f"The poses found of images and of the same images turned in their plane disagree by "
                           f"{self.turn_error_deg:.0f} degrees (median), more than {MOST_TURN_ERROR_DEG:.0f}.")
        if self.projection_error_deg is not None and self.projection_error_deg > self.most_projection_error_deg:
            return False, (f"For projections of the map at random poses the network finds poses that are off by "
                           f"{self.projection_error_deg:.0f} degrees (median), more than "
                           f"{self.most_projection_error_deg:.0f}: it takes different views for one, or most views are "
                           "missing from the images.")
        if self.shells < LEAST_SHELLS:
            return False, f"The half maps agree to {self.shells:.1f} Fourier shells only, fewer than {LEAST_SHELLS}."
        return True, f"Network and map explain {figure}, and the half maps agree to {self.shells:.1f} Fourier shells."


def judge(setup: EndToEndSetup, maps: HalfMaps, projections: list[TrainingBatch]) -> Judgement:
    """Held-out images against the map, against images without poses, and against noise; network against the map, by
    its projections."""
    held_out, model, plan = setup.objective.evaluated, setup.model, setup.plan
    power = mean_square(held_out)
    noise = _noise_images(setup, held_out)
    loss_of_noise = mean_square(noise) / power
    deviations = turn_error_deg = projection_error_deg = None
    if setup.has_encoder and not model.uses_table:
        gain, gain_of_noise = _gain(model, held_out), _gain(model, noise)
        spread = math.sqrt((gain.var() / len(gain) + gain_of_noise.var() / len(gain_of_noise)).item())
        deviations = (gain.mean() - gain_of_noise.mean()).item() / max(spread, 1e-12)
        turn_error_deg = turn_errors_deg(model, held_out).median().item()
        if projections:
            projection_error_deg = _pose_errors_deg(model, projections).median().item()
    box, pixel_size_angstrom = plan.particles.box_size_px, plan.particles.pixel_size_angstrom
    resolution = resolution_angstrom(maps.fsc, box, pixel_size_angstrom)
    return Judgement(unexplained_power(model, held_out) / power, _loss_without_poses(setup) / power, loss_of_noise,
                     deviations, turn_error_deg, projection_error_deg, box * pixel_size_angstrom / resolution,
                     most_projection_error_deg(model.network))


def most_projection_error_deg(network: OrientationNetwork) -> float:
    """How far off poses of projections of the map may be in a run that has converged."""
    return MOST_PROJECTION_ERROR_SEEING_ALL_VIEWS_DEG if network.sees_all_views else MOST_PROJECTION_ERROR_DEG


def _gain(model: AutoEncoder, batches: list[ImageBatch]) -> Tensor:
    """How much of each image's mean square (n,) is explained."""
    transform = model.volume.transform()
    return torch.cat([batch.images.square().mean((-2, -1)) - model.poses(batch, transform)[1] for batch in batches])


def _pose_errors_deg(model: AutoEncoder, projections: list[TrainingBatch]) -> Tensor:
    """Angles (n,) between the poses found and those at which the projections were made."""
    transform, errors = model.volume.transform(), []
    for batch in projections:
        rows = torch.zeros(len(batch.images), dtype=torch.int64)
        found = model.poses(ImageBatch(rows, batch.images, batch.ctf), transform)[0].quaternion
        errors.append(symmetric_distance_deg(found, batch.quaternion.to(found), model.group))
    return torch.cat(errors)


def _noise_images(setup: EndToEndSetup, like: list[ImageBatch]) -> list[ImageBatch]:
    """Images of noise with the background's spectrum, as many as ``like``, with their CTFs."""
    generator, amplitude = torch.Generator().manual_seed(setup.config.seed), setup.model.noise_amplitude
    white = [torch.randn(batch.images.shape, generator=generator).to(batch.images) for batch in like]
    return [replace(batch, images=ifft_image(fft_image(noise) * amplitude) * setup.model.mask)
            for batch, noise in zip(like, white, strict=True)]


def _loss_without_poses(setup: EndToEndSetup) -> float:
    """Mean square that is left of the held-out images by the image that, times their CTFs, comes nearest to all."""
    products, squares = 0.0, 0.0
    for batch in setup.images.batches(setup.stream.rows):
        products = products + (fft_image(batch.images) * batch.ctf).sum(0)
        squares = squares + batch.ctf.square().sum(0)
    common = products / squares.clamp_min(1e-6)
    left = [replace(batch, images=batch.images - ifft_image(common * batch.ctf) * setup.model.mask)
            for batch in setup.objective.evaluated]
    return mean_square(left)


def _summary(setup: EndToEndSetup, result: LoopResult, judged: Judgement, maps: HalfMaps) -> dict:
    plan, config = setup.plan, setup.config
    box, pixel_size_angstrom = plan.particles.box_size_px, plan.particles.pixel_size_angstrom
    converged, reason = judged.verdict()
    return {"converged": converged, "converged_reason": reason,
            "resolution_angstrom": resolution_angstrom(maps.fsc, box, pixel_size_angstrom),
            "method": "end-to-end", "symmetry": plan.symmetry,
            "hand": "that of the poses given" if config.poses == "known" else "undetermined",
            "n_particles": len(plan.particles), "n_held_out": len(setup.held_out), "n_steps": result.steps,
            "train_seconds": round(result.seconds, 2), "poses": config.poses,
            "encoder": setup.model.network.config.encoder if setup.has_encoder else None,
            "head": setup.model.network.config.head if setup.has_encoder else None,
            "network_box_size_px": setup.views.settings.box_size_px, "box_size_px": box,
            "pixel_size_angstrom": pixel_size_angstrom, "validation_loss": judged.loss,
            "loss_without_poses": judged.loss_without_poses, "loss_of_noise": judged.loss_of_noise,
            "explained_fraction": judged.explained_fraction, "noise_gain_deviations": judged.noise_gain_deviations,
            "turn_error_deg": judged.turn_error_deg, "projection_error_deg": judged.projection_error_deg,
            **plan.state.to_dict()}


def _save(setup: EndToEndSetup, run: RunDirectory, network: OrientationNetwork, image_model: ImageModel | None,
          summary: dict) -> None:
    save_checkpoint(run.checkpoint, network, CheckpointMetadata(
        network=network.config, symmetry=setup.plan.symmetry, preprocessing=setup.views.settings.to_dict(),
        images=images_of(setup.plan.particles, setup.plan.state),
        noise_spectrum=None if image_model is None else image_model.noise_spectrum.tolist(),
        signal_scale=None if image_model is None else image_model.signal_scale, training=summary, reference=run.map))
