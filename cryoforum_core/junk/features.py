"""Features of an image that reveal junk: its fit to the map, and where in the box it has more power than noise.

The image is filtered by the signal expected of a particle, ``z = y c sqrt(P)`` with y the whitened transform, c its
transfer (the CTF's sign included, so that a particle's power gathers where the particle is) and P the map's mean power
in each shell. A particle of unknown orientation is a random signal of known power; to first order the log-likelihood
ratio that one lies at displacement d is ``T(d) = sum_x v(x - d) (z(x)^2 - noise variance)``, v the power of a particle
at the centre. T is given in standard deviations of what noise alone would do in the part of v that lies in the box: a
neighbour whose centre is outside has its peak there, and not where its visible part is.

What is left of an image after its own particle is taken away is judged at that particle's own contrast. Only what lies near
the particle counts (``NEAR_DIAMETERS``), and only peaks: a neighbour at the rim of the box harms no pose, and no map.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional

from ..geometry.rotations import random_quaternions
from ..matching.likelihood import contrast_from_poses, predicted
from ..matching.match_quality import RESIDUAL_MIN_RADIUS_PX, quality_of_prediction
from ..matching.matching_model import MatchingModel
from ..matching.refine import RefinedPoses, predicted_at_refined
from ..matching.whitened_images import WhitenedImages, to_images

# random viewing directions whose mean power stands for the particle's
N_VIEWS = 64
# images at a time: some ten transforms of each are held
CHUNK = 32
# in the order of the columns of ``PowerMap.features``; all in standard deviations of the noise
FEATURES = ("fit", "signal_to_noise", "residual", "rest_near", "low_power", "high_power")
# those that a particle alone has: an image without one has no other value, whatever else it shows
OF_THE_PARTICLE = ("fit", "signal_to_noise")
# of a particle's mean power, within its radius
_POWER_WITHIN_RADIUS = 0.95
# peaks nearer to the particle than this are those of what overlaps with it; centres may be nearer by a twentieth
NEAR_DIAMETERS = 0.8
# the highest T within so many radii is a peak: the slope of a neighbour that lies outside is none
_PEAK_RADII = 0.25
# of v's power that must lie in the box, for T to be known there
_LEAST_SEEN = 0.1


@dataclass(frozen=True)
class PowerMap:
    """T(d) of images, for a matching model.

    ``template``: the transform of v in twice the box; ``seen``: of v at each displacement, the part of its energy that is
    in the box; ``radius_px``: of a particle.
    """

    model: MatchingModel
    template: Complex[Tensor, "rows columns"]
    seen: Float[Tensor, "rows rows"]
    radius_px: float

    @classmethod
    def build(cls, model: MatchingModel, ctf: Float[Tensor, "n b b//2+1"]) -> "PowerMap":
        """For images with CTFs like the sample ``ctf``."""
        some = ctf[torch.arange(N_VIEWS, device=ctf.device) % len(ctf)]
        images = model.images(torch.zeros_like(some, dtype=torch.complex64), some)
        views = random_quaternions(N_VIEWS, torch.Generator().manual_seed(0), device=ctf.device)
        signal = predicted(images, model.volume, views, torch.zeros(N_VIEWS, 2, device=ctf.device))
        power = to_images(signal * _filter(images, model), images).square().mean(0)
        power = power / power.sum()
        template, box = _transform_in_twice_the_box(power), len(power)
        energy = _transform_in_twice_the_box(power.square())
        whole = _in_twice_the_box(torch.ones_like(power))
        seen = torch.fft.irfft2(torch.fft.rfft2(whole) * energy.conj(), s=whole.shape) / power.square().sum()
        distance, order = _distances(box, power.device).flatten().sort()
        within = power.flatten()[order].cumsum(0) >= _POWER_WITHIN_RADIUS
        return cls(model, template, seen, float(distance[within.float().argmax()]))

    def of(self, images: WhitenedImages, data: Complex[Tensor, "n m"]) -> Float[Tensor, "n two_b two_b"]:
        """T of whitened transforms, whole or what is left of them; index B is displacement 0, -inf where the box shows
        too little of a particle."""
        weight, box = _filter(images, self.model), images.box_size_px
        covariance = to_images(weight.square().to(data.dtype), images) / box ** 2
        power = to_images(data * weight, images).square() - covariance[:, box // 2, box // 2, None, None]
        # convolution with v: the transform of v has its centre at index 0
        smooth = torch.fft.irfft2(torch.fft.rfft2(_in_twice_the_box(power)) * self.template.conj(), s=(2 * box, 2 * box))
        # in the box itself, where the noise's covariance is known
        of_power = _both_halves(self.template[::2, ::2]).abs().square()
        spread = (2 * (torch.fft.fft2(covariance.square()).abs() * of_power).sum((-2, -1)) / box ** 2).sqrt().clamp_min(1e-20)
        # convolutions leave rounding errors where nothing of v is in the box
        standard = smooth / (spread[:, None, None] * self.seen.clamp_min(1e-6).sqrt())
        return standard.masked_fill(self.seen < _LEAST_SEEN, -torch.inf)

    def features(self, images: WhitenedImages, poses: RefinedPoses, contrast: Float[Tensor, " n"]
                 ) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n 2"]]:
        """Of images matched at poses (n, ...), one for each, with their own ``contrast``: the features by ``FEATURES``, and
        where in the box, px, there is most power beyond the largest shift searched."""
        parts = [self._features(images[rows], poses[rows], contrast[rows])
                 for rows in torch.arange(len(images), device=contrast.device).split(CHUNK)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _features(self, images: WhitenedImages, poses: RefinedPoses, contrast: Tensor) -> tuple[Tensor, Tensor]:
        box, device = images.box_size_px, contrast.device
        expected, taken_up = predicted_at_refined(images, self.model.volume, poses)
        factor, variance = contrast_from_poses(images, expected, taken_up)
        own = contrast[:, None] * expected
        whole, rest = self.of(images, images.data), self.of(images, images.data - own)
        axis = torch.arange(2 * box, device=device) - box
        place = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).float()
        is_near = (place - poses.displacement_px[:, None, None]).norm(dim=-1) <= 2 * NEAR_DIAMETERS * self.radius_px
        is_beyond = (place.norm(dim=-1) > self.model.max_displacement_px) & (place.abs() <= box // 2).all(-1)
        most = whole.masked_fill(~is_beyond, -torch.inf).flatten(1).argmax(1)
        # noise has peaks about 0; where there is none, there is nothing
        near = rest.masked_fill(~(is_near & self._is_peak(rest)), 0.0).flatten(1).amax(1).clamp_min(0)
        values = [quality_of_prediction(images, self.model, expected).fit, factor / variance.sqrt(),
                  quality_of_prediction(images, self.model, own).residual, near, *_shell_powers(images, self.model)]
        return torch.stack(values, dim=1), place.flatten(0, 1)[most]

    def _is_peak(self, power: Tensor) -> Tensor:
        reach = max(1, int(_PEAK_RADII * self.radius_px))
        return power >= functional.max_pool2d(power[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0]


def _shell_powers(images: WhitenedImages, model: MatchingModel) -> tuple[Tensor, Tensor]:
    """Power beyond the noise's (n,), in its standard deviations, of the lowest and of the highest shells."""
    power = images.data.abs().square() - 1
    low = images.radius <= RESIDUAL_MIN_RADIUS_PX + 2
    high = images.radius > 0.75 * model.max_radius_px
    return tuple(power[:, some].sum(1) / some.sum().sqrt() for some in (low, high))


def _filter(images: WhitenedImages, model: MatchingModel) -> Tensor:
    shells = images.radius.round().long().clamp_max(len(model.map_power) - 1)
    return images.transfer * model.map_power[shells].sqrt() * (images.radius >= RESIDUAL_MIN_RADIUS_PX)


def _in_twice_the_box(values: Tensor) -> Tensor:
    """Images (..., B, B) with zeros around them: (..., 2 B, 2 B), the centre B // 2 on B."""
    half = values.shape[-1] // 2
    return functional.pad(values, (half, half, half, half))


def _transform_in_twice_the_box(values: Tensor) -> Tensor:
    return torch.fft.rfft2(torch.fft.ifftshift(_in_twice_the_box(values)))


def _distances(box_size_px: int, device: torch.device) -> Tensor:
    """Of each pixel (B, B) from the centre, in px."""
    axis = (torch.arange(box_size_px, device=device) - box_size_px // 2).float()
    return torch.hypot(axis[:, None], axis)


def _both_halves(half: Tensor) -> Tensor:
    """The whole transform (B, B) of a real image symmetric about its centre, from its half (B, B // 2 + 1)."""
    box = len(half)
    flipped = torch.roll(half.flip(0), 1, 0)[:, 1:box // 2].flip(1).conj()
    return torch.cat([half, flipped], dim=1)
