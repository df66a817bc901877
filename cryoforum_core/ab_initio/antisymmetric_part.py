"""The antisymmetric part of a pseudo-symmetric map, which tells the two orientations of each image apart.

Maps of such a molecule come out as the mean of both ways round: nothing in such a symmetric mean distinguishes the two
orientations of an image, so no further round does. What does is the antisymmetric part of the map, which changes its sign
under the rotation by 180 degrees. Each image holds a slice of it, with an unknown sign: the signs and the antisymmetric
part are found together, as the leading component of what the mean leaves unexplained (power iteration on images and map
in turn).
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..geometry.pose_hypotheses import PoseHypotheses
from ..imaging.fourier import resize_volume
from ..imaging.projection import FourierVolume, Reconstructor, slice_points
from ..matching.likelihood import predicted
from ..matching.whitened_images import WhitenedImages
from ..progress import Progress
from .half_map_pair import RoundSums, matching_model
from .half_sets import BATCH_IMAGES, RoundImages

logger = logging.getLogger("cryoforum")

# of the sample from which the part is found; all images are then compared with it
MAX_IMAGES = 10_000
# of the sample; they confirm what the others found
HELD_OUT_FRACTION = 0.2
# parts of the sample, each compared with a map of the others
N_FOLDS = 6
# of the power iteration
MIN_STEPS = 8
# and at most
MAX_STEPS = 25
# part of the signs that stay the same in a step, beyond which it ends
SETTLED_FRACTION = 0.995
# what held-out images hold of the antisymmetric part, over what others in their place would
MIN_GAIN = 1.4
# and by how many standard deviations
MIN_GAIN_DEVIATIONS = 5.0

Pose = tuple[Float[Tensor, "n 4"], Float[Tensor, "n 2"]]
"""Rotations and displacements in px."""


@dataclass(frozen=True)
class _Residuals:
    """Images of rows ``index`` (n,) less the symmetric part, and their two poses in px of the round's box."""

    index: Tensor
    images: WhitenedImages
    own: Pose
    other: Pose


class AntisymmetricPart:
    """The search for the antisymmetric part, on a sample of the images."""

    def __init__(self, images: RoundImages, poses: PoseHypotheses, other_pose: Callable[[Tensor, Tensor], Pose],
                 mask: Float[Tensor, "b b b"], seed: int):
        """``other_pose`` gives the other pose of images, in px of their own box; ``mask`` holds the molecule."""
        self.images, self.poses, self.other_pose = images, poses, other_pose
        self.half_sets, self.box, self.device = images.half_sets, images.box_size_px, images.half_sets.device
        self.mask = resize_volume(mask, self.box)
        self.symmetric, self.power = self._symmetric_part()
        self.generator = torch.Generator().manual_seed(seed)
        sample = torch.randperm(len(self.half_sets), generator=self.generator)[:MAX_IMAGES]
        self.held_out, used = sample.tensor_split([int(HELD_OUT_FRACTION * len(sample))])
        # an image has no part in the map that it is compared with
        self.folds = [list(self._residuals(rows)) for rows in used.tensor_split(N_FOLDS)]

    def is_other_way_round(self) -> Bool[Tensor, " n"] | None:
        """For each image whether its other pose is the right one; None where held-out images do not confirm it."""
        volume, scores = self._found()
        held_out = list(self._residuals(self.held_out))
        own, control = (self._relative_power(held_out, volume, rolled) for rolled in (0, 1))
        gain = float(own.mean() / control.mean())
        deviations = float((own.mean() - control.mean()) / ((own.var() + control.var()) / len(own)).sqrt())
        logger.info("antisymmetric part of the map: held-out images contain %.2f times as much of it as expected by chance "
                    "(%.0f standard deviations)", gain, deviations)
        if gain < MIN_GAIN or deviations < MIN_GAIN_DEVIATIONS:
            return None
        everything = self._scores(self._residuals(torch.arange(len(self.half_sets))), volume)[0]
        for fold, score in zip(self.folds, scores, strict=True):
            everything[torch.cat([batch.index for batch in fold])] = score
        return everything < 0

    def _relative_power(self, batches: list[_Residuals], volume: FourierVolume, rolled: int) -> Tensor:
        """(n,) squares of the scores over what they are of noise; with ``rolled`` of other images in place of the own."""
        power = []
        for batch in batches:
            images = replace(batch.images, data=batch.images.data.roll(rolled, 0))
            score, variance = self._scores([replace(batch, images=images)], volume)
            power.append(score.square() / variance)
        return torch.cat(power)

    def _found(self) -> tuple[FourierVolume, list[Tensor]]:
        """The antisymmetric part, from random signs, and the scores of each fold's images against a map without them."""
        signs = [torch.randn(sum(len(batch.index) for batch in fold), generator=self.generator).sign().to(self.device)
                 for fold in self.folds]
        with Progress(MAX_STEPS, "resolve pseudo-symmetry", unit="steps") as progress:
            for step in range(MAX_STEPS):
                sums = [self._sums(fold, sign) for fold, sign in zip(self.folds, signs, strict=True)]
                total, before = sum(sums), torch.cat(signs)
                scores = [self._scores(fold, self._volume(total - own))[0]
                          for fold, own in zip(self.folds, sums, strict=True)]
                # relative to their spread: small scores must not fade away
                deviation = torch.cat(scores).std()
                signs = [torch.tanh(score / deviation) for score in scores]
                progress.update()
                if step >= MIN_STEPS and (torch.cat(signs) * before > 0).float().mean() > SETTLED_FRACTION:
                    break
        return self._volume(total), scores

    def _with_both_poses(self, rows: Tensor) -> Iterator[tuple[Tensor, WhitenedImages, Pose, Pose]]:
        """Batches of images with both of their poses."""
        for some in rows.split(BATCH_IMAGES):
            index = some.to(self.device)
            own = tuple(value[index] for value in self.poses.best())
            yield index, self.images.at(some.numpy()), *((q, d * self.images.scale) for q, d in (own, self.other_pose(*own)))

    def _residuals(self, rows: Tensor) -> Iterator[_Residuals]:
        for index, images, own, other in self._with_both_poses(rows):
            left = images.data - predicted(images, self.symmetric, *own)
            yield _Residuals(index, replace(images, data=left), own, other)

    def _symmetric_part(self) -> tuple[FourierVolume, Tensor]:
        """The mean of both ways round, as the half sets agree in it, and its power in each shell of a slice."""
        sums, group = RoundSums(self.box, self.images.max_radius_px, self.device), self.half_sets.group
        for half in (1, 2):
            for _, images, *both in self._with_both_poses(torch.from_numpy(self.half_sets.rows(half))):
                for q, d in both:
                    sums.insert(half, images, q, d, torch.full_like(d[:, 0], 0.5), group)
        mean = sums.pair(self.images.mask(), self.images.noise_spectrum).mean_reference * self.mask
        model = matching_model(mean, self.images.noise_spectrum, group, self.images.max_radius_px,
                               self.half_sets.max_displacement_px)
        return model.volume, model.map_power

    def _sums(self, batches: list[_Residuals], signs: Tensor) -> Tensor:
        """Of the antisymmetric part: the images' residuals, inserted one way round with their sign and the other way with
        its opposite."""
        sums = self._reconstructor()
        for batch, sign in zip(batches, signs.split([len(batch.index) for batch in batches]), strict=True):
            images, values = batch.images, sign[:, None] * batch.images.transfer * batch.images.data
            for (q, d), signed in ((batch.own, values), (batch.other, -values)):
                sums.insert_points(signed * images.displacement_phase(d).conj(), images.transfer.square(),
                                   slice_points(q, images.k))
        return sums.sums

    def _reconstructor(self) -> Reconstructor:
        return Reconstructor(self.box, max_radius_px=self.images.max_radius_px, device=self.device)

    def _volume(self, sums: Tensor) -> FourierVolume:
        """The antisymmetric part under a prior that grows towards the resolution, for pseudo-symmetry is one of the coarse
        shape: the power of the symmetric part times the square of the relative frequency. Noise counts as what the mask
        leaves of it."""
        reconstructor, max_radius_px = self._reconstructor(), self.images.max_radius_px
        reconstructor.sums = sums
        relative = torch.arange(len(self.power), device=self.device) / max_radius_px
        prior = self.power * relative.square() * reconstructor.padding ** 3 / self.mask.mean()
        return FourierVolume.from_real(reconstructor.posterior_mean(prior) * self.mask, max_radius_px=max_radius_px + 1)

    def _scores(self, batches: Iterable[_Residuals], volume: FourierVolume) -> tuple[Tensor, Tensor]:
        """Log-likelihood ratios (n,) of the images' own pose to the other, and their variance from noise."""
        score, variance = [], []
        for batch in batches:
            expected = predicted(batch.images, volume, *batch.own)
            score.append(4 * (batch.images.data.conj() * expected).real.sum(1))
            variance.append(8 * expected.abs().square().sum(1))
        return torch.cat(score), torch.cat(variance)
