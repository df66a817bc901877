"""Whether a run of ab-initio converged, in sentences for its user, and which stages are left out without a structure.

Reasons of the limits: ``docs/decisions/0042-wrong-maps.md``, ``docs/decisions/0038-half-sets-apart-from-radius-8.md`` and
``docs/decisions/0030-convergence.md``.
"""

import logging
import math
from dataclasses import dataclass

from ..catalogue import STARTS_AGREE_DEG
from ..imaging.symmetry_frame import NO_SYMMETRY_BELOW
from .half_map_pair import HalfMapPair
from .half_sets import COMMON_RADIUS_PX
from .plan import AbInitioPlan
from .stages.search import SearchOutcome

logger = logging.getLogger("cryoforum")

# ---- the hybrid method
# half maps must agree so many shells beyond the common start
MIN_SHELLS_GAINED = 1.5
# part of the Fourier voxels that the viewing directions must reach: half of them need directions up to 30 degrees from one;
# images of a single direction reach 38 %, by the errors of their poses
MIN_SAMPLED_FRACTION = 0.5
# of ``explained_fraction``: 0.13 to 0.43 for wrong maps, about 1 for right ones
MIN_EXPLAINED_FRACTION = 0.6
# held-out poses of two starts that found the same map
AGREE_WITHIN_DEG = STARTS_AGREE_DEG.value
# of two starts one may fail; where three find three maps the data do not choose
MIN_STARTS_TO_COMPARE = 3
# median expected error of the particles, above which the run's own poses are too uncertain to confirm its map
MAX_EXPECTED_ERROR_DEG = AGREE_WITHIN_DEG
# part of the particles to which the last matching gives another pose: 0 to 0.05 in runs that were right, 0.58 in one that was
# wrong in every pose
MAX_LAST_RECOVERED = 0.25

# ---- the end-to-end method
# part of the images' power that poses could explain, below which there is nothing to find
MIN_SIGNAL = 0.02
# how much better images must be explained than noise, in standard deviations
MIN_DEVIATIONS_FROM_NOISE = 5.0
# of the pose-dependent signal; a network whose poses follow the images' rotation may still be unsure of them
MIN_EXPLAINED_BY_ENCODER = 0.4
# poses of single images, which nothing else can assess, explain 54 to 70 % where they are wrong
MIN_EXPLAINED_BY_POSES_PER_IMAGE = 0.75
# disagreement between poses of images and of the same images rotated in their plane
MAX_ROTATION_ERROR_DEG = 25.0
# error of the poses found for projections of the map
MAX_PROJECTION_ERROR_DEG = 60.0
# where in-plane rotation tells nothing, since the encoder is equivariant to it whatever it was trained to
MAX_PROJECTION_ERROR_OF_EQUIVARIANT_DEG = 15.0
# to which half maps agree
MIN_SHELLS = 3


@dataclass(frozen=True)
class HybridAssessment:
    """What decides whether a run of the hybrid method converged."""

    search: SearchOutcome
    explained_fraction: float
    """``explained_fraction`` of the last half maps; NaN where it says nothing"""
    sampled_fraction: float
    resolution_radius_px: float
    """Of the final half maps, cycles per box"""
    gained_radius_px: float
    """``gained_radius_px`` of the plan"""
    extent_angstrom: float
    symmetry: str
    last_recovered_fraction: float = 0.0
    """part of the particles whose pose the last matching found to be misassigned; 0 without one"""
    expected_error_deg: float | None = None
    """median over the particles, by calibration; None without one"""

    def convergence(self) -> tuple[bool, str]:
        """Whether the run converged, and why, in sentences."""
        problems = self._problems()
        return not problems, " ".join(problems) or (
            f"The maps of two half sets, refined independently, agree to {self._resolution_angstrom:.3g} A, beyond the "
            f"{self._common_angstrom:.3g} A of their common start, and held-out images confirm the structure.")

    @property
    def _resolution_angstrom(self) -> float:
        return self.extent_angstrom / self.resolution_radius_px

    @property
    def _common_angstrom(self) -> float:
        return self.extent_angstrom / self.search.common_radius_px

    def _problems(self) -> list[str]:
        search, problems = self.search, []
        if not search.found_structure:
            problems.append("Images that the search had not seen fit its map no better than the map's spherical average "
                            f"(gain in log-evidence {search.structure:.2f} +- {search.structure_error:.2f} nats per image).")
        if self.resolution_radius_px < self.gained_radius_px:
            problems.append(f"The half maps agree only to {self._resolution_angstrom:.3g} A, hardly beyond their common "
                            f"start ({self._common_angstrom:.3g} A).")
        if self.explained_fraction < MIN_EXPLAINED_FRACTION:
            problems.append(f"Beyond {self._common_angstrom:.3g} A the half maps explain only "
                            f"{max(self.explained_fraction, 0.0):.0%} of the expected power in the images of the other half "
                            "set: they agree on a wrong map. Run again with another --seed, more --seeds or more "
                            "--search-steps.")
        if self.last_recovered_fraction > MAX_LAST_RECOVERED:
            problems.append(f"The last matching still moved {self.last_recovered_fraction:.0%} of the particles to another "
                            "orientation: the images do not determine their orientations relative to these maps.")
        if self.sampled_fraction < MIN_SAMPLED_FRACTION:
            problems.append(f"The viewing directions cover only {self.sampled_fraction:.0%} of Fourier space: the images "
                            "show the particle from too few sides.")
        if search.symmetry_score is not None and search.symmetry_score < NO_SYMMETRY_BELOW:
            problems.append(f"The map found without symmetry does not have the symmetry {self.symmetry} (correlation with "
                            f"its symmetrised copy: {search.symmetry_score:.2f}): use c1 or the correct point group, or, where "
                            "neighbours reach into the box, give --particle-diameter-angstrom.")
        return problems + self._unconfirmed()

    def _unconfirmed(self) -> list[str]:
        """By other random starts: many of them must not disagree, and one must agree where nothing else confirms the map."""
        n_starts, angle = len(self.search.starts), self.search.agreement_deg
        agrees, problems = angle is not None and angle <= AGREE_WITHIN_DEG, []
        if not agrees and angle is not None and n_starts >= MIN_STARTS_TO_COMPARE:
            problems.append(f"No other start found the map of the best one (poses differ by {angle:.0f} degrees or more, "
                            "median).")
        if not agrees and (self.expected_error_deg or 0.0) > MAX_EXPECTED_ERROR_DEG:
            problems.append("No second random start found this map, and the orientations relative to it are too uncertain to "
                            f"confirm it (median expected error {self.expected_error_deg:.0f} degrees). Run again with more "
                            "--seeds.")
        if not agrees and math.isnan(self.explained_fraction):
            problems.append("Nothing confirms the map: no second start found it, and images of the other half set cannot, since "
                            "the half maps agree too little beyond their common start or the background holds too much "
                            "signal. Run again with more --seeds.")
        return problems


def gained_radius_px(plan: AbInitioPlan, common_radius_px: float = COMMON_RADIUS_PX) -> float:
    """Resolution, in cycles per box, that half maps must reach to have found more than their common start."""
    return min(common_radius_px + MIN_SHELLS_GAINED, plan.max_radius_px - 1)


def left_out(plan: AbInitioPlan, search: SearchOutcome, pair: HalfMapPair) -> frozenset[str]:
    """The stages that the user skips; where there is nothing to refine, network and final matching, too."""
    if search.found_structure or pair.resolution_radius_px >= gained_radius_px(plan, search.common_radius_px):
        return frozenset(plan.config.skip)
    logger.warning("Neither images that the search had not seen nor the half maps show a structure: the network and "
                   "the final matching are skipped.")
    return frozenset(plan.config.skip) | {"distillation", "refinement"}


@dataclass(frozen=True)
class EndToEndAssessment:
    """What held-out images say of encoder and map. Losses are parts of the images' power: 1 for an empty map."""

    loss: float
    """unexplained by network and map"""
    loss_without_poses: float
    """unexplained by the best image that is the same for all, times each CTF"""
    loss_of_noise: float
    """what nothing can explain, by the noise of the background"""
    noise_gain_deviations: float | None
    """how much more of the images is explained than of images of noise alone, in standard deviations; None without an
    encoder"""
    rotation_error_deg: float | None
    """median disagreement between the poses of images and of their copies rotated by 90 degrees; None as before"""
    projection_error_deg: float | None
    """median error of the poses found for projections of the map at random poses; None as before, or where images hold
    nothing like the map"""
    shells: float
    """Fourier shells up to the half maps' resolution"""
    max_projection_error_deg: float = MAX_PROJECTION_ERROR_DEG

    @property
    def explained_fraction(self) -> float:
        """Fraction, 0 to 1, of the pose-dependent power of the images that is explained."""
        return (self.loss_without_poses - self.loss) / max(self.loss_without_poses - self.loss_of_noise, 1e-9)

    def convergence(self) -> tuple[bool, str]:
        """Whether the run converged, and why, in a sentence."""
        percent = 100 * max(self.explained_fraction, 0)
        figure = f"{percent:.0f} % of the pose-dependent signal in held-out images"
        problem = self._no_signal() or self._too_little_explained(figure) or self._wrong_poses() or self._coarse_maps()
        if problem is not None:
            return False, problem
        return True, f"Network and map explain {figure}, and the half maps agree to {self.shells:.1f} Fourier shells."

    def _no_signal(self) -> str | None:
        if self.loss_without_poses - self.loss_of_noise < MIN_SIGNAL:
            return "The images contain no orientation-dependent signal above the noise."
        if self.noise_gain_deviations is not None and self.noise_gain_deviations < MIN_DEVIATIONS_FROM_NOISE:
            return "Network and map explain held-out images no better than they explain noise."
        return None

    def _too_little_explained(self, figure: str) -> str | None:
        least = MIN_EXPLAINED_BY_POSES_PER_IMAGE if self.rotation_error_deg is None else MIN_EXPLAINED_BY_ENCODER
        if self.explained_fraction >= least:
            return None
        return (f"Network and map explain {figure}, less than {100 * least:.0f} %: the map or the poses are wrong, or the "
                "training was too short.")

    def _wrong_poses(self) -> str | None:
        if self.rotation_error_deg is not None and self.rotation_error_deg > MAX_ROTATION_ERROR_DEG:
            return (f"The poses of images and of copies rotated in the plane disagree by "
                    f"{self.rotation_error_deg:.0f} degrees (median), more than {MAX_ROTATION_ERROR_DEG:.0f}.")
        if self.projection_error_deg is not None and self.projection_error_deg > self.max_projection_error_deg:
            return (f"For projections of the map at random poses, the network's poses are off by "
                    f"{self.projection_error_deg:.0f} degrees (median), more than {self.max_projection_error_deg:.0f}: it "
                    "confuses viewing directions, or most of them are missing from the images.")
        return None

    def _coarse_maps(self) -> str | None:
        if self.shells >= MIN_SHELLS:
            return None
        return f"The half maps agree only to {self.shells:.1f} Fourier shells, fewer than {MIN_SHELLS}."


def max_projection_error_deg(is_equivariant: bool) -> float:
    """Largest error of the poses of projections of the map in a run that has converged.

    ``is_equivariant``: the encoder follows the images' rotation in their plane whatever it was trained to.
    """
    return MAX_PROJECTION_ERROR_OF_EQUIVARIANT_DEG if is_equivariant else MAX_PROJECTION_ERROR_DEG
