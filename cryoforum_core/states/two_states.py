"""Two states of a molecule: particles that differ from the map alike, found at the poses that matching gave them.

Model of a posed, whitened image in state s: ``y = c (P + E_s) + n``, P the slice of the reference map at the image's pose and
E_s that of the state's low-resolution correction to it. Corrections, the share of the states and each image's probability are
found by expectation-maximisation: classification without alignment. It starts from the component along which the images'
residuals vary most, by probabilistic principal component analysis (Tipping and Bishop, J. R. Stat. Soc. B 61, 1999).

With a point group each particle is looked at from all its equivalent poses, as if they were different particles (symmetry
expansion): a state need not have the symmetry, one subunit of four may lack a domain.

A better fit alone is no evidence of two states, since noise can be divided in two as well. Each half of the images therefore
gives a model, which is validated on the other half: by the log-likelihood ratio of two states to one, both fitted in the same
way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from ..geometry.rotations import compose
from ..imaging.fourier import fft_volume, ifft_volume, resize_volume, volume_radius_px
from ..imaging.masks import soft_sphere
from ..imaging.projection import FourierVolume, Reconstructor, slice_points
from ..imaging.resolution import fourier_shell_correlation
from ..matching.whitened_images import WhitenedImages

# finest frequency of the corrections, in cycles per box: domains show there, and finer shells are mostly noise
STATES_RADIUS_PX = 12.0
# of the corrections: holds that radius, and a few shells more
_BOX_PX = 32
# of that box
_MASK_RADIUS_BOXES = 0.4
# power of the corrections expected in each shell, over that of the map. A voxel of the padded grid has an eighth of the
# weight, so this is an eighth of the map's power for the states, and all of it for what they have in common
_PRIOR_OF_STATES, _PRIOR_OF_BOTH = 1.0, 8.0
# of the corrections that particles are matched with, as good as none: noise is filtered by the agreement of the halves
_PRIOR_OF_MAPS = 50.0
# the common correction is found by so many steps, each on what the last one leaves
_COMMON_STEPS = 3
_COMPONENT_ITERATIONS = 25
_STATE_ITERATIONS = 25
# random starts of the component; the best by likelihood is kept
_STARTS = 3
# poses of the images, the equivalent ones, too: more take time, and a part of the images shows the states as well
MAX_POSES = 8_000
# fewer images in each half make no map
MIN_IMAGES = 100
# standard errors above 0 of the log-likelihood that either half gains by the other's states
MIN_GAIN_ERRORS = 4.0
# correlation of the differences between the two states, as found by either half
MIN_CORRELATION = 0.3
# of the particles: fewer are odd images, no state
MIN_SHARE = 0.03


@dataclass(frozen=True)
class PosedImages:
    """Whitened images of known poses: ``data`` centred, what ``reference`` predicts for them, and ``points``: where they lie
    in the map's transform at each of the g poses that the point group makes equivalent."""

    data: Complex[Tensor, "n m"]
    transfer: Float[Tensor, "n m"]
    reference: Complex[Tensor, "n m"]
    points: Float[Tensor, "g n m 3"]

    @classmethod
    def of(cls, images: WhitenedImages, volume: FourierVolume, quaternion: Float[Tensor, "n 4"],
           displacement_px: Float[Tensor, "n 2"], group: Float[Tensor, "g 4"]) -> "PosedImages":
        """``images``: expected with each particle's own contrast. ``volume``: the reference, which has the symmetry."""
        low = images.up_to(STATES_RADIUS_PX)
        points = torch.stack([slice_points(compose(quaternion, element.expand_as(quaternion)), low.k)
                              for element in group.to(quaternion)])
        return cls(low.data * low.displacement_phase(displacement_px).conj(), low.transfer,
                   low.transfer * volume.sample(points[0]), points)

    @classmethod
    def concatenate(cls, parts: Sequence["PosedImages"]) -> "PosedImages":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("data", "transfer", "reference")),
                   torch.cat([part.points for part in parts], dim=1))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index) -> "PosedImages":
        return PosedImages(self.data[index], self.transfer[index], self.reference[index], self.points[:, index])

    def sampled(self, volume: Float[Tensor, "b b b"]) -> Complex[Tensor, "g n m"]:
        """What a correction adds to the predictions."""
        values = FourierVolume.from_real(volume, max_radius_px=STATES_RADIUS_PX + 1).sample(self.points.flatten(0, 1))
        return values.reshape(self.points.shape[:-1]) * self.transfer


@dataclass(frozen=True)
class Corrections:
    """Corrections (s, b, b, b) to the reference map of s states, in the units of its slices, and their shares (s,) of the
    poses."""

    volumes: Float[Tensor, "s b b b"]
    share: Float[Tensor, " s"]

    def beyond(self, common: "Corrections") -> "Corrections":
        """To the reference, of corrections to what the images have in common."""
        return Corrections(self.volumes + common.volumes, self.share)

    def log_likelihood(self, images: PosedImages) -> Float[Tensor, "g n s"]:
        """Of each state at each pose, with its share, over that of the reference map alone."""
        return self.log_likelihood_of(images.data - images.reference, images)

    def log_likelihood_of(self, residual: Complex[Tensor, "n m"], images: PosedImages) -> Float[Tensor, "g n s"]:
        """The same, from what the predictions leave of the images."""
        gains = []
        for volume in self.volumes:
            added = images.sampled(volume)
            gains.append(2 * (residual.conj() * added).real.sum(-1) - added.abs().square().sum(-1))
        return torch.stack(gains, dim=-1) + self.share.log()

    def minor_probability(self, residual: Complex[Tensor, "n m"], images: PosedImages) -> Float[Tensor, "g n"]:
        """Of the second state, from what the predictions leave of the images."""
        return torch.softmax(self.log_likelihood_of(residual, images), dim=-1)[..., 1]


@dataclass(frozen=True)
class TwoStates:
    """``halves``: corrections found by either half of the images, the more frequent state first; ``maps``: the same, not shrunk
    by a prior; ``gain`` and ``gain_error``: log-likelihood (nats per image) that the images of either half gain by the states
    that the other found, and its standard error; ``correlation``: of the differences between the states; ``minor_share``: of
    the particles."""

    halves: tuple[Corrections, Corrections]
    maps: tuple[Float[Tensor, "s b b b"], Float[Tensor, "s b b b"]]
    gain: tuple[float, float]
    gain_error: tuple[float, float]
    correlation: float
    minor_share: float

    @property
    def is_found(self) -> bool:
        """Whether either half confirms the states of the other."""
        are_better = all(gain > MIN_GAIN_ERRORS * error for gain, error in zip(self.gain, self.gain_error, strict=True))
        return are_better and self.correlation >= MIN_CORRELATION and self.minor_share >= MIN_SHARE

    def correction(self, state: int, box_size_px: int, half: int | None = None
                   ) -> Float[Tensor, "{box_size_px} {box_size_px} {box_size_px}"]:
        """What is to be added to the reference map for state 1 or 2: from both halves, or from one (0 or 1), each shell weighted
        by how well the halves agree on the difference between the states (Rosenthal and Henderson, J. Mol. Biol. 333, 2003)."""
        fsc = fourier_shell_correlation(*(_difference(maps) for maps in self.maps)).clamp(0, 1).float()
        found = sum(maps[state - 1] for maps in self.maps) / 2 if half is None else self.maps[half][state - 1]
        weight = 2 * fsc / (1 + fsc) if half is None else fsc
        shells = volume_radius_px(len(found), found.device).round().long().clamp_max(len(weight) - 1)
        found = ifft_volume(fft_volume(found) * weight[shells])
        # resizing scales grey values; the transform must stay
        return (len(found) / box_size_px) ** 2 * resize_volume(found, box_size_px)


def _difference(maps: Float[Tensor, "s b b b"]) -> Float[Tensor, "b b b"]:
    """Of the minor state from the major one."""
    return maps[1] - maps[0]


def find_two_states(images: PosedImages, half: Int[Tensor, " n"], map_power: Float[Tensor, " shells"], seed: int = 0,
                    start: TwoStates | None = None) -> TwoStates | None:
    """``half`` (n,): 0 or 1. ``map_power``: mean |P|^2 in each shell. ``start``: states to begin from, instead of at random. Each
    half then begins from what the other found, which is no evidence: the evidence stays that of ``start``. None for too few
    images, and where nothing varies, as in images without noise that the map explains."""
    if min((half == 0).sum(), (half == 1).sum()) < MIN_IMAGES:
        return None
    fitter = _Fitter(map_power, seed)
    of_half = [images[half == number] for number in (0, 1)]
    one = [fitter.one(each) for each in of_half]
    two = fitter.two(of_half, one, start)
    maps = tuple(fitter.maps(*each) for each in zip(of_half, two, strict=True))
    correlation = float(torch.corrcoef(torch.stack([_difference(each).flatten() for each in maps]))[0, 1])
    if start is not None:
        mean, error = start.gain, start.gain_error
    else:
        gains = [_gain(of_half[1 - number], one[number], two[number]) for number in (0, 1)]
        mean, error = zip(*((float(gain.mean()), float(gain.std() / len(gain) ** 0.5)) for gain in gains), strict=True)
    if not np.isfinite([*mean, *error, correlation]).all():
        return None
    share = torch.cat([probability_of_minor(of_half[1 - number], two[number]).amax(0) for number in (0, 1)]).mean()
    return TwoStates(two, maps, mean, error, correlation, float(share))


def probability_of_minor(images: PosedImages, corrections: Corrections) -> Float[Tensor, "g n"]:
    """Of each image at each equivalent pose."""
    return corrections.minor_probability(images.data - images.reference, images)


def _gain(images: PosedImages, one: Corrections, two: Corrections) -> Float[Tensor, " n"]:
    """Over all equivalent poses of a particle, which are not independent."""
    return (two.log_likelihood(images).logsumexp(-1) - one.log_likelihood(images)[..., 0]).sum(0)


@dataclass(frozen=True)
class _Fitter:
    map_power: Float[Tensor, " shells"]
    seed: int

    def one(self, images: PosedImages) -> Corrections:
        """What all images have in common beyond the reference, as one state."""
        return Corrections(self._common(images)[0][None], images.transfer.new_ones(1))

    def two(self, halves: list[PosedImages], one: list[Corrections], start: TwoStates | None
            ) -> tuple[Corrections, Corrections]:
        """Two states of either half, the more frequent first; the same two, though each half is fitted by itself.

        Either half begins from random starts, then from what the other found: with a point group there may be many ways to
        divide the particles. The way with the higher likelihood of both halves is taken.
        """
        left = [images.data - images.reference - images.sampled(each.volumes[0])[0]
                for images, each in zip(halves, one, strict=True)]
        if start is not None:
            found = (self._two(halves[number], left[number], probability_of_minor(halves[number], start.halves[1 - number]))[0]
                     for number in (0, 1))
            return tuple(each.beyond(common) for each, common in zip(found, one, strict=True))
        ways = []
        for first, second in ((0, 1), (1, 0)):
            images = halves[first]
            starts = (_division(self._component(images, left[first], start)) for start in range(_STARTS))
            found, likelihood = max((self._two(images, left[first], start) for start in starts), key=lambda each: each[1])
            again, of_second = self._two(halves[second], left[second], found.minor_probability(left[second], halves[second]))
            ways.append((likelihood + of_second, (found, again) if first == 0 else (again, found)))
        chosen = max(ways, key=lambda way: way[0])[1]
        order = sum(each.share for each in chosen).argsort(descending=True)
        return tuple(Corrections(each.volumes[order], each.share[order]).beyond(common)
                     for each, common in zip(chosen, one, strict=True))

    def maps(self, images: PosedImages, states: Corrections) -> Float[Tensor, "s b b b"]:
        """Corrections to the reference for either state, without a prior."""
        minor, left = probability_of_minor(images, states), images.data - images.reference
        return torch.stack([self._map(images, left, weight, weight, _PRIOR_OF_MAPS) for weight in (1 - minor, minor)])

    def _common(self, images: PosedImages) -> tuple[Tensor, Tensor]:
        """The mean correction (b, b, b), and what it leaves of the images."""
        left, weight = images.data - images.reference, torch.ones(images.points.shape[:2], device=images.data.device)
        total = torch.zeros(_BOX_PX, _BOX_PX, _BOX_PX, device=images.data.device)
        for _ in range(_COMMON_STEPS):
            step = self._map(images, left, weight, weight, _PRIOR_OF_BOTH)
            total, left = total + step, left - images.sampled(step)[0]
        return total, left

    def _component(self, images: PosedImages, left: Tensor, start: int) -> Float[Tensor, "g n"]:
        """How far each image goes along the direction in which most vary; mean 0."""
        generator = torch.Generator().manual_seed(1000 * self.seed + start)
        along = torch.randn(images.points.shape[:2], generator=generator).to(left.device)
        for _ in range(_COMPONENT_ITERATIONS):
            along = (along - along.mean()) / along.std()
            direction = images.sampled(self._map(images, left, along, along.square(), _PRIOR_OF_STATES))
            # the power of complex noise is 1, 0.5 in each part
            along = (left.conj() * direction).real.sum(-1) / (direction.abs().square().sum(-1) + 0.5)
        return along - along.mean()

    def _two(self, images: PosedImages, left: Tensor, probability: Tensor) -> tuple[Corrections, float]:
        """Two states, from probabilities (g, n) of the second one to start from, and their log-likelihood."""
        for _ in range(_STATE_ITERATIONS):
            share = torch.stack([1 - probability.mean(), probability.mean()]).clamp(0.01, 0.99)
            found = Corrections(torch.stack([self._map(images, left, weight, weight, _PRIOR_OF_STATES)
                                             for weight in (1 - probability, probability)]), share)
            log = found.log_likelihood_of(left, images)
            probability = torch.softmax(log, dim=-1)[..., 1]
        return found, float(log.logsumexp(-1).mean())

    def _map(self, images: PosedImages, values: Tensor, weight: Tensor, squared: Tensor, prior: float) -> Tensor:
        """The map (b, b, b) of ``values`` (n, m); each pose (g, n) counts ``weight`` in the numerator and ``squared`` in the
        denominator."""
        reconstructor = Reconstructor(_BOX_PX, max_radius_px=STATES_RADIUS_PX, device=values.device)
        for points, by, by_squared in zip(images.points, weight, squared, strict=True):
            reconstructor.insert_points(by[:, None] * images.transfer * values, by_squared[:, None] * images.transfer.square(),
                                        points)
        mask = soft_sphere(_BOX_PX, _MASK_RADIUS_BOXES * _BOX_PX, 0.05 * _BOX_PX, values.device)
        return reconstructor.posterior_mean(prior * self.map_power[:_BOX_PX // 2 + 1]) * mask


def _division(along: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
    """Soft membership of the smaller group, which is where the longer tail is."""
    tail = torch.sign(along.pow(3).mean())
    threshold = along.median() + 0.5 * tail * along.std()
    return torch.sigmoid(4 * tail * (along - threshold) / along.std())
