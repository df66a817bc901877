"""Two orientations of each image that the map can hardly tell, because half a turn lays the molecule nearly on itself.

Maps of such a molecule come out as the mean of both ways round: nothing in such a mean tells the two orientations of an
image apart, so no further round does. What tells them is the odd part of the map, which changes its sign under the half
turn. Each image holds a slice of it, with an unknown sign: the signs and the odd part are found together, as the leading
component of what the mean leaves unexplained (power iteration on images and map in turn).
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..geometry.rotations import compose, inverse, quaternion_to_matrix
from ..geometry.symmetry import symmetry_group
from ..imaging.fourier import resize_volume
from ..imaging.masks import solvent_mask
from ..imaging.projection import FourierVolume, Reconstructor, slice_points
from ..imaging.resolution import fourier_shell_correlation
from ..imaging.symmetry_frame import symmetry_frame
from ..imaging.volume_frame import move_volume
from ..matching.likelihood import MatchingImages, predicted
from ..progress import Progress
from .half_maps import (
    BATCH_IMAGES,
    HalfMapPair,
    HalfSetRefinement,
    RoundSums,
    matching_model,
    next_radius_px,
    resized_spectrum,
)

logger = logging.getLogger("cryoforum")

# frequencies that show where the axis lies; mean FSC of a map and its turned copy up to the resolution: 0.84 for adenylate
# kinase (4AKE, two chains), 0.06 to 0.10 for the ribosome, its small subunit and one chain of 4AKE
AXIS_RADIUS_PX, MIN_AGREEMENT = 12.0, 0.5
_FIRST_SHELL = 3
MAX_IMAGES, HELD_OUT_FRACTION, N_FOLDS = 10_000, 0.2, 6
MIN_STEPS, MAX_STEPS, SETTLED_FRACTION = 8, 25, 0.995
# what held-out images hold of the odd part, over what others in their place would, and by how many deviations
MIN_GAIN, MIN_GAIN_DEVIATIONS = 1.4, 5.0


@dataclass(frozen=True)
class NearHalfTurn:
    """The map at ``r`` is nearly that at ``rotation r + translation_px``; ``agreement``: their mean FSC up to the resolution.

    ``rotation`` (4,) half a turn; ``translation_px`` (3,) across its axis, in px of the particles' own box.
    """

    rotation: Tensor
    translation_px: Tensor
    agreement: float

    def other(self, quaternion: Tensor, displacement_px: Tensor) -> tuple[Tensor, Tensor]:
        """The other orientations (n, 4) and displacements (n, 2) of images."""
        moved = quaternion_to_matrix(quaternion) @ self.translation_px
        return compose(quaternion, self.rotation.expand_as(quaternion)), displacement_px + moved[:, :2]


def near_half_turn(pair: HalfMapPair, box_size_px: int) -> NearHalfTurn | None:
    """The half turn that lays the map nearly on itself; None where there is no such. ``box_size_px``: the particles' own."""
    resolution_px = pair.resolution_radius_px
    volume = pair.mean_reference * solvent_mask(pair.mean_reference, resolution_px)
    group = symmetry_group("c2").to(volume)
    frame = symmetry_frame(volume, group, min(AXIS_RADIUS_PX, resolution_px))
    # W(r) = V(R (r - t)) has the axis in its middle: V is itself at R C R^-1 r + R (C t - t)
    half_turn = compose(compose(frame.rotation, group[1]), inverse(frame.rotation))
    translation_px = quaternion_to_matrix(frame.rotation) @ (
        quaternion_to_matrix(group[1]) @ frame.translation_px - frame.translation_px)
    turned = move_volume(volume, half_turn, -(quaternion_to_matrix(inverse(half_turn)) @ translation_px))
    fsc = fourier_shell_correlation(volume, turned)[_FIRST_SHELL:max(_FIRST_SHELL, int(resolution_px)) + 1]
    agreement = float(fsc.mean())
    if agreement < MIN_AGREEMENT:
        return None
    return NearHalfTurn(half_turn, translation_px * (box_size_px / len(volume)), agreement)


def told_apart(refinement: HalfSetRefinement, pair: HalfMapPair, turn: NearHalfTurn, max_radius_px: float, seed: int
               ) -> Tensor | None:
    """For each image whether its other orientation is the right one, bool (N,), or for each the other way; None where held-out images
    do not confirm that there is a difference.

    All images decide this together, as they do in classifications, before the half sets are refined apart again.
    """
    return _OddPart(refinement, pair, turn, next_radius_px(pair, max_radius_px), seed).is_turned()


@dataclass(frozen=True)
class _Residuals:
    """Images of rows ``index`` (n,) less the even part, and their two poses: (quaternion, displacement) in px of the box."""

    index: Tensor
    images: MatchingImages
    own: tuple[Tensor, Tensor]
    other: tuple[Tensor, Tensor]


class _OddPart:
    """The search for the odd part, on a sample of the images."""

    def __init__(self, refinement: HalfSetRefinement, pair: HalfMapPair, turn: NearHalfTurn, max_radius_px: float,
                 seed: int):
        self.refinement, self.turn, self.max_radius_px = refinement, turn, max_radius_px
        self.images = replace(refinement.images, box_size_px=refinement.round_box_px(max_radius_px))
        self.box, self.device = self.images.box_size_px, self.images.device
        self.noise_spectrum = resized_spectrum(pair.noise_spectrum, refinement.box_size_px, self.box)
        self.outline = resize_volume(solvent_mask(pair.mean_reference, pair.resolution_radius_px), self.box)
        self.even, self.power = self._even_part()
        self.generator = torch.Generator().manual_seed(seed)
        sample = torch.randperm(len(refinement.halves), generator=self.generator)[:MAX_IMAGES]
        self.held_out, used = sample.tensor_split([int(HELD_OUT_FRACTION * len(sample))])
        # the image that is judged has no part in the map that judges it
        self.folds = [list(self._residuals(rows)) for rows in used.tensor_split(N_FOLDS)]

    def is_turned(self) -> Tensor | None:
        """As ``told_apart``: bool (N,), None where held-out images do not confirm it."""
        odd, scores = self._found()
        held_out = list(self._residuals(self.held_out))
        own, control = (self._relative_power(held_out, odd, rolled) for rolled in (0, 1))
        gain = float(own.mean() / control.mean())
        deviations = float((own.mean() - control.mean()) / ((own.var() + control.var()) / len(own)).sqrt())
        logger.info("what tells two orientations apart: held-out images hold %.2f times as much of it as other images would "
                    "(%.0f standard deviations)", gain, deviations)
        if gain < MIN_GAIN or deviations < MIN_GAIN_DEVIATIONS:
            return None
        everything = self._scores(self._residuals(torch.arange(len(self.refinement.halves))), odd)[0]
        for fold, score in zip(self.folds, scores, strict=True):
            everything[torch.cat([batch.index for batch in fold])] = score
        return everything < 0

    def _relative_power(self, batches: list[_Residuals], odd: FourierVolume, rolled: int) -> Tensor:
        """(n,) squares of the scores over what they are of noise; with ``rolled`` of other images in place of the own."""
        power = []
        for batch in batches:
            images = replace(batch.images, data=batch.images.data.roll(rolled, 0))
            score, variance = self._scores([replace(batch, images=images)], odd)
            power.append(score.square() / variance)
        return torch.cat(power)

    def _found(self) -> tuple[FourierVolume, list[Tensor]]:
        """The odd part, from random signs, and the scores of each fold's images against a map without them."""
        signs = [torch.randn(sum(len(batch.index) for batch in fold), generator=self.generator).sign().to(self.device)
                 for fold in self.folds]
        with Progress(MAX_STEPS, "tell two orientations apart", unit="steps") as progress:
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

    def _poses(self, rows: Tensor) -> Iterator[tuple[Tensor, MatchingImages, tuple, tuple]]:
        """Batches of images with both of their poses."""
        scale = self.box / self.refinement.box_size_px
        for some in rows.split(BATCH_IMAGES):
            images = MatchingImages.from_transforms(*self.images.transforms(some.numpy()), self.noise_spectrum,
                                                    self.max_radius_px)
            index = some.to(self.device)
            own = tuple(value[index] for value in self.refinement.poses.best())
            yield index, images, *((q, d * scale) for q, d in (own, self.turn.other(*own)))

    def _residuals(self, rows: Tensor) -> Iterator[_Residuals]:
        for index, images, own, other in self._poses(rows):
            yield _Residuals(index, replace(images, data=images.data - predicted(images, self.even, *own)), own, other)

    def _even_part(self) -> tuple[FourierVolume, Tensor]:
        """The mean of both ways round, as the half sets agree in it, and its power in each shell of a slice."""
        sums = RoundSums(self.box, self.max_radius_px, self.device)
        for half in (1, 2):
            for _, images, *both in self._poses(torch.from_numpy(np.flatnonzero(self.refinement.halves == half))):
                for q, d in both:
                    sums.insert(half, images, q, d, torch.full_like(d[:, 0], 0.5), self.refinement.group)
        even = sums.pair(self.refinement.mask(self.box), self.noise_spectrum).mean_reference * self.outline
        model = matching_model(even, self.noise_spectrum, self.refinement.group, self.max_radius_px,
                               self.refinement.max_displacement_px)
        return model.volume, model.map_power

    def _sums(self, batches: list[_Residuals], signs: Tensor) -> Tensor:
        """Of the odd part: the images' residuals, inserted one way round with their sign and the other way with its
        opposite."""
        sums = Reconstructor(self.box, max_radius_px=self.max_radius_px, device=self.device)
        for batch, sign in zip(batches, signs.split([len(batch.index) for batch in batches]), strict=True):
            images, values = batch.images, sign[:, None] * batch.images.transfer * batch.images.data
            for (q, d), signed in ((batch.own, values), (batch.other, -values)):
                sums.insert_points(signed * images.displacement_phase(d).conj(), images.transfer.square(),
                                   slice_points(q, images.k))
        return sums.sums

    def _volume(self, sums: Tensor) -> FourierVolume:
        """The odd part under a prior that grows towards the resolution, for a near symmetry is one of the coarse shape: the
        power of the even part times the square of the relative frequency. Noise counts as what the outline leaves of it."""
        reconstructor = Reconstructor(self.box, max_radius_px=self.max_radius_px, device=self.device)
        reconstructor.sums = sums
        relative = torch.arange(len(self.power), device=self.device) / self.max_radius_px
        prior = self.power * relative.square() * reconstructor.padding ** 3 / self.outline.mean()
        return FourierVolume.from_real(reconstructor.posterior_mean(prior) * self.outline,
                                       max_radius_px=self.max_radius_px + 1)

    def _scores(self, batches: Iterable[_Residuals], odd: FourierVolume) -> tuple[Tensor, Tensor]:
        """Log-likelihood ratios (n,) of the images' own orientation to the other, and their variance from noise."""
        score, variance = [], []
        for batch in batches:
            expected = predicted(batch.images, odd, *batch.own)
            score.append(4 * (batch.images.data.conj() * expected).real.sum(1))
            variance.append(8 * expected.abs().square().sum(1))
        return torch.cat(score), torch.cat(variance)
