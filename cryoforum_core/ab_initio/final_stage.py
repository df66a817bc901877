"""The last stage: every particle matched against its half's map from all that is known of it, and searched for again
where the match is poor; then what is believed about each pose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.poses import Poses
from ..geometry.symmetry import symmetric_distance_deg
from ..imaging.fourier import resize_volume
from ..imaging.projection import FourierVolume
from ..inference.predict import PredictionSetup, matched_arrays
from ..junk.classifier import simulated_like, verdict_arrays
from ..junk.features import PowerMap
from ..junk.simulation import JunkSimulation
from ..matching.matcher import Matcher
from ..matching.matching_model import MatchingModel
from ..model.orientation_head import PoseEstimate
from ..particles.preparation import ImagePreparation
from ..progress import Progress
from ..results.gallery import write_gallery
from ..uncertainty.calibration import Calibration, calibration, n_simulated, poses_like
from ..uncertainty.simulated_images import ImageSource, SimulatedParticles, particles_like
from .half_maps import (
    BATCH_IMAGES,
    HalfMapPair,
    HalfSetRefinement,
    PoseTable,
    matching_model,
    next_radius_px,
    resized_spectrum,
)
from .plan import AbInitioPlan

# an eighth of a half set, within these limits: they are searched exhaustively
MIN_CALIBRATION, MAX_CALIBRATION = 48, 128
# a pose that another one replaces which is further away was wrong
LOST_ABOVE_DEG = 10.0


@dataclass(frozen=True)
class KnownPoses:
    """Hypotheses for n images, as ``Matcher`` takes them: the refined poses, best first, then the network's."""

    quaternion: Tensor
    """(n, K, 4)"""
    displacement: Tensor
    """(n, K, 2) in px of the matching box"""

    def __getitem__(self, index) -> "KnownPoses":
        return KnownPoses(self.quaternion[index], self.displacement[index])

    def hypotheses(self, n_samples: int, limit_px: float, seed: int) -> tuple[Tensor, Tensor]:
        """All of them; displacements within the limit."""
        length = self.displacement.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return self.quaternion, self.displacement * (limit_px / length).clamp_max(1.0)


# plain tensors and dicts of them, as ``saved_state`` takes them
HalfState = dict[str, dict[str, Tensor]]
KeptHalf = Callable[[int, Callable[[], HalfState]], HalfState]


@dataclass(frozen=True)
class _MatchedHalf:
    """``rows`` (n,) of half set 1 or 2, what matching says of them, and what they were matched with; ``lost`` of them are
    particles whose pose was another before."""

    half: int
    rows: np.ndarray
    arrays: dict[str, np.ndarray]
    matcher: Matcher
    power_map: PowerMap
    lost: int


class FinalMatching:
    """Each half set against its own map of ``pair``. ``found_again``: the part of the particles whose pose was lost before."""

    def __init__(self, plan: AbInitioPlan, refinement: HalfSetRefinement, pair: HalfMapPair,
                 network: PoseEstimate | None, show: Callable[[float], None], kept: KeptHalf):
        """Matches all particles; the refinement's poses follow. ``show`` is told which part is done. ``kept`` takes the number
        of a half and what computes its state, and returns that state, of this run or of a stopped one."""
        self.plan, self.refinement, self.pair, self.network, self._kept = plan, refinement, pair, network, kept
        self.images, self.max_radius_px = _final_images(plan, refinement, pair)
        with _Shown(len(plan.particles), "match finally", show) as self._progress:
            self._halves = [self._half(half) for half in (1, 2)]
        self.found_again = sum(each.lost for each in self._halves) / len(plan.particles)

    def learn(self, show: Callable[[float], None]) -> tuple[dict[str, np.ndarray], Calibration]:
        """Arrays of ``inference.predict.finalise`` for all N particles, in their order, and what their errors are, from
        images simulated of the maps with known poses."""
        n_known = n_simulated(len(self.plan.particles), self.plan.config.coverage) // 2
        with _Shown(2 * n_known, "learn errors", show) as self._progress:
            arrays, known, found = zip(*(self._learnt(each, n_known) for each in self._halves))
        back = np.argsort(np.concatenate([each.rows for each in self._halves]))
        joined = {name: values[back] for name, values in _joined(arrays).items()}
        truth = Poses(*(torch.cat([getattr(each.poses, name) for each in known])
                        for name in ("quaternion", "shift_angstrom")))
        defocus = torch.cat([each.ctf.defocus_u_angstrom for each in known])
        return joined, calibration(_joined(found), truth, defocus, self.plan.group, self.plan.config.coverage,
                                   f"{len(defocus)} simulated images of the half maps")

    @property
    def _setup(self) -> PredictionSetup:
        return PredictionSetup(None, self.images, None, self.plan.group, self.plan.symmetry)

    @property
    def _scale(self) -> float:
        """Pixels of the matching box in one of the particles' own."""
        return self.images.box_size_px / self.plan.particles.box_size_px

    def _half(self, half: int) -> _MatchedHalf:
        """1 or 2."""
        rows = np.flatnonzero(self.refinement.halves == half)
        index = torch.from_numpy(rows).to(self.plan.device)
        before = self.refinement.poses.best()[0][index].clone()
        matcher, power_map = self._calibrated(half, rows)
        n_before = self._progress.done
        state = self._kept(half, lambda: self._match(matcher, power_map, rows))
        self._progress.update(n_before + len(rows) - self._progress.done)  # nothing, but for a half that was kept
        self.refinement.poses.replace_at(index, PoseTable(**state["poses"]))
        arrays = {name: values.cpu().numpy() for name, values in state["arrays"].items()}
        moved = symmetric_distance_deg(before, self.refinement.poses.best()[0][index], self.plan.group) > LOST_ABOVE_DEG
        lost = moved.cpu() & matcher.is_particle(torch.from_numpy(arrays["fit"]))
        return _MatchedHalf(half, rows, arrays, matcher, power_map, int(lost.sum()))

    def _learnt(self, matched: _MatchedHalf, n_known: int
                ) -> tuple[dict[str, np.ndarray], SimulatedParticles, dict[str, np.ndarray]]:
        """The half's arrays with its reasons, and images of its map with known poses beside what matching says of those."""
        images, matcher, seed = self.images, matched.matcher, self.plan.config.seed + matched.half
        truth = _truth_like(self.pair, matched.half, images.box_size_px)
        model = replace(matcher.model, volume=FourierVolume.from_real(truth, max_radius_px=self.max_radius_px + 1))
        source = ImageSource.like(images, model, matcher.contrast_deviation, seed)
        junk = JunkSimulation(images, source, truth, matched.power_map, matcher)
        arrays = matched.arrays | verdict_arrays(matched.arrays, matched.rows, junk, simulated_like(matched.arrays, junk))
        known = particles_like(source, images, *poses_like(arrays, images, n_known, seed), seed)
        return arrays, known, self._find(matcher, known)

    def _calibrated(self, half: int, rows: np.ndarray) -> tuple[Matcher, PowerMap]:
        seed = self.plan.config.seed
        matcher = Matcher(_model(self.plan, self.refinement, self.pair, self.pair.reference[half - 1], self.images,
                                 self.max_radius_px), adaptive=True, seed=seed)
        n_sample = min(max(len(rows) // 8, MIN_CALIBRATION), MAX_CALIBRATION)
        some = np.sort(np.random.default_rng([seed, half]).permutation(rows)[:n_sample])
        images_ft, ctf = self.images.transforms(some)
        matcher.calibrate(images_ft, ctf, self._starts(some))
        return matcher, PowerMap.build(matcher.model, ctf)

    def _match(self, matcher: Matcher, power_map: PowerMap, rows: np.ndarray) -> HalfState:
        """Of particles ``rows`` (n,): the arrays of ``matched_arrays``, and their poses in the refinement's table, where they
        follow."""
        parts = []
        for some in _batches(rows):
            transforms = self.images.transforms(some)
            matches = matcher.match(*transforms, self._starts(some))
            found = matched_arrays(matches, self._setup) | power_map.statistics(matcher.model.images(*transforms),
                                                                              matches.hypotheses[:, 0])
            index = torch.from_numpy(some).to(self.plan.device)
            self.refinement.poses.store(index, matches.hypotheses, 1 / self._scale, self.plan.group)
            parts.append({name: value.cpu().numpy() for name, value in found.items()})
            self._progress.update(len(some))
        index = torch.from_numpy(rows).to(self.plan.device)
        return {"arrays": {name: torch.from_numpy(values) for name, values in _joined(parts).items()},
                "poses": vars(self.refinement.poses.at(index))}

    def _find(self, matcher: Matcher, known: SimulatedParticles) -> dict[str, np.ndarray]:
        """Of images simulated to learn errors from, by search: the rounds before have found the set's poses as well."""
        prepared, parts = replace(self.images, particles=known), []
        for some in _batches(np.arange(len(known))):
            matches = matcher.find(*prepared.transforms(some))
            parts.append({name: value.cpu().numpy() for name, value in matched_arrays(matches, self._setup).items()})
            self._progress.update(len(some))
        return _joined(parts)

    def _starts(self, rows: np.ndarray) -> KnownPoses:
        """The refined hypotheses of particles ``rows`` (n,), and the network's answer where there is one."""
        index = torch.from_numpy(rows).to(self.images.device)
        quaternion = self.refinement.poses.quaternion[index]
        displacement = self.refinement.poses.displacement_px[index] * self._scale
        if self.network is not None:
            answer, moved = (x[rows].to(quaternion) for x in (self.network.quaternion, self.network.shift_angstrom))
            quaternion = torch.cat([quaternion, answer[:, None]], dim=1)
            displacement = torch.cat([displacement, (-moved / self.images.pixel_size_angstrom)[:, None]], dim=1)
        return KnownPoses(quaternion, displacement)


class _Shown(Progress):
    """Progress that a page shows as well."""

    def __init__(self, total: int, label: str, show: Callable[[float], None]):
        super().__init__(total, label)
        self._show = show

    def update(self, n: int = 1, **figures: float) -> None:
        super().update(n, **figures)
        self._show(self.done / self.total)


def _batches(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, -(-len(rows) // BATCH_IMAGES)))


def write_final_gallery(plan: AbInitioPlan, refinement: HalfSetRefinement, pair: HalfMapPair, path: Path,
                        arrays: dict[str, np.ndarray]) -> None:
    """Particles beside projections of the mean of the two maps, from the arrays of ``inference.predict.finalise``."""
    images, max_radius_px = _final_images(plan, refinement, pair)
    write_gallery(path, images, _model(plan, refinement, pair, pair.mean_reference, images, max_radius_px), arrays)


def _final_images(plan: AbInitioPlan, refinement: HalfSetRefinement, pair: HalfMapPair
                  ) -> tuple[ImagePreparation, float]:
    """The images at the box of the last matching, and its finest frequency in cycles per box."""
    max_radius_px = next_radius_px(pair, plan.max_radius_px)
    return replace(plan.images, box_size_px=refinement.round_box_px(max_radius_px)), max_radius_px


def _model(plan: AbInitioPlan, refinement: HalfSetRefinement, pair: HalfMapPair, volume: Tensor,
           images: ImagePreparation, max_radius_px: float) -> MatchingModel:
    box = images.box_size_px
    return matching_model(resize_volume(volume, box), resized_spectrum(pair.noise_spectrum, refinement.box_size_px, box),
                          plan.group, max_radius_px, refinement.max_displacement_px * box / plan.particles.box_size_px)


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of all parts, one after the other; those that every part has."""
    return {name: np.concatenate([part[name] for part in parts])
            for name in parts[0] if all(name in part for part in parts)}


def _truth_like(pair: HalfMapPair, half: int, box: int) -> Tensor:
    """A map (b, b, b) from which this half's map differs as it does from the truth.

    Half maps with errors of equal variance s differ by a variance of 2 s; a step of that difference over the square root
    of 2 from one of them has the variance s.
    """
    own, other = pair.reference[half - 1], pair.reference[2 - half]
    return resize_volume(own + (other - own) / 2 ** 0.5, box)
