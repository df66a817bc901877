"""The last stage: every particle matched against its half's map from all that is known of it, and searched for again
where the match is poor; then what is believed about each pose."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.poses import Poses
from ..geometry.symmetry import symmetric_distance_deg
from ..imaging.fourier import resize_volume
from ..imaging.projection import FourierVolume
from ..inference.match_results import match_results
from ..junk.features import PowerMap
from ..junk.labelling import junk_labels, simulated_features
from ..junk.simulation import JunkSimulation
from ..matching.matcher import Matcher, StartingPoses
from ..matching.matching_model import MatchingModel
from ..model.orientation_head import PoseEstimate
from ..particles.preparation import ImagePreparation
from ..progress import Progress
from ..results.gallery import write_gallery
from ..results.pose_results import Match, MatchEvidence, PoseResults
from ..uncertainty.calibration import Calibration, calibrate, n_simulated, poses_like
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


# plain tensors and dicts of them, as ``saved_state`` takes them
HalfState = dict[str, dict[str, Tensor]]
KeptHalf = Callable[[int, Callable[[], HalfState]], HalfState]


@dataclass(frozen=True)
class _MatchedHalf:
    """``rows`` (n,) of half set 1 or 2, what matching says of them, and what they were matched with; ``lost`` of them are
    particles whose pose was another before."""

    half: int
    rows: np.ndarray
    results: PoseResults
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

    def calibrated(self, show: Callable[[float], None]) -> tuple[PoseResults, Calibration]:
        """Results of all N particles, in their order, with junk labels, and the calibration of their errors on simulated images
        of the maps."""
        n_known = n_simulated(len(self.plan.particles), self.plan.config.coverage) // 2
        with _Shown(2 * n_known, "calibrating errors", show) as self._progress:
            results, known, found = zip(*(self._calibration_of(each, n_known) for each in self._halves), strict=True)
        back = np.argsort(np.concatenate([each.rows for each in self._halves]))
        truth = Poses(*(torch.cat([getattr(each.poses, name) for each in known])
                        for name in ("quaternion", "shift_angstrom")))
        defocus = torch.cat([each.ctf.defocus_u_angstrom for each in known])
        return PoseResults.concatenate(results)[back], calibrate(
            PoseResults.concatenate(found), truth, defocus, self.plan.group, self.plan.config.coverage,
            f"{len(defocus)} simulated images of the half maps")

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
        results = _results_of(state["arrays"], self.plan.particles.particle_id[rows])
        moved = symmetric_distance_deg(before, self.refinement.poses.best()[0][index], self.plan.group) > LOST_ABOVE_DEG
        lost = moved.cpu() & matcher.is_particle(torch.from_numpy(results.match.fit))
        return _MatchedHalf(half, rows, results, matcher, power_map, int(lost.sum()))

    def _calibration_of(self, matched: _MatchedHalf, n_known: int) -> tuple[PoseResults, SimulatedParticles, PoseResults]:
        """The half's results with junk labels, images of its map with known poses, and the results of those."""
        images, matcher, seed = self.images, matched.matcher, self.plan.config.seed + matched.half
        truth = _truth_like(self.pair, matched.half, images.box_size_px)
        model = replace(matcher.model, volume=FourierVolume.from_real(truth, max_radius_px=self.max_radius_px + 1))
        source = ImageSource.like(images, model, matcher.contrast_deviation, seed)
        junk = JunkSimulation(images, source, truth, matched.power_map, matcher)
        results = matched.results
        labels = junk_labels(results, matched.rows, junk, simulated_features(results, junk))
        known = particles_like(source, images, *poses_like(results, images, n_known, seed), seed)
        return replace(results, junk=labels), known, self._find(matcher, known)

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
        """Of particles ``rows`` (n,): their results, and their poses in the refinement's table, where they follow."""
        parts = []
        for some in _batches(rows):
            transforms = self.images.transforms(some)
            matches = matcher.match(*transforms, self._starts(some))
            features = power_map.features(matcher.model.images(*transforms), matches.hypotheses[:, 0])
            parts.append(match_results(matches, self.plan.particles.particle_id[some], self.plan.group,
                                       self.images.pixel_size_angstrom, features=features))
            index = torch.from_numpy(some).to(self.plan.device)
            self.refinement.poses.store(index, matches.hypotheses, 1 / self._scale, self.plan.group)
            self._progress.update(len(some))
        index = torch.from_numpy(rows).to(self.plan.device)
        return {"arrays": _state_of(PoseResults.concatenate(parts)),
                "poses": vars(self.refinement.poses.at(index))}

    def _find(self, matcher: Matcher, known: SimulatedParticles) -> PoseResults:
        """Of simulated images, by search: the rounds before have found the set's own poses as well."""
        prepared, parts = replace(self.images, particles=known), []
        for some in _batches(np.arange(len(known))):
            matches = matcher.find(*prepared.transforms(some))
            parts.append(match_results(matches, known.particle_id[some], self.plan.group, self.images.pixel_size_angstrom))
            self._progress.update(len(some))
        return PoseResults.concatenate(parts)

    def _starts(self, rows: np.ndarray) -> StartingPoses:
        """The refined hypotheses of particles ``rows`` (n,), and the network's answer where there is one."""
        index = torch.from_numpy(rows).to(self.images.device)
        quaternion = self.refinement.poses.quaternion[index]
        displacement = self.refinement.poses.displacement_px[index] * self._scale
        if self.network is not None:
            answer, moved = (x[rows].to(quaternion) for x in (self.network.quaternion, self.network.shift_angstrom))
            quaternion = torch.cat([quaternion, answer[:, None]], dim=1)
            displacement = torch.cat([displacement, (-moved / self.images.pixel_size_angstrom)[:, None]], dim=1)
        return StartingPoses(quaternion, displacement)


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
                        results: PoseResults) -> None:
    """Particles beside projections of the mean of the two maps."""
    images, max_radius_px = _final_images(plan, refinement, pair)
    write_gallery(path, images, _model(plan, refinement, pair, pair.mean_reference, images, max_radius_px), results)


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


# of arrays in a state that a run left when it was stopped -> fields of the results
_EVIDENCE_KEYS = {"weight": "weight", "rival_angle_rad": "alternative_angle_rad", "local_deviation_rad": "local_deviation_rad",
                  "shift_deviation_angstrom": "shift_deviation_angstrom", "alternative_quaternion": "strongest_alternative",
                  "junk_statistics": "junk_features", "elsewhere_px": "elsewhere_px"}


def _state_of(results: PoseResults) -> dict[str, Tensor]:
    """Plain tensors, as ``saved_state`` takes them."""
    arrays = {"quaternion": results.quaternion, "shift_angstrom": results.shift_angstrom, "bingham": results.bingham,
              "fit": results.match.fit, "residual": results.match.residual, "searched": results.match.searched}
    arrays |= {key: getattr(results.evidence, name) for key, name in _EVIDENCE_KEYS.items()}
    return {key: torch.from_numpy(values) for key, values in arrays.items()}


def _results_of(state: dict[str, Tensor], particle_id: np.ndarray) -> PoseResults:
    arrays = {key: values.cpu().numpy() for key, values in state.items()}
    evidence = MatchEvidence(**{name: arrays[key] for key, name in _EVIDENCE_KEYS.items()})
    match = Match(arrays["fit"], arrays["residual"], arrays["searched"], evidence=evidence)
    return PoseResults(particle_id, arrays["quaternion"], arrays["shift_angstrom"], arrays["bingham"], match=match)


def _truth_like(pair: HalfMapPair, half: int, box: int) -> Tensor:
    """A map (b, b, b) from which this half's map differs as it does from the truth.

    Half maps with errors of equal variance s differ by a variance of 2 s; a step of that difference over the square root
    of 2 from one of them has the variance s.
    """
    own, other = pair.reference[half - 1], pair.reference[2 - half]
    return resize_volume(own + (other - own) / 2 ** 0.5, box)
