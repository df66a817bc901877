"""The auto-encoder of CryoPoseNet (Nashed et al. 2021, arXiv 2107.02958): images to poses to images of a learnable map.

Encoder and map learn together from the images alone: an image's pose goes to a central slice of the map's transform,
times the CTF, back to an image, and the squared difference is the loss. What later methods found against its bad minima
can be switched on: the symmetric loss of cryoAI (Levy et al. 2022), several heads of which only the winner learns of
cryoSPIN (Shekarforoush et al. 2024), projections at random poses of ACE-EM (Gao et al. 2023), low frequencies first.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..geometry.poses import displacement_px
from ..geometry.rotations import compose, in_plane_quaternion, inverse, left_multiplication, random_quaternions
from ..geometry.symmetry import symmetric_distance_deg
from ..imaging.fourier import fft_image, ifft_image, radius_px
from ..imaging.projection import FourierVolume
from ..model.learnable_volume import LearnableVolume, decode
from ..model.network import OrientationNetwork, ctf_of_view, rotate_90_deg
from ..model.orientation_head import OrientationHead, PoseEstimate
from .image_batches import EpochStream, ImageBatch, PreparedImages
from .learnable_poses import JointOptimizer, PoseAdam, PoseTable
from .loop import ADAM_BETAS, LoopSettings, TrainingTask, train_network
from .losses import bingham_loss, displacement_error, own_error
from .precision import mixed_precision

# frequency marching starts at this radius, as a part of the box; the Nyquist frequency is at a half
FIRST_RADIUS_OF_BOX = 1 / 8
# fraction of the training at which frequency marching has reached the Nyquist frequency: the rest sees all of it
RADIUS_IS_FULL_AT = 0.6
# learning rate of the map, in units of its density: voxels start at random and have far to go
VOLUME_RATE = 0.1
# learning rate of the poses of single images, in radians and pixels: about 3 degrees
POSE_RATE = 0.05
# learning rate of a map that is nearly right, in units of its density
FINE_TUNE_VOLUME_RATE = 0.003
# evaluations without a better loss that end a fine-tuning: it starts near its end
FINE_TUNE_PATIENCE = 6
# standard deviation of shifts of random projections, as a part of the box, as in supervised training
RANDOM_SHIFT_OF_BOX = 0.04


@dataclass(frozen=True)
class AutoEncoderOptions:
    """What ``AbInitioConfig`` asks for, but for the network."""

    shifts: bool = True
    symmetric_loss: bool = False
    n_heads: int = 1
    frequency_marching: bool = False
    random_pose_weight: float = 0.0
    per_image_from_step: int | None = None
    """From this step on each image has a pose of its own; None for never."""
    learn_poses: bool = True
    """False where the poses are known (with ``per_image_from_step`` 0)."""


def reconstruction_error(images: Float[Tensor, "*batch b b"], decoded: Float[Tensor, "*batch b b"],
                         max_radius_px: float | None = None) -> Float[Tensor, " *batch"]:
    """Mean squared difference of images; with ``max_radius_px`` of their frequencies up to it only."""
    difference = decoded - images
    if max_radius_px is None:
        return difference.square().mean((-2, -1))
    box_size_px = images.shape[-1]
    # Parseval over the half transform: columns with a Friedel mate count twice
    weight = torch.full((box_size_px // 2 + 1,), 2.0, device=images.device)
    weight[[0, -1]] = 1.0
    weight = weight * (radius_px(box_size_px, images.device) <= max_radius_px)
    return (fft_image(difference).abs().square() * weight).sum((-2, -1)) / box_size_px ** 4


def marching_radius_px(progress: float, box_size_px: int) -> float | None:
    """Highest frequency that counts at a fraction of the training, in cycles per box; None for all."""
    if progress >= RADIUS_IS_FULL_AT:
        return None
    first = FIRST_RADIUS_OF_BOX * box_size_px
    return first + (0.5 * box_size_px - first) * progress / RADIUS_IS_FULL_AT


@dataclass(frozen=True)
class Candidates:
    """c hypotheses for each of n images."""

    quaternion: Float[Tensor, "n c 4"]
    bingham: Float[Tensor, "n c 4 4"]
    shift_angstrom: Float[Tensor, "n c 2"]

    def __len__(self) -> int:
        return self.quaternion.shape[1]

    def __getitem__(self, index: int) -> PoseEstimate:
        return PoseEstimate(self.quaternion[:, index], self.bingham[:, index], self.shift_angstrom[:, index])

    def pick(self, winner: Int[Tensor, " n"]) -> PoseEstimate:
        """One hypothesis for each image, number ``winner``; only it gets a gradient."""
        n = torch.arange(len(winner), device=winner.device)
        return PoseEstimate(self.quaternion[n, winner], self.bingham[n, winner], self.shift_angstrom[n, winner])


@dataclass(frozen=True)
class FineTuneSettings:
    """How ``fine_tune_end_to_end`` goes; the defaults serve the hybrid method."""

    batch_size: int = 128
    learning_rate: float = 2e-4
    seed: int = 0
    max_steps: int = 10 ** 9
    mask_radius_px: float | None = None
    """Of the sphere in which the map may have density, at the network's box; default: 45 % of the box"""
    options: AutoEncoderOptions = AutoEncoderOptions()
    resume: bool = False


class AutoEncoder(nn.Module):
    """Encoder, heads and map; and a table of poses, where images have their own."""

    def __init__(self, network: OrientationNetwork, volume: LearnableVolume, mask: Float[Tensor, "b b"],
                 options: AutoEncoderOptions, group: Float[Tensor, "g 4"], n_images: int = 0,
                 noise_amplitude: Float[Tensor, "b b//2+1"] | None = None):
        """``mask`` that the images carry; ``group``: symmetry; ``n_images``: size of the table of poses;
        ``noise_amplitude``: of random projections, relative to white noise of variance 1."""
        super().__init__()
        self.network, self.volume, self.options = network, volume, options
        more = [OrientationHead(network.encoder.out_features, network.config.head, network.box_size_angstrom)
                for _ in range(options.n_heads - 1)]
        self.more_heads = nn.ModuleList(more)
        self.table = PoseTable(random_quaternions(n_images), torch.zeros(n_images, 2))
        self.register_buffer("uses_table", torch.tensor(False))
        self.register_buffer("wins", torch.zeros(options.n_heads, dtype=torch.int64))
        # encoders expect grey values of order one
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("group", group, persistent=False)
        self.register_buffer("noise_amplitude", torch.zeros(1, 1) if noise_amplitude is None else noise_amplitude,
                             persistent=False)

    @property
    def heads(self) -> list[OrientationHead]:
        return [self.network.head, *self.more_heads]

    @property
    def pixel_size_angstrom(self) -> float:
        return self.network.config.pixel_size_angstrom

    def start_from_scratch(self) -> None:
        """No shift at first: with random ones nothing would fit together."""
        for head in self.heads:
            nn.init.zeros_(head.shift.weight)
            nn.init.zeros_(head.shift.bias)

    def candidates(self, batch: ImageBatch) -> Candidates:
        """Poses of every head for each image, and for the image rotated by 180 degrees, rotated back."""
        if self.uses_table:
            quaternion, shift_angstrom = self.table.at(batch.rows)
            nothing = quaternion.new_zeros(len(quaternion), 1, 4, 4)
            return Candidates(quaternion[:, None], nothing, shift_angstrom[:, None])
        answers = self.poses_of_heads(batch.images, batch.ctf)
        if self.options.symmetric_loss:
            # a CTF is the same rotated by 180 degrees
            twins = self.poses_of_heads(rotate_90_deg(rotate_90_deg(batch.images)), batch.ctf)
            answers += [_turned_back(answer) for answer in twins]
        return Candidates(*(torch.stack([getattr(answer, name) for answer in answers], dim=1)
                            for name in ("quaternion", "bingham", "shift_angstrom")))

    def poses_of_heads(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"]) -> list[PoseEstimate]:
        """The poses of every head."""
        # poses that are kept are not rounded; on CPUs with AMX steps would take 0.63 of the time, and their poses be poorer
        # (``docs/decisions/0029-random-poses.md``)
        rounded = self.training and images.device.type == "cuda"
        with mixed_precision(images.device, "bfloat16" if rounded else "float32"):
            features = self.network.encoder(images * self.input_scale, ctf)
        return [head(features) for head in self.heads]

    def decoded(self, transform: FourierVolume, quaternion: Float[Tensor, "n 4"], shift_angstrom: Float[Tensor, "n 2"],
                ctf: Float[Tensor, "n b b//2+1"]) -> Float[Tensor, "n b b"]:
        """Images of poses, masked as the prepared images are."""
        offset_px = displacement_px(shift_angstrom, self.pixel_size_angstrom) if self.options.shifts else None
        return decode(transform, quaternion, offset_px, ctf) * self.mask

    @torch.no_grad()
    def winner(self, transform: FourierVolume, candidates: Candidates, batch: ImageBatch,
               max_radius_px: float | None = None) -> Int[Tensor, " n"]:
        """Number of the hypothesis whose image is nearest to the image."""
        if len(candidates) == 1:
            return torch.zeros(len(batch), dtype=torch.int64, device=batch.images.device)
        errors = [reconstruction_error(batch.images, self.decoded(transform, one.quaternion, one.shift_angstrom,
                                                                  batch.ctf), max_radius_px)
                  for one in map(candidates.__getitem__, range(len(candidates)))]
        return torch.stack(errors, dim=1).argmin(1)

    @torch.no_grad()
    def poses(self, batch: ImageBatch, transform: FourierVolume | None = None) -> tuple[
            PoseEstimate, Float[Tensor, " n"], Int[Tensor, " n"]]:
        """The best hypothesis of each image, its error, mean squared, and its number."""
        transform = self.volume.transform() if transform is None else transform
        candidates = self.candidates(batch)
        winner = self.winner(transform, candidates, batch)
        found = candidates.pick(winner)
        decoded = self.decoded(transform, found.quaternion, found.shift_angstrom, batch.ctf)
        return found, reconstruction_error(batch.images, decoded), winner

    def use_table(self, images: PreparedImages) -> None:
        """From now on each image has a pose of its own; it starts where the encoder puts it."""
        self.eval()
        with torch.no_grad():
            transform = self.volume.transform()
            for batch in images.batches(np.arange(len(images))):
                found, _, winner = self.poses(batch, transform)
                self.table.set(batch.rows, found.quaternion, found.shift_angstrom)
                self.count_wins(winner)
        self.uses_table.fill_(True)

    def count_wins(self, winner: Int[Tensor, " n"]) -> None:
        """Notes which heads were the best, from numbers of hypotheses."""
        # those of the turned images follow those of the images
        self.wins += torch.bincount(winner % len(self.heads), minlength=len(self.heads))

    def finished_network(self) -> OrientationNetwork:
        """The network alone, with the head that has won most often."""
        network = copy.deepcopy(self.network)
        network.head.load_state_dict(self.heads[int(self.wins.argmax())].state_dict())
        network.encoder.scale_input(self.input_scale)
        return network


def _turned_back(twin: PoseEstimate) -> PoseEstimate:
    """What is believed of an image, from what is believed of its copy turned by 180 degrees."""
    half_turn = in_plane_quaternion(torch.tensor(math.pi, device=twin.quaternion.device)).to(twin.quaternion)
    back = inverse(half_turn)
    left = left_multiplication(back)
    return PoseEstimate(compose(back, twin.quaternion), left @ twin.bingham @ left.T, -twin.shift_angstrom)


class EndToEndObjective:
    """The loss of a batch, and figures of held-out images; all as parts of the images' own power."""

    def __init__(self, stream: EpochStream, power: float, evaluated: list[ImageBatch]):
        """``power``: mean square of the images; an empty map has a loss of about 1."""
        self.stream, self.power, self.evaluated = stream, power, evaluated

    def __call__(self, model: AutoEncoder, numbered: tuple[ImageBatch, int], progress: float
                 ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        batch, step = numbered
        options = model.options
        if options.per_image_from_step is not None and step >= options.per_image_from_step and not model.uses_table:
            model.use_table(self.stream.images)
            model.train()
        radius = marching_radius_px(progress, batch.images.shape[-1]) if options.frequency_marching else None
        transform = model.volume.transform(radius)
        error = self._error(model, transform, batch, radius, learns=not self.stream.is_held_out(step))
        loss = error.mean() / self.power
        if options.random_pose_weight and not model.uses_table:
            loss = loss + options.random_pose_weight * random_pose_loss(model, transform, batch.ctf).mean()
        return loss, {"reconstruction_loss": error.mean().item() / self.power}

    @staticmethod
    def _error(model: AutoEncoder, transform: FourierVolume, batch: ImageBatch, radius: float | None,
               learns: bool) -> Tensor:
        candidates = model.candidates(batch)
        found = candidates.pick(model.winner(transform, candidates, batch, radius))
        quaternion = found.quaternion
        if len(model.group) > 1:
            # an image stands for all its equivalent poses: the map must fit it at any of them
            drawn = torch.randint(len(model.group), (len(batch),)).to(batch.images.device)
            quaternion = compose(quaternion, model.group[drawn].to(quaternion))
        transform = transform if learns else _detached(transform)
        decoded = model.decoded(transform, quaternion, found.shift_angstrom, batch.ctf)
        return reconstruction_error(batch.images, decoded, radius)

    @torch.no_grad()
    def evaluate(self, model: AutoEncoder) -> dict[str, float]:
        """Of held-out images: the part of their power that the map leaves unexplained."""
        model.eval()
        return {"validation_loss": unexplained_power(model, self.evaluated) / self.power}


@torch.no_grad()
def equivariance_errors_deg(model: AutoEncoder, batches: list[ImageBatch]) -> Float[Tensor, " n"]:
    """How far the poses of images and of their copies rotated by 90 degrees are from differing by just that rotation.

    In degrees. No label is needed, and wrong solutions show: a network that has found its poses follows in-plane rotations,
    which change the pose by a known rotation, whatever the map.
    """
    transform, errors = model.volume.transform(), []
    for batch in batches:
        turned = ImageBatch(batch.rows, rotate_90_deg(batch.images), ctf_of_view(rotate_90_deg, batch.ctf))
        found, again = (model.poses(part, transform)[0].quaternion for part in (batch, turned))
        angle_rad = torch.tensor(0.5 * math.pi, device=found.device)
        expected = compose(in_plane_quaternion(angle_rad).to(found), found)
        errors.append(symmetric_distance_deg(again, expected, model.group))
    return torch.cat(errors)


def _detached(transform: FourierVolume) -> FourierVolume:
    return FourierVolume(transform.data.detach(), transform.box_size_px, transform.padding, transform.max_radius_px)


@torch.no_grad()
def unexplained_power(model: AutoEncoder, batches: list[ImageBatch]) -> float:
    """Mean squared difference between images and what is decoded of them."""
    transform = model.volume.transform()
    return torch.cat([model.poses(batch, transform)[1] for batch in batches]).mean().item()


def random_pose_loss(model: AutoEncoder, transform: FourierVolume, ctf: Float[Tensor, "n b b//2+1"]) -> Float[Tensor, " n"]:
    """How wrong the poses are that are found for images of the map at random poses, of the best head: angle and Bingham
    likelihood, as in supervised training. The map gets no gradient."""
    n, box_size_px = len(ctf), ctf.shape[-2]
    with torch.no_grad():
        quaternion = random_quaternions(n).to(ctf)
        shift_angstrom = RANDOM_SHIFT_OF_BOX * model.network.box_size_angstrom * torch.randn(n, 2).to(ctf)
        shift_angstrom = shift_angstrom if model.options.shifts else torch.zeros_like(shift_angstrom)
        noise = ifft_image(fft_image(torch.randn(n, box_size_px, box_size_px).to(ctf)) * model.noise_amplitude)
        images = model.decoded(_detached(transform), quaternion, shift_angstrom, ctf) + noise * model.mask
    losses = []
    for answer in model.poses_of_heads(images, ctf):
        loss = own_error(answer.quaternion, quaternion, model.group) + bingham_loss(answer.bingham, quaternion,
                                                                                    model.group)
        if model.options.shifts:
            loss = loss + displacement_error(answer, shift_angstrom, model.network.box_size_angstrom)
        losses.append(loss)
    return torch.stack(losses).amin(0)


class EndToEndTask(TrainingTask):
    """Encoder and map, trained together on the objective's stream of images."""

    def __init__(self, model: AutoEncoder, objective: EndToEndObjective, volume_rate: float = VOLUME_RATE,
                 pose_rate: float = POSE_RATE):
        """Learning rates of the map, in units of its density, and of the poses of single images, in radians and pixels."""
        super().__init__(model)
        self.objective, self.volume_rate, self.pose_rate = objective, volume_rate, pose_rate

    def batch(self, step: int, progress: float) -> tuple[ImageBatch, int]:
        return self.objective.stream(step, progress)

    def loss(self, batch: tuple[ImageBatch, int], progress: float) -> tuple[Float[Tensor, ""], dict[str, float]]:
        return self.objective(self.network, batch, progress)

    def evaluate(self) -> dict[str, float]:
        return self.objective.evaluate(self.network)

    def optimizer(self, settings: LoopSettings) -> JointOptimizer:
        """Adam for the network at the schedule's rate, for the map and for poses of single images at their own."""
        model, rate = self.network, settings.learning_rate
        network = [*model.network.parameters(), *model.more_heads.parameters()]
        groups = [{"params": network}, {"params": [model.volume.voxels], "relative_rate": self.volume_rate / rate}]
        adam = torch.optim.AdamW(groups, lr=rate, betas=ADAM_BETAS, eps=1e-8, weight_decay=0.0, fused=True)
        if not len(model.table.quaternion) or not model.options.learn_poses:
            return JointOptimizer(adam)
        return JointOptimizer(adam, PoseAdam(model.table, rate, model.pixel_size_angstrom, self.pose_rate / rate))


def mean_square(batches: list[ImageBatch]) -> float:
    """Mean square of the pixels of the images."""
    return sum(batch.images.square().sum().item() for batch in batches) / sum(batch.images.numel() for batch in batches)


@torch.no_grad()
def fit_grey_values(model: AutoEncoder, batches: list[ImageBatch],
                    poses_of: Callable[[ImageBatch], tuple[Tensor, Tensor]]) -> float:
    """Scales the map so that its images, at the poses given (quaternions (n, 4), shifts in Angstrom (n, 2)), come
    nearest to the images, by least squares; returns the factor."""
    transform, products, squares = model.volume.transform(), 0.0, 0.0
    for batch in batches:
        images = model.decoded(transform, *poses_of(batch), batch.ctf)
        products += (images * batch.images).sum().item()
        squares += images.square().sum().item()
    # a map that does not look like the images at all must not vanish
    factor = max(products / squares, 1e-3 * math.sqrt(mean_square(batches) / (squares / _n_pixels(batches))))
    model.volume.rescale(factor)
    return factor


def _n_pixels(batches: list[ImageBatch]) -> int:
    return sum(batch.images.numel() for batch in batches)


@dataclass(frozen=True)
class FineTuned:
    """What ``fine_tune_end_to_end`` returns."""

    network: OrientationNetwork
    volume: Float[Tensor, "b b b"]
    """with the grey values of the one given"""
    loss_before: float
    """Part of the held-out images' power that network and map leave unexplained, before; 1 for an empty map"""
    loss_after: float
    """the same, after"""
    steps: int
    seconds: float

    @property
    def is_better(self) -> bool:
        return self.loss_after < self.loss_before


def fine_tune_end_to_end(network: OrientationNetwork, volume: Float[Tensor, "d d d"], images: PreparedImages,
                         rows: Int[np.ndarray, " n"], held_out: Int[np.ndarray, " m"], mask: Float[Tensor, "b b"],
                         group: Float[Tensor, "g 4"], max_minutes: float, state_path: Path, metrics_path: Path,
                         settings: FineTuneSettings = FineTuneSettings()) -> FineTuned:
    """Trains an encoder that is trained already, and its map, end to end: stage (c) of the hybrid method.

    ``network``: trained; a copy of it is. ``volume``: the map that its poses belong to, at the network's box
    (``imaging.fourier.crop_volume``) and of any grey values: they are fitted to the images. ``images``: the set as the
    network sees it, for instance ``PreparedImages(preparation.network_input, len(particles), b)``; ``rows`` of it are
    trained on (one half set, for half maps that share nothing), ``held_out`` assess it. ``mask``: that of prepared images
    (``TrainingParticles.mask``). ``group``: the symmetry. The training takes ``max_minutes``, writes ``metrics_path``, and
    can be interrupted and resumed (``state_path``; remove it when done).

    Returns copies with the best held-out loss of the training. Whether that is better than it was, the caller decides:
    ``FineTuned.is_better``; take neither network nor map where it is not. The squared error trains the mode of the
    network's posterior alone: calibrate the posterior again (``Objective.calibrate``). Raises Interrupted.
    """
    device, box_size_px = mask.device, network.config.box_size_px
    if volume.shape != (box_size_px,) * 3:
        raise ValueError(f"the map must have the network's box of {box_size_px} px; it has {tuple(volume.shape)}")
    sphere_px = settings.mask_radius_px or 0.45 * box_size_px
    model = AutoEncoder(copy.deepcopy(network), LearnableVolume(volume.to(device), sphere_px, _density_unit(volume)),
                        mask, settings.options, group.to(device)).to(device)
    evaluated = list(images.batches(held_out))
    model.eval()
    factor = fit_grey_values(model, evaluated, lambda batch: _network_poses(model, batch))
    objective = EndToEndObjective(EpochStream(images, rows, held_out, settings.batch_size, settings.seed),
                                  mean_square(evaluated), evaluated)
    before = objective.evaluate(model)["validation_loss"]
    loop = LoopSettings(settings.max_steps, settings.learning_rate, settings.seed, max_minutes,
                        patience_evaluations=FINE_TUNE_PATIENCE, resume=settings.resume)
    result = train_network(EndToEndTask(model, objective, FINE_TUNE_VOLUME_RATE), loop, state_path, metrics_path)
    model.eval()
    after = objective.evaluate(model)["validation_loss"]
    return FineTuned(model.network, model.volume.map().detach() / factor, before, after, result.steps, result.seconds)


def _density_unit(volume: Tensor) -> float:
    """Root mean square of a map's voxels that hold something: the parameters of a learnable map are of order one."""
    strong = volume[volume.abs() > volume.std()]
    return strong.square().mean().sqrt().item()


def _network_poses(model: AutoEncoder, batch: ImageBatch) -> tuple[Tensor, Tensor]:
    found = model.candidates(batch)[0]
    return found.quaternion, found.shift_angstrom
