"""Calibration of expected errors and bounds on particles with known poses: labelled ones, or simulated images of the map."""

import csv
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..catalogue import fewest_known
from ..config import DEFAULT_COVERAGE
from ..geometry.bingham import OrientationPosterior
from ..geometry.pose_errors import rotation_errors_deg, shift_errors_angstrom
from ..geometry.poses import Poses, displacement_px
from ..geometry.rotations import (
    compose,
    in_plane_quaternion,
    quaternion_to_matrix,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from ..particles.dataset import ParticleSource
from ..particles.image_preparation import ImagePreparation
from ..results.pose_results import ErrorEstimates, PoseResults
from ..results.write import poses_of
from ..run_directory import RunDirectory, atomic_path
from .coverage import EmpiricalCoverage, cross_validated
from .error_model import ErrorModel, Evidence
from .match_posterior import (
    MatchPosterior,
    local_deviation_of_bingham,
    local_scale,
    misassignment_probability,
    uniform_angles_rad,
)
from .simulated_images import ImageSource, particles_like
from .transplanted_images import TransplantedParticles

logger = logging.getLogger("cryoforum")

# simulated images for a set: a quarter of it, between these two. Empirical coverage at 90 % is within 1.2 % of nominal with
# 600 of them, 0.8 % with 1,500, 0.6 % with 2,500. A small set gets no more than it has images.
MIN_KNOWN = 1500
MAX_KNOWN = 2500
# simulated viewing directions are those found, spread by this standard deviation, so that they fill the same regions
VIEW_SPREAD_RAD = 0.15
# standard deviation of simulated shifts where those found are not trusted, in boxes; as in training
UNTRUSTED_SHIFT_BOXES = 0.04
# of a network alone: an expected error of 30 degrees has a figure of merit of 1 / e
MERIT_SCALE_DEG = 30.0
# images that give their noise to others fit no worse than so many standard deviations below the usual ones: no junk
WELL_MATCHED_DEVIATIONS = -2.5
# and have at least this part of the set's contrast: where contrasts differ much, images of ice fit no worse than so many
# standard deviations
WELL_MATCHED_CONTRAST = 0.4
# a particle that was misassigned is still in its residual, at its own pose, and misleads the match of the new one: where
# fewer poses are certain, noise is simulated
MIN_MEAN_TRUST = 0.95
# fewer different ones are no sample of a set's noise
MIN_WELL_MATCHED = 100
# of Maxwell's distribution: expected errors are means, and the median of split errors is not moved by wrong poses
MEAN_OVER_MEDIAN = 1.596 / 1.538
# below this many values a population has no robust standard deviation
MIN_POPULATION = 8

Predict = Callable[[ImagePreparation, np.ndarray], PoseResults]
"""(images, rows (n,)) -> what matching, or the network alone, says of them, before their errors are estimated."""


@dataclass(frozen=True)
class Calibration:
    """An error model, the poses it was fitted to, and its cross-validated coverage.

    ``quaternion``: true. ``has_shifts``: the errors of shifts are known too, by matching.
    """

    model: ErrorModel
    coverage: float
    source: str
    validation: EmpiricalCoverage
    quaternion: Float[Tensor, "n 4"]
    defocus_angstrom: Float[Tensor, " n"]
    has_shifts: bool

    def summary(self) -> dict:
        """For ``summary.json``: nominal and empirical coverage."""
        within = self.validation.error_deg <= self.validation.bound_deg
        return {"error_bound_coverage": self.coverage, "error_bound_held": float(within.double().mean()),
                "calibration_source": self.source, "n_calibration_particles": len(within)}

    def write(self, run: RunDirectory) -> None:
        """calibration.npz (one row for each known particle), calibration.csv (nominal and empirical coverage)."""
        of_shifts = {"shift_error_bound_angstrom": self.validation.shift_bound_angstrom.numpy(),
                     "shift_error_angstrom": self.validation.shift_error_angstrom.numpy()} if self.has_shifts else {}
        with atomic_path(run.calibration) as temporary:
            np.savez(temporary, expected_error_deg=self.validation.expected_error_deg.numpy(),
                     error_bound_deg=self.validation.bound_deg.numpy(), error_deg=self.validation.error_deg.numpy(),
                     view_direction=quaternion_to_matrix(self.quaternion)[:, 2].numpy(),
                     defocus_angstrom=self.defocus_angstrom.numpy(), coverage=self.coverage,
                     source=self.source, **of_shifts)
        with atomic_path(run.calibration_table) as temporary, open(temporary, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("nominal_coverage", "empirical_coverage", "n_particles"))
            for nominal, empirical in zip(self.validation.nominal, self.validation.empirical, strict=True):
                rows.writerow((nominal, round(empirical, 4), len(self.validation.error_deg)))


def simulated_calibration(images: ImagePreparation, source: ImageSource, results: PoseResults, predict: Predict,
                          group: Float[Tensor, "g 4"], coverage: float, seed: int,
                          shift_rms_angstrom: float | None = None) -> Calibration:
    """On images of the source's map, made like the set's own and predicted as they were.

    ``results``: of the set itself; its viewing directions and shifts are those of the simulated images.
    ``shift_rms_angstrom``: see ``poses_like``.
    """
    n = n_simulated(len(images.particles), coverage)
    known, made = known_particles(images, source, np.arange(len(results)), results, n, seed, shift_rms_angstrom)
    found = predict(replace(images, particles=known), np.arange(n))
    logger.info("errors calibrated on %d %s", n, made)
    return calibrate(found, known.poses, known.ctf.defocus_u_angstrom, group, coverage, f"{n} {made}")


def known_particles(images: ImagePreparation, source: ImageSource, rows: Int[np.ndarray, " m"], results: PoseResults, n: int,
                    seed: int, shift_rms_angstrom: float | None = None) -> tuple[ParticleSource, str]:
    """n particles with known poses like the set's own, and what they are.

    ``results`` of the set's images ``rows``. Where enough of these are matched, they give the noise (module
    ``transplanted_images``); else it is simulated by the spectrum of the set's background.
    """
    poses, of = poses_like(results, images, n, seed, shift_rms_angstrom), well_matched(results, n, seed)
    if of is None:
        return particles_like(source, images, *poses, seed), "simulated images of the map"
    return (TransplantedParticles.of_matched(images, source, rows[of], results[of], *poses, seed),
            "images of the set, each particle replaced by a projection at a known pose")


def well_matched(results: PoseResults, n: int, seed: int) -> Int[np.ndarray, " n"] | None:
    """Rows drawn from the results whose pose can be trusted, each with its probability of a right pose; None where nothing
    was matched, or too few poses can be trusted."""
    if results.evidence is None or results.evidence.contrast is None:
        return None
    evidence = evidence_of(results)
    trust = (evidence.posterior.weight[:, 0] * (1 - misassignment_probability(evidence.fit))).double().numpy()
    is_good = (evidence.fit.numpy() >= WELL_MATCHED_DEVIATIONS) & (results.evidence.contrast >= WELL_MATCHED_CONTRAST)
    if results.junk is not None:
        is_good &= results.junk.particle_probability >= 0.5
    trust = np.where(is_good, trust, 0.0)
    if is_good.sum() < MIN_WELL_MATCHED or trust[is_good].mean() < MIN_MEAN_TRUST:
        return None
    return np.random.default_rng([seed, 0x7A]).choice(len(trust), n, p=trust / trust.sum())


def n_simulated(n_particles: int, coverage: float) -> int:
    """The number of simulated images for the calibration of so many particles."""
    return max(min(max(n_particles // 4, min(n_particles, MIN_KNOWN)), MAX_KNOWN), fewest_known(coverage))


def calibrate(found: PoseResults, truth: Poses, defocus_angstrom: Float[Tensor, " n"], group: Float[Tensor, "g 4"],
              coverage: float, source: str) -> Calibration:
    """From what was found of n particles and their known poses."""
    group = group.cpu().double()
    poses = poses_of(found)
    error_rad = torch.deg2rad(rotation_errors_deg(poses.quaternion, truth.quaternion.cpu().double(), group))
    shift_error = shift_errors_angstrom(poses.shift_angstrom, truth.shift_angstrom.cpu().double())
    evidence, uniform = evidence_of(found), uniform_angles_rad(group)
    model = ErrorModel.fit(evidence, error_rad, shift_error, uniform, coverage)
    validation = cross_validated(evidence, error_rad, shift_error, uniform, coverage)
    return Calibration(model, coverage, source, validation, truth.quaternion.cpu(), defocus_angstrom.cpu(),
                       found.evidence is not None)


def poses_like(results: PoseResults, images: ImagePreparation, n: int, seed: int,
               shift_rms_angstrom: float | None = None) -> tuple[Float[Tensor, "{n} 4"], Float[Tensor, "{n} 2"]]:
    """Poses with the viewing directions that were found, rotated in plane and tilted a little, and displacements
    in px of the matching box.

    A pose is replaced by a random one with its probability of misassignment. Poses of a network alone are never used: it
    would be asked again what it has answered. ``shift_rms_angstrom``: standard deviation of shifts that are not trusted,
    where the network was trained for one.
    """
    if shift_rms_angstrom is None:
        untrusted_px = UNTRUSTED_SHIFT_BOXES * images.box_size_px
    else:
        untrusted_px = shift_rms_angstrom / images.pixel_size_angstrom
    generator = torch.Generator().manual_seed(seed)
    found = poses_of(results, torch.float32)
    displacement = displacement_px(found.shift_angstrom, images.pixel_size_angstrom)
    evidence, trust = evidence_of(results), torch.zeros(len(results))
    if results.evidence is not None:
        trust = evidence.posterior.weight[:, 0] * (1 - misassignment_probability(evidence.fit))
    view, moved = torch.randint(len(results), (2, n), generator=generator)
    tilted = rotation_vector_to_quaternion(VIEW_SPREAD_RAD * torch.randn(n, 3, generator=generator))
    in_plane = in_plane_quaternion(2 * torch.pi * torch.rand(n, generator=generator))
    view_is_right, shift_is_right = torch.rand(2, n, 1, generator=generator) < trust[torch.stack([view, moved])][..., None]
    anywhere = untrusted_px * torch.randn(n, 2, generator=generator)
    like_found = compose(in_plane, compose(found.quaternion[view], tilted))
    return (torch.where(view_is_right, like_found, random_quaternions(n, generator)),
            torch.where(shift_is_right, displacement[moved], anywhere))


def evidence_of(results: PoseResults) -> Evidence:
    """Input of the error model; without matching, from the Bingham matrices of the network.

    Local errors are those that matches state, scaled by the split errors of the particles (``_scales``)."""
    n, found = len(results), results.evidence
    if found is None:
        local = local_deviation_of_bingham(torch.from_numpy(results.bingham))
        posterior = MatchPosterior(torch.ones(n, 1), torch.zeros(n, 1), local)
        return Evidence(posterior, torch.zeros(n), torch.zeros(n), torch.ones(n, 2))
    posterior = MatchPosterior(torch.from_numpy(found.weight), torch.from_numpy(found.alternative_angle_rad),
                               torch.from_numpy(found.local_deviation_rad) * _scales(results)[:, None])
    fit = torch.from_numpy(standardised(results.match.fit, better_is_higher=True))
    angle = torch.zeros(n) if found.independent_angle_rad is None else torch.from_numpy(found.independent_angle_rad)
    return Evidence(posterior, fit, angle, torch.from_numpy(found.shift_deviation_angstrom))


def error_figures(results: PoseResults) -> dict[str, float]:
    """For ``summary.json``: the median expected error, and, after matching, that of the particles alone beside the error that
    the two halves of their frequencies show (``matching.split_frequencies``), in degrees."""
    expected = results.errors.expected_error_deg
    figures = {"median_expected_error_deg": float(np.median(expected))}
    found = results.evidence
    if found is None or found.split_error_rad is None:
        return figures
    is_particle = np.ones(len(results), bool) if results.junk is None else results.junk.particle_probability >= 0.5
    if is_particle.sum() < MIN_POPULATION:
        return figures
    observed = MEAN_OVER_MEDIAN * np.rad2deg(np.median(found.split_error_rad[is_particle]))
    return figures | {"particles_expected_error_deg": float(np.median(expected[is_particle])),
                      "particles_observed_error_deg": float(observed)}


def _scales(results: PoseResults) -> Float[Tensor, " n"]:
    """Of the local errors that matches state (``local_scale``), in each state of the molecule by its own usual ratio: the map of
    one may be better than that of the other. 1 where there are no split errors, or too few of them."""
    found, scales = results.evidence, torch.ones(len(results))
    if found is None or found.split_error_rad is None:
        return scales
    state = np.zeros(len(results), int) if results.states is None else results.states.state
    for each in np.unique(state):
        rows = torch.from_numpy(np.flatnonzero(state == each))
        if len(rows) >= MIN_POPULATION:
            scales[rows] = local_scale(torch.from_numpy(found.split_error_rad)[rows],
                                       torch.from_numpy(found.local_deviation_rad)[rows])
    return scales


def standardised(values: Float[np.ndarray, " n"], better_is_higher: bool) -> Float[np.ndarray, " n"]:
    """In robust standard deviations from the median, both taken from the better half, which junk does not reach.

    Fewer than ``MIN_POPULATION`` values are left as they are, in standard deviations of the noise.
    """
    if len(values) < MIN_POPULATION:
        return values
    sign = 1.0 if better_is_higher else -1.0
    median = np.median(values)
    distance = sign * (values - median)
    deviation = 1.4826 * np.median(distance[distance >= 0])
    return ((values - median) / max(deviation, 1.0)).astype(np.float32)


def with_errors(results: PoseResults, group: Float[Tensor, "g 4"], model: ErrorModel | None = None,
                coverage: float = DEFAULT_COVERAGE) -> PoseResults:
    """Adds what needs the whole set: expected error, bound, figure of merit and match score.

    ``model``: calibrated; without it the errors are those that matches, or the network's matrices, state. ``match_score``:
    the poorer of two standardised figures, the fit of the pose and the absence of anything else in the image.
    """
    bingham = torch.from_numpy(results.bingham)
    if model is not None:
        # the spreads are that many times wider than stated
        bingham = bingham / (model.scale * _scales(results)[:, None, None].to(bingham)) ** 2
    evidence, is_matched = evidence_of(results), results.evidence is not None
    errors = model or ErrorModel.uncalibrated(uniform_angles_rad(group.cpu()), coverage)
    if is_matched or model is not None:
        expected, bound = (x.numpy() for x in errors.expected_error_deg(evidence))
    else:
        posterior = OrientationPosterior.from_bingham(bingham, torch.from_numpy(results.quaternion), coverage)
        expected, bound = posterior.expected_error_deg.numpy(), posterior.error_bound_deg.numpy()
    match, of_shifts = results.match, {}
    if is_matched:
        misassigned = errors.misassignment_probability(evidence)
        merit = (evidence.posterior.weight[:, 0] * (1 - misassigned)).float().numpy()
        score = np.minimum(evidence.fit.numpy(), -standardised(match.residual, better_is_higher=False))
        match = replace(match, match_score=score)
        of_shifts = dict(zip(("expected_shift_error_angstrom", "shift_error_bound_angstrom"),
                             (x.numpy() for x in errors.expected_shift_error_angstrom(evidence)), strict=True))
    else:
        merit = np.exp(-expected / MERIT_SCALE_DEG)
    return replace(results, bingham=bingham.numpy(), eigenvalues=torch.linalg.eigvalsh(bingham).numpy(), match=match,
                   errors=ErrorEstimates(expected, bound, merit, **of_shifts))
