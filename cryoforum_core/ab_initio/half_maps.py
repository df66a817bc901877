"""Two half sets refined independently against their own maps, from one low-resolution start (gold standard).

Each round matches every image to the map of its half set, re-estimates the noise, and reconstructs. What the halves
agree in (FSC) says how far each map is to be trusted: it sets the prior of the next map, and the next round's finest
resolution. Only the lowest frequencies are shared, so that the two maps cannot drift apart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..geometry.rotations import angular_distance_rad, compose, random_quaternions
from ..imaging.fourier import resize_volume, shell_average
from ..imaging.masks import solvent_mask, soft_sphere
from ..imaging.projection import FourierVolume, Reconstructor, slice_points
from ..imaging.resolution import fourier_shell_correlation
from ..matching.exhaustive_search import SearchGrid
from ..matching.likelihood import MatchingImages, explained_power, predicted
from ..matching.matching_model import MatchingModel
from ..matching.refine import RefinedPoses, refine
from ..particles.preparation import ImagePreparation
from ..progress import Progress
from ..uncertainty.match_posterior import match_posterior, rotation_information

BATCH_IMAGES = 256
# RELION shares what is coarser than 40 A; in cycles per box it is as little
JOINED_RADIUS_PX = 3.0
FSC_LIMIT = 0.143
# an FSC of 1 would ask for no prior at all, one below this for no signal at all
_FSC_RANGE = (1e-3, 0.999)
_SPARE_SHELLS = 3
_REFINE_ITERATIONS = 3
# At radius 12 one particle in ten of the noisiest sets fits a wrong pose better than its own, by 7 at most; the details
# that tell come later (``docs/decisions.md``, Ab initio).
N_HYPOTHESES, KEPT_WITHIN_SCORE, N_SEARCHED_HYPOTHESES = 4, 15.0, 16
MAX_EXPLAINED_IMAGES, MIN_PROMISING_FSC = 1000, 0.3
# posterior weights below this are not worth an insertion
_SMALLEST_WEIGHT = 0.02


@dataclass
class PoseTable:
    """What is known of the pose of every particle: K hypotheses, best first, on the job's device.

    ``quaternion`` (N, K, 4); ``displacement_px`` (N, K, 2) in px of the particles' own box; ``score`` (N, K) the
    log-likelihood ratio to an empty image, -inf of those given up; ``weight`` (N, K) their posterior, which sums to 1;
    ``information`` (N, 3, 3) about the rotation vector (rad, in the molecule's frame) near the best.
    """

    quaternion: Tensor
    displacement_px: Tensor
    score: Tensor
    weight: Tensor
    information: Tensor

    @classmethod
    def of(cls, quaternion: Tensor, displacement_px: Tensor) -> "PoseTable":
        """One pose for each particle, (N, 4) and (N, 2), and nothing known about its error."""
        n = len(quaternion)
        score = quaternion.new_full((n, N_HYPOTHESES), -torch.inf)
        score[:, 0] = 0
        return cls(quaternion[:, None].repeat(1, N_HYPOTHESES, 1), displacement_px[:, None].repeat(1, N_HYPOTHESES, 1),
                   score, torch.isfinite(score).to(score.dtype), quaternion.new_zeros(n, 3, 3))

    @classmethod
    def empty(cls, n: int, device: torch.device) -> "PoseTable":
        quaternion = torch.zeros(n, 4, device=device)
        quaternion[:, 3] = 1
        return cls.of(quaternion, torch.zeros(n, 2, device=device))

    def best(self) -> tuple[Tensor, Tensor]:
        """Rotation (N, 4) and displacement in px (N, 2) of the best hypotheses."""
        return self.quaternion[:, 0], self.displacement_px[:, 0]

    def at(self, rows: Tensor) -> "PoseTable":
        """Those of particles ``rows`` (n,); a copy."""
        return PoseTable(*(values[rows] for values in vars(self).values()))

    def replace_at(self, rows: Tensor, other: "PoseTable") -> None:
        """Puts a table of n particles in the place of particles ``rows`` (n,)."""
        for name, values in vars(other).items():
            getattr(self, name)[rows] = values

    def put(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
        """Two hypotheses for every particle, (N, 4) and (N, 2) each, as likely as its best was: the first is believed until
        they are refined."""
        for k, (q, d) in enumerate((first, second)):
            self.quaternion[:, k], self.displacement_px[:, k] = q, d
        self.score[:, 1] = self.score[:, 0]
        self.score[:, 2:] = -torch.inf
        self.weight[:] = 0
        self.weight[:, 0] = 1

    def store(self, rows: Tensor, found: RefinedPoses, scale: float, group: Tensor) -> None:
        """Puts found hypotheses, best first with fields (n, k, ...), in place; displacements in units of ``scale`` px."""
        found = found[:, :N_HYPOTHESES]
        k = found.score.shape[1]
        weight = match_posterior(found, group).weight
        given_up = (weight <= 0) | (found.score < found.score[:, :1] - KEPT_WITHIN_SCORE)
        self.score[rows] = -torch.inf
        self.weight[rows] = 0
        self.quaternion[rows, :k], self.displacement_px[rows, :k] = found.quaternion, found.displacement_px * scale
        self.score[rows, :k] = found.score.masked_fill(given_up, -torch.inf)
        self.weight[rows, :k] = weight
        self.information[rows] = rotation_information(found.information[:, 0])


@dataclass(frozen=True)
class HalfMapPair:
    """Maps (b, b, b) of the two half sets: ``raw`` as they are measured, ``reference`` as the data support them; their
    FSC (b // 2 + 1,), and the noise power per shell of the images (b // 2 + 1,)."""

    raw: tuple[Tensor, Tensor]
    reference: tuple[Tensor, Tensor]
    fsc: Tensor
    noise_spectrum: Tensor
    sampled_fraction: float
    """Part of the Fourier voxels up to the finest resolution that the views reach"""

    @property
    def resolution_radius_px(self) -> float:
        """Cycles per box at which the FSC falls below 0.143."""
        below = torch.nonzero(self.fsc[1:] < FSC_LIMIT)
        return float(below[0] + 1) if len(below) else float(len(self.fsc) - 1)

    @property
    def mean_reference(self) -> Tensor:
        """(b, b, b), of both half sets."""
        return 0.5 * (self.reference[0] + self.reference[1])

    def without_solvent(self) -> "HalfMapPair":
        """The references with the solvent around the molecule flat: its noise would only mislead the matching.

        Solvent is three quarters of the sphere and more; taking it out lowered the error of poses from 1.31 to 1.06
        times the Cramer-Rao bound (``docs/decisions.md``, Ab initio). Both half maps get one outline, as fine as they
        agree.
        """
        mask = solvent_mask(self.mean_reference, self.resolution_radius_px)
        return replace(self, reference=(self.reference[0] * mask, self.reference[1] * mask))


def refine_hypotheses(images: MatchingImages, model: MatchingModel, quaternion: Tensor, displacement_px: Tensor,
                      score: Tensor) -> RefinedPoses:
    """Refines the hypotheses (n, K, 4), (n, K, 2) that are not given up, ``score`` (n, K); best first."""
    n, k = score.shape
    image, hypothesis = torch.nonzero(torch.isfinite(score), as_tuple=True)
    refined = refine(images[image], model.volume, quaternion[image, hypothesis], displacement_px[image, hypothesis],
                     _REFINE_ITERATIONS, model.max_displacement_px)
    found = RefinedPoses(quaternion.clone(), displacement_px.clone(), torch.full_like(score, -torch.inf),
                         refined.information.new_zeros(n, k, 5, 5))
    for name in ("quaternion", "displacement_px", "score", "information"):
        getattr(found, name)[image, hypothesis] = getattr(refined, name)
    order = found.score.argsort(dim=1, descending=True, stable=True)
    return found[torch.arange(n, device=order.device)[:, None], order]


def matching_model(volume: Tensor, noise_spectrum: Tensor, group: Tensor, max_radius_px: float,
                   max_displacement_px: float) -> MatchingModel:
    """A map made of the images themselves as their model: its amplitude is theirs."""
    fourier_volume = FourierVolume.from_real(volume, max_radius_px=max_radius_px + 1, with_gradient=True)
    views = random_quaternions(200, torch.Generator().manual_seed(0)).to(volume.device)
    power = shell_average(fourier_volume.project(views).abs().square().mean(0), volume.shape[-1])
    return MatchingModel(fourier_volume, noise_spectrum, torch.ones_like(noise_spectrum), power, group, max_radius_px,
                         max_displacement_px)


class HalfSetRefinement:
    """The images of two half sets, their poses, and what a round does with them.

    ``images`` are prepared at any box; a round crops them to what its resolution needs. ``halves`` (N,) of 1 and 2.
    """

    def __init__(self, images: ImagePreparation, halves: np.ndarray, group: Tensor, mask_radius_fraction: float,
                 max_displacement_px: float):
        self.images, self.halves, self.group = images, halves, group
        self.mask_radius_fraction, self.max_displacement_px = mask_radius_fraction, max_displacement_px
        self.poses = PoseTable.empty(len(halves), images.device)
        self.progress: Callable[[float, str], None] = lambda done, label: None

    @property
    def box_size_px(self) -> int:
        return self.images.box_size_px

    def round_box_px(self, max_radius_px: float) -> int:
        """The smallest even box in which a round to ``max_radius_px`` can be done."""
        return min(self.box_size_px, 2 * int(np.ceil(max_radius_px + 2)))

    def mask(self, box_size_px: int) -> Tensor:
        """The soft sphere (b, b, b) that holds the particle, in a box of b px."""
        return soft_sphere(box_size_px, self.mask_radius_fraction * box_size_px, 0.05 * box_size_px, self.images.device)

    def global_round(self, references: tuple[Tensor, Tensor], noise_spectrum: Tensor, max_radius_px: float,
                     step_deg: float, search_radius_px: float) -> HalfMapPair:
        """Searches every image anywhere in SO(3) against its half's reference, then reconstructs."""
        def matched(model: MatchingModel):
            grid = SearchGrid.build(model, step_deg, search_radius_px)
            return lambda images, rows: grid.search(images, N_SEARCHED_HYPOTHESES, keep=N_HYPOTHESES)

        return self._round(references, noise_spectrum, max_radius_px, matched, "search all")

    def local_round(self, pair: HalfMapPair, max_radius_px: float) -> HalfMapPair:
        """Refines every hypothesis against its half's reference, then reconstructs."""
        def matched(model: MatchingModel):
            return lambda images, rows: refine_hypotheses(images, model, self.poses.quaternion[rows],
                                                          self._displacement(rows), self.poses.score[rows])

        return self._round(pair.reference, pair.noise_spectrum, max_radius_px, matched, "refine all")

    def reconstruct(self, noise_spectrum: Tensor, max_radius_px: float) -> HalfMapPair:
        """Maps from the current poses, as they are."""
        return self._round(None, noise_spectrum, max_radius_px, None, "reconstruct")

    def explained(self, pair: HalfMapPair, first_radius_px: float) -> float:
        """How well the map of the **other** half set explains images in the shells after ``first_radius_px``: the part of
        what they hold beyond noise and the half maps' agreement promises, relative to that part in the shells before.
        NaN where the half maps agree in no shell after it, or nothing is to be explained.

        Half maps that started from one wrong map agree in what they made of it, far beyond the start, but hardly explain
        an image there: 0.1 to 0.4, where right maps reach 0.8 and more (``docs/decisions.md``, Ab initio). What ice,
        neighbours and junk hold lowers both parts.
        """
        shells = torch.arange(len(pair.fsc), device=pair.fsc.device)
        below = torch.nonzero((pair.fsc < MIN_PROMISING_FSC) & (shells > first_radius_px))
        last = min(int(below[0]) - 1 if len(below) else len(pair.fsc) - 2, self.box_size_px // 2 - 1)
        first = int(first_radius_px)
        if last <= first:
            return math.nan
        found, signal = self._explained_shells(pair, last)
        signal = signal * pair.fsc[:last + 1].clamp_min(0).to(signal)
        parts = [float(found[some].sum() / signal[some].sum()) if signal[some].sum() > 0 else math.nan
                 for some in (slice(2, first + 1), slice(first + 1, last + 1))]
        return parts[1] / parts[0] if parts[0] > 0 else math.nan

    def _explained_shells(self, pair: HalfMapPair, last: int) -> tuple[Tensor, Tensor]:
        """Power that the other half's map explains, and power beyond noise, in each shell (last + 1,)."""
        found, signal = (torch.zeros(last + 1, device=self.images.device) for _ in range(2))
        for half in (1, 2):
            reference = resize_volume(pair.reference[2 - half], self.box_size_px)
            volume = FourierVolume.from_real(reference, max_radius_px=last + 1)
            rows = np.flatnonzero(self.halves == half)[:MAX_EXPLAINED_IMAGES]
            for some in np.array_split(rows, max(1, -(-len(rows) // BATCH_IMAGES))):
                # the background's noise, not that of the last round, which holds what no map explained
                images = MatchingImages.from_transforms(*self.images.transforms(some), self._background_spectrum, last)
                index = torch.from_numpy(some).to(self.images.device)
                model = predicted(images, volume, *(value[index] for value in self.poses.best()))
                shell = images.radius.round().long().clamp_max(last)
                found.index_add_(0, shell, explained_power(images, model).sum(0))
                signal.index_add_(0, shell, (images.data.abs().square() - 1).sum(0))
        return found, signal

    def _displacement(self, rows: Tensor) -> Tensor:
        return self.poses.displacement_px[rows] * (self._scaled.box_size_px / self.box_size_px)

    def _round(self, references, noise_spectrum: Tensor, max_radius_px: float, matched, label: str) -> HalfMapPair:
        self._scaled = replace(self.images, box_size_px=self.round_box_px(max_radius_px))
        noise_spectrum = resized_spectrum(noise_spectrum, self.box_size_px, self._scaled.box_size_px)
        sums = RoundSums(self._scaled.box_size_px, max_radius_px, self.images.device)
        with Progress(len(self.halves), label) as progress:
            for half in (1, 2):
                model = match = None
                if references is not None:
                    reference = resize_volume(references[half - 1], self._scaled.box_size_px)
                    model = matching_model(reference, noise_spectrum, self.group, max_radius_px,
                                           self.max_displacement_px * self._scaled.box_size_px / self.box_size_px)
                    match = matched(model)
                of_half = np.flatnonzero(self.halves == half)
                for rows in np.array_split(of_half, max(1, -(-len(of_half) // BATCH_IMAGES))):
                    self._batch(rows, half, model, match, noise_spectrum, max_radius_px, sums)
                    progress.update(len(rows))
                    self.progress(progress.done / progress.total, label)
        return self._own_box(sums.pair(self.mask(self._scaled.box_size_px), noise_spectrum), noise_spectrum)

    def _batch(self, rows: np.ndarray, half: int, model: MatchingModel | None, match, noise_spectrum: Tensor,
               max_radius_px: float, sums: "RoundSums") -> None:
        if not len(rows):
            return
        images = MatchingImages.from_transforms(*self._scaled.transforms(rows), noise_spectrum, max_radius_px)
        index = torch.from_numpy(rows).to(self.images.device)
        if match is not None:
            found = match(images, index)
            self.poses.store(index, found, self.box_size_px / self._scaled.box_size_px, self.group)
            best = found[:, 0]
            sums.add_residual(images, predicted(images, model.volume, best.quaternion, best.displacement_px))
        weight = self.poses.weight[index]
        image, hypothesis = torch.nonzero(weight > _SMALLEST_WEIGHT, as_tuple=True)
        sums.insert(half, images[image], self.poses.quaternion[index[image], hypothesis],
                    self._displacement(index)[image, hypothesis], weight[image, hypothesis], self.group)

    def _own_box(self, pair: HalfMapPair, before: Tensor) -> HalfMapPair:
        """The noise spectrum back at the images' own box; maps stay at the round's."""
        spectrum = resized_spectrum(pair.noise_spectrum, self._scaled.box_size_px, self.box_size_px)
        if len(spectrum) > len(pair.noise_spectrum):
            # beyond the round's resolution nothing new is known
            full = self._full_spectrum.clone()
            n = len(pair.noise_spectrum) - 2
            full[:n] = spectrum[:n]
            spectrum = full
        self._full_spectrum = spectrum
        return replace(pair, noise_spectrum=spectrum)

    def set_noise(self, background_spectrum: Tensor, current_spectrum: Tensor | None = None) -> None:
        """The noise power per shell (B // 2 + 1,) of the images' own box, from their background, and as the rounds so
        far have found it."""
        self._background_spectrum = background_spectrum
        self._full_spectrum = background_spectrum if current_spectrum is None else current_spectrum


def resized_spectrum(spectrum: Tensor, box_size_px: int, new_box_size_px: int) -> Tensor:
    """Noise power per shell of the same images Fourier-cropped (or not) to another box; zeros where it is unknown."""
    scale = (new_box_size_px / box_size_px) ** 4
    n = new_box_size_px // 2 + 1
    if n <= len(spectrum):
        return spectrum[:n] * scale
    return torch.cat([spectrum, spectrum.new_zeros(n - len(spectrum))]) * scale


class RoundSums:
    """What a round collects: the insertions of each half set, and the power that the maps leave unexplained."""

    def __init__(self, box_size_px: int, max_radius_px: float, device: torch.device):
        self.box_size_px, self.max_radius_px = box_size_px, max_radius_px
        self.halves = {half: Reconstructor(box_size_px, max_radius_px=max_radius_px, device=device) for half in (1, 2)}
        n_shells = box_size_px // 2 + 1
        self._residual, self._count = torch.zeros(n_shells, device=device), torch.zeros(n_shells, device=device)

    def add_residual(self, images: MatchingImages, model: Tensor) -> None:
        shells = images.radius.round().long().clamp_max(len(self._residual) - 1)
        left = (images.data - model).abs().square().sum(0)
        self._residual.index_add_(0, shells, left)
        self._count.index_add_(0, shells, torch.full_like(left, len(images)))

    def insert(self, half: int, images: MatchingImages, quaternion: Tensor, displacement_px: Tensor,
               weight: Tensor, group: Tensor) -> None:
        """Images (n, m) at poses (n, 4), displaced by (n, 2), with ``weight`` (n,), and at the poses that the symmetry
        makes equivalent."""
        centred = (weight[:, None] * images.transfer) * images.data * images.displacement_phase(displacement_px).conj()
        power = weight[:, None] * images.transfer.square()
        for element in group.to(quaternion):
            self.halves[half].insert_points(centred, power, slice_points(compose(quaternion, element), images.k))

    def pair(self, mask: Tensor, noise_spectrum: Tensor) -> HalfMapPair:
        """Half maps, their FSC, and the references that it allows."""
        first, second = self.halves[1], self.halves[2]
        raw = tuple(half.volume(1e-2) for half in (first, second))
        fsc = fourier_shell_correlation(raw[0] * mask, raw[1] * mask).float()
        self._join(first, second)
        power = _prior_power(fsc, first, second)
        reference = tuple(half.posterior_mean(power) * mask for half in (first, second))
        relative = torch.where(self._count > 0, self._residual / self._count.clamp_min(1), 1.0)
        return HalfMapPair(raw, reference, fsc, noise_spectrum * relative, _sampled_fraction(first, second))

    @staticmethod
    def _join(first: Reconstructor, second: Reconstructor) -> None:
        joined = first.radius_px() <= JOINED_RADIUS_PX
        mean = 0.5 * (first.sums + second.sums)
        first.sums = torch.where(joined, mean, first.sums)
        second.sums = torch.where(joined, mean, second.sums)


def _prior_power(fsc: Tensor, first: Reconstructor, second: Reconstructor) -> Tensor:
    """Signal power per Fourier voxel and shell: the FSC's signal-to-noise ratio ``FSC / (1 - FSC)`` of a half map times
    the noise of its voxels, one over their mean weight (Scheres 2012, J. Struct. Biol. 180, 519)."""
    weight = 0.5 * (first.shell_weight() + second.shell_weight())
    n = len(weight)
    trusted = fsc[:n].clamp(*_FSC_RANGE)
    # from the first shell that is noise on, agreement is chance
    trusted = torch.where(torch.cumsum((fsc[:n] < 0.05).int(), 0) > 1, _FSC_RANGE[0], trusted)
    return trusted / (1 - trusted) / weight.clamp_min(1e-20)


def _sampled_fraction(first: Reconstructor, second: Reconstructor) -> float:
    """Part of the voxels within the finest resolution whose weight is above a hundredth of their shell's mean."""
    weight = first.sums[0, 2] + second.sums[0, 2]
    radius = first.radius_px()
    shells = radius.round().long()
    mean = (first.shell_weight() + second.shell_weight())[shells.clamp_max(len(first.shell_weight()) - 1)]
    inside = (radius <= first.max_radius_px) & (radius >= 2)
    inside[..., 0] = False  # its half in memory got only half of the slices
    return float((weight > 0.01 * mean)[inside].float().mean())


def pose_change_deg(before: Tensor, after: Tensor) -> float:
    """Median angle in degrees between two sets of poses (N, 4)."""
    return float(torch.rad2deg(angular_distance_rad(before, after)).median())


def next_radius_px(pair: HalfMapPair, limit_px: float) -> float:
    """How far the next round may look: some shells beyond what the halves agree in."""
    return min(limit_px, 1.1 * pair.resolution_radius_px + _SPARE_SHELLS)
