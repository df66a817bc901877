"""The last stage: every particle matched against its half's map from all that is known of it, and searched for again
where the match is poor; then what is believed about each pose."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.poses import Poses
from ..imaging.fourier import resize_volume
from ..imaging.projection import FourierVolume
from ..inference.calibration import Calibration, calibration, n_simulated, poses_like
from ..inference.gallery import write_gallery
from ..inference.junk import verdict_arrays
from ..inference.junk_simulation import JunkSimulation
from ..inference.junk_statistics import PowerMap
from ..inference.matcher import Matcher
from ..inference.predict import PredictionSetup, matched_arrays
from ..inference.preparation import ImagePreparation
from ..inference.simulated_images import ImageSource, SimulatedParticles, particles_like
from ..matching.model import MatchingModel
from ..model.orientation_head import PoseEstimate
from ..progress import Progress
from .half_maps import BATCH_IMAGES, HalfMapPair, HalfSetRefinement, matching_model, next_radius_px
from .run import AbInitioPlan

# an eighth of a half set, within these limits: they are searched exhaustively
MIN_CALIBRATION, MAX_CALIBRATION = 48, 128


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


def match_finally(plan: AbInitioPlan, refinement: HalfSetRefinement, pair: HalfMapPair, network: PoseEstimate | None,
                  show) -> tuple[dict[str, np.ndarray], Calibration]:
    """Arrays of ``inference.predict.finalise`` for all N particles, in their order, and what their errors are; the
    refinement's poses follow."""
    images, max_radius_px = _final_images(plan, refinement, pair)
    box, scale = images.box_size_px, images.box_size_px / plan.particles.box_size_px
    setup = PredictionSetup(None, images, None, plan.group, plan.symmetry)
    of_halves, order, found_known, known = [], [], [], []
    n_known = n_simulated(len(plan.particles)) // 2
    # images matched so far, those that errors are learnt from included
    done, n_all = 0, len(plan.particles) + 2 * n_known

    def matched(n: int) -> None:
        nonlocal done
        done += n
        show(min(done / n_all, 1.0))

    with Progress(len(plan.particles), "match finally") as progress:
        for half in (1, 2):
            of_half = np.flatnonzero(refinement.halves == half)
            matcher = Matcher(_model(plan, refinement, pair, pair.reference[half - 1], images, max_radius_px),
                              adaptive=True, seed=plan.config.seed)
            draw = np.random.default_rng([plan.config.seed, half])
            n_calibration = min(max(len(of_half) // 8, MIN_CALIBRATION), MAX_CALIBRATION)
            some = np.sort(draw.permutation(of_half)[:n_calibration])
            transforms = images.transforms(some)
            matcher.calibrate(*transforms, _known(refinement, network, some, scale, images))
            power_map, parts = PowerMap.build(matcher.model, transforms[1]), []
            for rows in np.array_split(of_half, max(1, -(-len(of_half) // BATCH_IMAGES))):
                transforms = images.transforms(rows)
                matches = matcher.match(*transforms, _known(refinement, network, rows, scale, images))
                found = matched_arrays(matches, setup) | power_map.statistics(matcher.model.images(*transforms),
                                                                             matches.hypotheses[:, 0])
                index = torch.from_numpy(rows).to(plan.device)
                refinement.poses.store(index, matches.hypotheses, 1 / scale, plan.group)
                parts.append({name: value.cpu().numpy() for name, value in found.items()})
                order.append(rows)
                progress.update(len(rows))
                matched(len(rows))
            truth, arrays = _truth_like(pair, half, box), _joined(parts)
            source = ImageSource.like(images, replace(matcher.model, volume=FourierVolume.from_real(
                truth, max_radius_px=max_radius_px + 1)), matcher.contrast_deviation, plan.config.seed + half)
            simulation = JunkSimulation(images, source, truth, power_map, matcher)
            of_halves.append(arrays | verdict_arrays(arrays, of_half, simulation))
            particles = particles_like(source, images, *poses_like(arrays, images, n_known, plan.config.seed + half),
                                       plan.config.seed + half)
            found_known.append(_find_known(setup, matcher, particles, matched))
            known.append(particles)
    back = np.argsort(np.concatenate(order))
    arrays = {name: values[back] for name, values in _joined(of_halves).items()}
    truth = Poses(*(torch.cat([getattr(particles.poses, name) for particles in known])
                    for name in ("quaternion", "shift_angstrom")))
    defocus = torch.cat([particles.ctf.defocus_u_angstrom for particles in known])
    return arrays, calibration(_joined(found_known), truth, defocus, plan.group, plan.config.coverage,
                               f"{len(defocus)} simulated images of the half maps")


def write_final_gallery(plan: AbInitioPlan, refinement: HalfSetRefinement, pair: HalfMapPair, path: Path,
                        arrays: dict[str, np.ndarray]) -> None:
    """Particles beside projections of the mean of the two maps, from the arrays of ``inference.predict.finalise``."""
    images, max_radius_px = _final_images(plan, refinement, pair)
    mean = 0.5 * (pair.reference[0] + pair.reference[1])
    write_gallery(path, images, _model(plan, refinement, pair, mean, images, max_radius_px), arrays)


def _final_images(plan: AbInitioPlan, refinement: HalfSetRefinement, pair: HalfMapPair
                  ) -> tuple[ImagePreparation, float]:
    """The images at the box of the last matching, and its finest frequency in cycles per box."""
    max_radius_px = next_radius_px(pair, plan.max_radius_px)
    return replace(plan.images, box_size_px=refinement.round_box_px(max_radius_px)), max_radius_px


def _model(plan: AbInitioPlan, refinement: HalfSetRefinement, pair: HalfMapPair, volume: Tensor,
           images: ImagePreparation, max_radius_px: float) -> MatchingModel:
    box = images.box_size_px
    return matching_model(resize_volume(volume, box), _cropped(pair.noise_spectrum, box), plan.group, max_radius_px,
                          refinement.max_displacement_px * box / plan.particles.box_size_px)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
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


def _find_known(setup: PredictionSetup, matcher: Matcher, particles: SimulatedParticles, matched: Callable[[int], None]
                ) -> dict[str, np.ndarray]:
    """Arrays of images simulated to learn errors from, by search: the rounds before have found the set's poses as well.
    ``matched`` is told how many were."""
    prepared, found, n = replace(setup.images, particles=particles), [], len(particles)
    with Progress(n, "learn errors") as progress:
        for rows in np.array_split(np.arange(n), max(1, -(-n // BATCH_IMAGES))):
            matches = matcher.find(*prepared.transforms(rows))
            found.append({name: value.cpu().numpy() for name, value in matched_arrays(matches, setup).items()})
            progress.update(len(rows))
            matched(len(rows))
    return _joined(found)


def _cropped(spectrum: Tensor, box: int) -> Tensor:
    """Noise power per shell of the images' own box, at a smaller one."""
    own = 2 * (len(spectrum) - 1)
    return spectrum[:box // 2 + 1] * (box / own) ** 4


def _known(refinement: HalfSetRefinement, network: PoseEstimate | None, rows: np.ndarray, scale: float,
           images: ImagePreparation) -> KnownPoses:
    index = torch.from_numpy(rows).to(images.device)
    quaternion = refinement.poses.quaternion[index]
    displacement = refinement.poses.displacement_px[index] * scale
    if network is not None:
        answer, moved = network.quaternion[rows].to(quaternion), network.shift_angstrom[rows].to(quaternion)
        quaternion = torch.cat([quaternion, answer[:, None]], dim=1)
        displacement = torch.cat([displacement, (-moved / images.pixel_size_angstrom)[:, None]], dim=1)
    return KnownPoses(quaternion, displacement)
