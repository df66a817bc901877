"""Features of an image that reveal junk: its fit to the map, and where in the box it has more power than noise.

The image is filtered by the signal expected of a particle, ``z = y c sqrt(P)`` with y the whitened transform, c its
transfer (the CTF's sign included, so that a particle's power gathers where the particle is) and P the map's mean power
in each shell. A particle of unknown orientation is a random signal of known power; to first order the log-likelihood
ratio that one lies at displacement d is ``T(d) = sum_x v(x - d) (z(x)^2 - noise variance)``, v the power of a particle
at the centre. T is given in standard deviations of what noise alone would do.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ..geometry.rotations import random_quaternions
from ..matching.likelihood import predicted
from ..matching.match_quality import RESIDUAL_MIN_RADIUS_PX, match_quality
from ..matching.matching_model import MatchingModel
from ..matching.refine import RefinedPoses
from ..matching.whitened_images import WhitenedImages, to_images

# random viewing directions whose mean power stands for the particle's
N_VIEWS = 64
# images at a time: some ten transforms of each are held
CHUNK = 64
# in the order of the columns of ``PowerMap.features``
FEATURES = ("fit", "signal", "residual", "power_here", "power_elsewhere", "rest_here", "rest_elsewhere", "low_power",
              "high_power")


@dataclass(frozen=True)
class PowerMap:
    """T(d) of images, for a matching model: ``template`` is the transform of v."""

    model: MatchingModel
    template: Complex[Tensor, "b b//2+1"]

    @classmethod
    def build(cls, model: MatchingModel, ctf: Float[Tensor, "n b b//2+1"]) -> "PowerMap":
        """For images with CTFs like the sample ``ctf``."""
        some = ctf[torch.arange(N_VIEWS, device=ctf.device) % len(ctf)]
        images = model.images(torch.zeros_like(some, dtype=torch.complex64), some)
        views = random_quaternions(N_VIEWS, torch.Generator().manual_seed(0), device=ctf.device)
        signal = predicted(images, model.volume, views, torch.zeros(N_VIEWS, 2, device=ctf.device))
        power = to_images(signal * _filter(images, model), images).square().mean(0)
        return cls(model, torch.fft.rfft2(torch.fft.ifftshift(power / power.sum())))

    def of(self, images: WhitenedImages, data: Complex[Tensor, "n m"]) -> Float[Tensor, "n b b"]:
        """T of whitened transforms, whole or what is left of them; index B // 2 is displacement 0."""
        weight, box = _filter(images, self.model), images.box_size_px
        covariance = to_images(weight.square().to(data.dtype), images) / box ** 2
        power = to_images(data * weight, images).square() - covariance[:, box // 2, box // 2, None, None]
        # convolution with v: the transform of v has its centre at index 0
        smooth = torch.fft.irfft2(torch.fft.rfft2(power) * self.template.conj(), s=(box, box))
        spread = torch.fft.fft2(covariance.square()).abs() * _both_halves(self.template).abs().square()
        return smooth / (2 * spread.sum((-2, -1)) / box ** 2).sqrt().clamp_min(1e-20)[:, None, None]

    def features(self, images: WhitenedImages, poses: RefinedPoses) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n 2"]]:
        """Of images matched at poses (n, ...), one for each: the features by ``FEATURES``, and where in the box,
        px, there is most power beyond the largest shift searched."""
        parts = [self._features(images[rows], poses[rows]) for rows in torch.arange(len(images)).split(CHUNK)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _features(self, images: WhitenedImages, poses: RefinedPoses) -> tuple[Tensor, Tensor]:
        model, box = self.model, images.box_size_px
        expected = predicted(images, model.volume, poses.quaternion, poses.displacement_px)
        quality = match_quality(images, model, poses)
        signal = (2 * expected.abs().square().sum(-1)).sqrt()
        whole, rest = self.of(images, images.data), self.of(images, images.data - expected)
        far = _beyond(model.max_displacement_px, box, whole.device)
        column, row = _at(poses.displacement_px, box)
        image = torch.arange(len(images), device=whole.device)
        most, place = whole.masked_fill(~far, -torch.inf).flatten(1).max(1)
        place = torch.stack([place % box, place // box], -1) - box // 2
        rest_most = rest.masked_fill(~far, -torch.inf).flatten(1).amax(1)
        values = [quality.fit, signal, quality.residual, whole[image, row, column], most, rest[image, row, column],
                  rest_most, *_shell_powers(images, model)]
        return torch.stack(values, dim=1), place.to(whole.dtype)


def _shell_powers(images: WhitenedImages, model: MatchingModel) -> tuple[Tensor, Tensor]:
    """Power beyond the noise's (n,), in its standard deviations, of the lowest and of the highest shells."""
    power = images.data.abs().square() - 1
    low = images.radius <= RESIDUAL_MIN_RADIUS_PX + 2
    high = images.radius > 0.75 * model.max_radius_px
    return tuple(power[:, some].sum(1) / some.sum().sqrt() for some in (low, high))


def _filter(images: WhitenedImages, model: MatchingModel) -> Tensor:
    shells = images.radius.round().long().clamp_max(len(model.map_power) - 1)
    return images.transfer * model.map_power[shells].sqrt() * (images.radius >= RESIDUAL_MIN_RADIUS_PX)


def _both_halves(half: Tensor) -> Tensor:
    """The whole transform (B, B) of a real image symmetric about its centre, from its half (B, B // 2 + 1)."""
    box = len(half)
    flipped = torch.roll(half.flip(0), 1, 0)[:, 1:box // 2].flip(1).conj()
    return torch.cat([half, flipped], dim=1)


def _beyond(limit_px: float, box_size_px: int, device) -> Tensor:
    """Displacements (B, B) beyond the limit: bool."""
    axis = torch.arange(box_size_px, device=device) - box_size_px // 2
    return torch.hypot(axis[:, None].float(), axis.float()) > limit_px


def _at(displacement_px: Tensor, box_size_px: int) -> tuple[Tensor, Tensor]:
    index = (displacement_px.round().long() + box_size_px // 2).clamp(0, box_size_px - 1)
    return index[:, 0], index[:, 1]
