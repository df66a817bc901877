"""What the errors of a prediction are, learnt from particles whose poses are known: labelled ones, or images of the map."""

import csv
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..catalogue import fewest_known
from ..geometry.pose_errors import rotation_errors_deg, shift_errors_angstrom
from ..geometry.poses import Poses
from ..geometry.rotations import (
    compose,
    in_plane_quaternion,
    quaternion_to_matrix,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from ..particles.preparation import ImagePreparation
from ..run_directory import RunDirectory, atomic_path
from .error_model import ErrorModel, Evidence, HeldPromises, cross_validated
from .match_posterior import Belief, chance_lost, local_deviation_of_bingham, uniform_angles_rad
from .simulated_images import ImageSource, particles_like

logger = logging.getLogger("cryoforum")

# a quarter of the set, within these limits: of 600, 90 % hold within 1.2 %, of 1500 within 0.8, of 2500 within 0.6; no more
# than a small set has
MIN_KNOWN, MAX_KNOWN = 1500, 2500
# simulated views are those that were found, spread by so much
VIEW_SPREAD_RAD = 0.15
# standard deviation of displacements where those found are not trusted, as in training
UNTRUSTED_SHIFT_BOXES = 0.04

Predict = Callable[[ImagePreparation, np.ndarray], dict[str, np.ndarray]]
"""(images, rows (n,)) -> the arrays of a prediction before it is finalised, (n, ...) each."""


@dataclass(frozen=True)
class Calibration:
    """An error model, what it is made from, and how its promises held, each for particles it had not seen.

    ``quaternion`` (n, 4) true; ``defocus_angstrom`` (n,). ``has_shifts``: something is known of the shifts' errors, by matching.
    """

    model: ErrorModel
    coverage: float
    source: str
    held: HeldPromises
    quaternion: Tensor
    defocus_angstrom: Tensor
    has_shifts: bool

    def summary(self) -> dict:
        """Of the summary: what is promised, and what held."""
        within = self.held.error_deg <= self.held.bound_deg
        return {"error_bound_coverage": self.coverage, "error_bound_held": float(within.double().mean()),
                "calibration_source": self.source, "n_calibration_particles": len(within)}

    def write(self, run: RunDirectory) -> None:
        """calibration.npz (one row for each known particle), calibration.csv (promised and held)."""
        of_shifts = {"shift_error_bound_angstrom": self.held.shift_bound_angstrom.numpy(),
                     "shift_error_angstrom": self.held.shift_error_angstrom.numpy()} if self.has_shifts else {}
        with atomic_path(run.calibration) as temporary:
            np.savez(temporary, expected_error_deg=self.held.expected_error_deg.numpy(),
                     error_bound_deg=self.held.bound_deg.numpy(), error_deg=self.held.error_deg.numpy(),
                     view_direction=quaternion_to_matrix(self.quaternion)[:, 2].numpy(),
                     defocus_angstrom=self.defocus_angstrom.numpy(), coverage=self.coverage,
                     source=self.source, **of_shifts)
        with atomic_path(run.promises) as temporary, open(temporary, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("promised_fraction", "held_fraction", "n_particles"))
            for level, held in zip(self.held.levels, self.held.held, strict=True):
                rows.writerow((level, round(held, 4), len(self.held.error_deg)))


def simulated_calibration(images: ImagePreparation, source: ImageSource, arrays: dict[str, np.ndarray], predict: Predict,
                          group: Tensor, coverage: float, seed: int, shift_rms_angstrom: float | None = None) -> Calibration:
    """From images of the source's map, made like the set's own and predicted as they were.

    ``arrays``: of the set's own prediction (``predict.finalise``): its views and displacements are those of the images;
    ``shift_rms_angstrom``: see ``poses_like``.
    """
    n = n_simulated(len(images.particles), coverage)
    known = particles_like(source, images, *poses_like(arrays, images, n, seed, shift_rms_angstrom), seed)
    found = predict(replace(images, particles=known), np.arange(n))
    logger.info("errors learnt from %d simulated images of the map", n)
    return calibration(found, known.poses, known.ctf.defocus_u_angstrom, group, coverage, f"{n} simulated images of the map")


def n_simulated(n_particles: int, coverage: float) -> int:
    """How many images of the map stand for a set of so many particles."""
    return max(min(max(n_particles // 4, min(n_particles, MIN_KNOWN)), MAX_KNOWN), fewest_known(coverage))


def calibration(found: dict[str, np.ndarray], truth: Poses, defocus_angstrom: Tensor, group: Tensor, coverage: float,
                source: str) -> Calibration:
    """From arrays of a prediction (n, ...) and the known poses of the same n particles."""
    group = group.cpu().double()
    quaternion = torch.from_numpy(found["quaternion"]).double()
    error_rad = torch.deg2rad(rotation_errors_deg(quaternion, truth.quaternion.cpu().double(), group))
    shift_error = shift_errors_angstrom(torch.from_numpy(found["shift_angstrom"]).double(),
                                        truth.shift_angstrom.cpu().double())
    evidence, uniform = evidence_of(found), uniform_angles_rad(group)
    model = ErrorModel.fit(evidence, error_rad, shift_error, uniform, coverage)
    held = cross_validated(evidence, error_rad, shift_error, uniform, coverage)
    return Calibration(model, coverage, source, held, truth.quaternion.cpu(), defocus_angstrom.cpu(), "weight" in found)


def poses_like(arrays: dict[str, np.ndarray], images: ImagePreparation, n: int, seed: int,
               shift_rms_angstrom: float | None = None) -> tuple[Tensor, Tensor]:
    """Poses (n, 4) with the views that were found, turned in plane and a little aside, and displacements (n, 2) in px of
    the matching box.

    A pose that may be wrong is replaced by a random one as often as it may be; those of a network alone are not trusted
    at all: it would be asked again what it has answered. ``shift_rms_angstrom``: standard deviation of displacements that
    are not trusted, where training was told one.
    """
    if shift_rms_angstrom is None:
        untrusted_px = UNTRUSTED_SHIFT_BOXES * images.box_size_px
    else:
        untrusted_px = shift_rms_angstrom / images.pixel_size_angstrom
    generator = torch.Generator().manual_seed(seed)
    found = torch.from_numpy(arrays["quaternion"]).float()
    displacement = -torch.from_numpy(arrays["shift_angstrom"]).float() / images.pixel_size_angstrom
    evidence = evidence_of(arrays)
    trust = evidence.belief.weight[:, 0] * (1 - chance_lost(evidence.fit)) if "weight" in arrays else torch.zeros(len(found))
    view, moved = torch.randint(len(found), (2, n), generator=generator)
    aside = rotation_vector_to_quaternion(VIEW_SPREAD_RAD * torch.randn(n, 3, generator=generator))
    turned = in_plane_quaternion(2 * torch.pi * torch.rand(n, generator=generator))
    view_is_right, shift_is_right = torch.rand(2, n, 1, generator=generator) < trust[torch.stack([view, moved])][..., None]
    anywhere = untrusted_px * torch.randn(n, 2, generator=generator)
    return (torch.where(view_is_right, compose(turned, compose(found[view], aside)), random_quaternions(n, generator)),
            torch.where(shift_is_right, displacement[moved], anywhere))


def evidence_of(arrays: dict[str, np.ndarray]) -> Evidence:
    """What arrays of a prediction (n, ...) say of errors; of the network alone, what its Bingham matrices say."""
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items() if values.dtype.kind in "fb"}
    n = len(tensors["quaternion"])
    if "weight" not in tensors:
        beliefs = Belief(torch.ones(n, 1), torch.zeros(n, 1), local_deviation_of_bingham(tensors["bingham"]))
        return Evidence(beliefs, torch.zeros(n), torch.zeros(n), torch.ones(n, 2))
    beliefs = Belief(*(tensors[name] for name in ("weight", "rival_angle_rad", "local_deviation_rad")))
    fit = torch.from_numpy(standardised(arrays["fit"], better_is_higher=True))
    angle = tensors.get("network_angle_rad", torch.zeros(n))
    return Evidence(beliefs, fit, angle, tensors["shift_deviation_angstrom"])


def standardised(values: np.ndarray, better_is_higher: bool) -> np.ndarray:
    """In robust standard deviations from the median, both taken from the better half, which junk does not reach.

    Fewer than 8 values are no population: they are left as they are, in standard deviations of the noise.
    """
    if len(values) < 8:
        return values
    sign = 1.0 if better_is_higher else -1.0
    median = np.median(values)
    distance = sign * (values - median)
    deviation = 1.4826 * np.median(distance[distance >= 0])
    return ((values - median) / max(deviation, 1.0)).astype(np.float32)
