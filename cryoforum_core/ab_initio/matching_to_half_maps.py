"""Every particle matched to the map of its half set, from its poses so far and that of the network, by an exhaustive search
where the match is poor; then the errors of the poses, calibrated on simulated images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..geometry.pose_hypotheses import PoseHypotheses
from ..geometry.poses import Poses, displacement_px
from ..geometry.symmetry import symmetric_distance_deg
from ..imaging.fourier import resize_volume
from ..imaging.projection import FourierVolume
from ..inference.match_results import match_results
from ..junk.features import PowerMap
from ..junk.labelling import junk_labels, simulated_features
from ..junk.simulation import JunkSimulation
from ..matching.matcher import Matcher, StartingPoses, with_map
from ..model.orientation_head import PoseEstimate
from ..particles.dataset import ParticleSource
from ..progress import Progress
from ..results.pose_results import PoseResults
from ..results.write import write_gallery
from ..uncertainty.calibration import Calibration, calibrate, known_particles, n_simulated
from ..uncertainty.simulated_images import ImageSource
from .half_map_pair import HalfMapPair, next_radius_px
from .half_sets import HalfSets, RoundImages, batches
from .hypothesis_refinement import store_hypotheses
from .particle_results import from_state, to_state
from .plan import AbInitioPlan
from .rounds import Refinement
from .stages.store import StageStore, State

# an eighth of a half set, within these limits: they are searched exhaustively
CALIBRATION_FRACTION = 1 / 8
MIN_CALIBRATION = 48
# at most
MAX_CALIBRATION = 128
# a pose that another one replaces which is further away was wrong
MISASSIGNED_ABOVE_DEG = 10.0

Show = Callable[[float], None]
"""Is told which part is done, 0 to 1."""


@dataclass(frozen=True)
class FinalImages:
    """All particles at the box of the final matching, the maps that they are matched to, and the poses found so far."""

    plan: AbInitioPlan
    scaled: RoundImages
    refinement: Refinement
    network: PoseEstimate | None
    """What the network finds for all N particles, on the CPU"""

    @classmethod
    def of(cls, plan: AbInitioPlan, half_sets: HalfSets, refinement: Refinement, network: PoseEstimate | None
           ) -> "FinalImages":
        return cls(plan, _scaled(plan, half_sets, refinement.pair), refinement, network)

    def starts(self, rows: Int[np.ndarray, " m"]) -> StartingPoses:
        """The refined hypotheses of particles ``rows``, and the network's pose where there is one."""
        images, poses, index = self.scaled.images, self.refinement.poses, torch.from_numpy(rows).to(self.plan.device)
        quaternion, displacement = poses.quaternion[index], poses.displacement_px[index] * self.scaled.scale
        if self.network is not None:
            found, shift = (x[rows].to(quaternion) for x in (self.network.quaternion, self.network.shift_angstrom))
            quaternion = torch.cat([quaternion, found[:, None]], dim=1)
            displacement = torch.cat([displacement, displacement_px(shift, images.pixel_size_angstrom)[:, None]], dim=1)
        return StartingPoses(quaternion, displacement)


@dataclass(frozen=True)
class MatchedHalf:
    """``rows`` of half set 1 or 2, what matching says of them, their poses now, and what they were matched with."""

    half: int
    rows: Int[np.ndarray, " m"]
    results: PoseResults
    poses: PoseHypotheses
    matcher: Matcher
    power_map: PowerMap
    n_recovered: int
    """Particles whose pose was misassigned before"""


@dataclass(frozen=True)
class MatchedParticles:
    """Each half set matched against its own map."""

    images: FinalImages
    halves: tuple[MatchedHalf, MatchedHalf]
    poses: PoseHypotheses
    """Of all N particles, as the matching leaves them"""

    @property
    def recovered_fraction(self) -> float:
        """Part of the particles whose pose was misassigned before."""
        return sum(each.n_recovered for each in self.halves) / len(self.poses)


def match_all(images: FinalImages, store: StageStore, name: str, show: Show) -> MatchedParticles:
    """Each half set is kept as it ends, as ``name`` and its number."""
    poses, halves = images.refinement.poses, []
    with _Shown(len(poses), "final matching", show) as progress:
        for half in (1, 2):
            halves.append(_matched_half(images, half, store, f"{name} {half}", progress))
    for each in halves:
        poses = poses.with_rows(torch.from_numpy(each.rows).to(images.plan.device), each.poses)
    return MatchedParticles(images, tuple(halves), poses)


def _matched_half(images: FinalImages, half: int, store: StageStore, name: str, progress: Progress) -> MatchedHalf:
    plan, rows = images.plan, images.scaled.half_sets.rows(half)
    matcher, power_map = _calibrated(images, half, rows)
    n_before = progress.done
    state = store.kept(name, lambda: match_half(images, matcher, power_map, rows, progress))
    progress.update(n_before + len(rows) - progress.done)  # nothing, but for a half that was kept
    poses = PoseHypotheses(**state["poses"])
    results = from_state(state["arrays"], plan.particles.particle_id[rows])
    before = images.refinement.poses.at(torch.from_numpy(rows).to(plan.device)).best()[0]
    has_moved = symmetric_distance_deg(before, poses.best()[0], plan.group) > MISASSIGNED_ABOVE_DEG
    is_recovered = has_moved.cpu() & matcher.is_particle(torch.from_numpy(results.match.fit))
    return MatchedHalf(half, rows, results, poses, matcher, power_map, int(is_recovered.sum()))


def _calibrated(images: FinalImages, half: int, rows: np.ndarray) -> tuple[Matcher, PowerMap]:
    seed = images.plan.config.seed
    matcher = Matcher(images.scaled.model(images.refinement.pair.reference[half - 1]), adaptive=True, seed=seed)
    n_sample = min(max(int(CALIBRATION_FRACTION * len(rows)), MIN_CALIBRATION), MAX_CALIBRATION)
    some = np.sort(np.random.default_rng([seed, half]).permutation(rows)[:n_sample])
    images_ft, ctf = images.scaled.images.transforms(some)
    matcher.calibrate(images_ft, ctf, images.starts(some))
    return matcher, PowerMap.build(matcher.model, ctf)


def match_half(images: FinalImages, matcher: Matcher, power_map: PowerMap, rows: Int[np.ndarray, " m"],
               progress: Progress) -> State:
    """Of particles ``rows`` of one half set: their results, and their hypotheses, in the order of the rows."""
    scaled, device, parts = images.scaled, images.plan.device, []
    half = int(scaled.half_sets.halves[rows[0]])
    # an image finds its own noise in its own half map, with either half of its pixels: their poses agree too well
    # (docs/decisions/0066-errors-of-ab-initio-poses.md)
    other = _of_other_half(images, matcher, half)
    poses = images.refinement.poses.at(torch.from_numpy(rows).to(device))
    for places in batches(np.arange(len(rows))):
        some = rows[places]
        transforms = scaled.images.transforms(some)
        matches = matcher.match(*transforms, images.starts(some), held_out=other.model.volume)
        features = power_map.features(matcher.model.images(*transforms), matches.hypotheses[:, 0],
                                      matches.contrast)
        store_hypotheses(poses, torch.from_numpy(places).to(device), matches.hypotheses, 1 / scaled.scale,
                         images.plan.group)
        parts.append(match_results(matches, images.plan.particles.particle_id[some], images.plan.group,
                                   scaled.images.pixel_size_angstrom, _searched(other, transforms), features))
        progress.update(len(some))
    return {"arrays": to_state(PoseResults.concatenate(parts)), "poses": vars(poses)}


def calibrate_errors(matched: MatchedParticles, show: Show) -> tuple[PoseResults, Calibration]:
    """Results of all N particles, in their order, with junk labels; and their errors, calibrated on images simulated of the
    maps at known poses."""
    plan = matched.images.plan
    n_known = n_simulated(len(matched.poses), plan.config.coverage) // 2
    with _Shown(2 * n_known, "calibrating errors", show) as progress:
        results, known, found, made = zip(*(_calibrated_half(matched.images, half, n_known, progress)
                                            for half in matched.halves), strict=True)
    back = np.argsort(np.concatenate([half.rows for half in matched.halves]))
    truth = Poses(*(torch.cat([getattr(each.poses, name) for each in known]) for name in ("quaternion", "shift_angstrom")))
    defocus = torch.cat([each.ctf.defocus_u_angstrom for each in known])
    return PoseResults.concatenate(results)[back], calibrate(
        PoseResults.concatenate(found), truth, defocus, plan.group, plan.config.coverage,
        f"{len(defocus)} {' and '.join(dict.fromkeys(made))}")


def _calibrated_half(images: FinalImages, matched: MatchedHalf, n_known: int, progress: Progress
                     ) -> tuple[PoseResults, ParticleSource, PoseResults, str]:
    """The half's results with junk labels; and images of its map at known poses, what matching says of those, and what they
    are."""
    prepared, matcher, seed = images.scaled.images, matched.matcher, images.plan.config.seed + matched.half
    truth = _truth_like(images.refinement.pair, matched.half, prepared.box_size_px)
    volume = FourierVolume.from_real(truth, max_radius_px=images.scaled.max_radius_px + 1)
    source = ImageSource.like(prepared, replace(matcher.model, volume=volume), matcher.contrast_deviation, seed)
    junk = JunkSimulation(prepared, source, truth, matched.power_map, matcher)
    results = matched.results
    results = replace(results, junk=junk_labels(results, matched.rows, junk, simulated_features(results, matched.rows, junk)))
    known, made = known_particles(prepared, source, matched.rows, results, n_known, seed)
    other = _of_other_half(images, matcher, matched.half)
    return results, known, _found(images, matcher, other, known, progress), made


def _of_other_half(images: FinalImages, matcher: Matcher, half: int) -> Matcher:
    return with_map(matcher, images.scaled.model(images.refinement.pair.reference[2 - half]).volume)


def _searched(other: Matcher, transforms: tuple[Tensor, Tensor]) -> Tensor:
    """Rotations (n, 4) by the map of the other half set, whatever those before: a misassigned image is part of its own half map,
    and fits it."""
    return other.search(other.model.images(*transforms)).quaternion[:, 0]


def _found(images: FinalImages, matcher: Matcher, other: Matcher, known: ParticleSource, progress: Progress) -> PoseResults:
    """Of simulated images, by search: the rounds before have found the set's poses as well."""
    prepared, parts = replace(images.scaled.images, particles=known), []
    for some in batches(np.arange(len(known))):
        transforms = prepared.transforms(some)
        parts.append(match_results(matcher.find(*transforms), known.particle_id[some], images.plan.group,
                                   prepared.pixel_size_angstrom, _searched(other, transforms)))
        progress.update(len(some))
    return PoseResults.concatenate(parts)


class _Shown(Progress):
    """Progress that a page shows as well."""

    def __init__(self, total: int, label: str, show: Show):
        super().__init__(total, label)
        self._show = show

    def update(self, n: int = 1, **figures: float) -> None:
        super().update(n, **figures)
        self._show(self.done / self.total)


def write_final_gallery(plan: AbInitioPlan, half_sets: HalfSets, pair: HalfMapPair, path: Path, results: PoseResults
                        ) -> None:
    """Particles beside projections of the mean of the two maps."""
    scaled = _scaled(plan, half_sets, pair)
    write_gallery(path, scaled.images, scaled.model(pair.mean_reference), results)


def _scaled(plan: AbInitioPlan, half_sets: HalfSets, pair: HalfMapPair) -> RoundImages:
    return half_sets.scaled(pair.noise_spectrum, next_radius_px(pair, plan.max_radius_px))


def _truth_like(pair: HalfMapPair, half: int, box: int) -> Tensor:
    """A map (b, b, b) that differs from this half map as much as the true map does.

    Half maps with errors of equal variance s differ by a variance of 2 s; a step of that difference over the square root
    of 2 from one of them has the variance s.
    """
    own, other = pair.reference[half - 1], pair.reference[2 - half]
    return resize_volume(own + (other - own) / 2 ** 0.5, box)
