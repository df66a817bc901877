"""The label of every image of a set: particle, kind of junk, or ambiguous orientation."""

import logging
import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..catalogue import AMBIGUOUS, JUNK_PARTICLES, NOT_A_PARTICLE, OFF_CENTRE, OTHER_OBJECT
from ..geometry.poses import shift_angstrom
from ..imaging.fourier import shift_phase
from ..matching.matcher import MISASSIGNED_ABOVE_LOG_LIKELIHOOD_GAIN, Matcher
from ..matching.refine import RefinedPoses
from ..particles.image_preparation import ImagePreparation
from ..results.pose_results import JunkLabels, PoseResults
from ..uncertainty.match_posterior import MatchPosterior
from .classifier import Classification, classify, has_foreign_power
from .features import FEATURES
from .rejection import PARTICLE, REASONS
from .simulation import JunkSimulation, SimulatedFeatures

logger = logging.getLogger("cryoforum")

# fewer do not determine the shares of the kinds
MIN_IMAGES = JUNK_PARTICLES.value
# simulated images: an eighth of the set, between these two
MIN_SIMULATED = 360
MAX_SIMULATED = 900
# images searched off-centre at a time
RECENTRE_BATCH = 256
# an alternative pose at least so far away is another orientation
AMBIGUOUS_RAD = math.radians(15.0)
# with so much posterior weight on other orientations the pose is not determined
AMBIGUOUS_WEIGHT = 0.2


def simulated_features(results: PoseResults, rows: Int[np.ndarray, " n"], simulation: JunkSimulation
                       ) -> SimulatedFeatures | None:
    """Features of simulated images of every kind, like the matched images, those of ``rows`` of the simulation's set. None
    for fewer than ``MIN_IMAGES``."""
    if len(results) < MIN_IMAGES:
        return None
    n = min(max(len(results) // 8, MIN_SIMULATED), MAX_SIMULATED)
    logger.info("Junk: classifier fitted to %d simulated images.", n)
    return simulation.features(rows, results, n)


def junk_labels(results: PoseResults, rows: Int[np.ndarray, " n"], simulation: JunkSimulation,
                simulated: SimulatedFeatures | None) -> JunkLabels | None:
    """Labels of n matched images, those of ``rows`` of the simulation's set, by the features of simulated ones; None
    where there are none (``simulated_features``)."""
    if simulated is None:
        return None
    evidence, images = results.evidence, simulation.images
    classes, recentre_px = _with_off_centre(classify(evidence.junk_features, simulated), results, rows, images,
                                            simulation.matcher)
    ambiguous = (classes.reason == PARTICLE) & is_ambiguous(evidence.weight, evidence.alternative_angle_rad)
    reason = np.where(ambiguous, AMBIGUOUS, classes.reason)
    logger.info("Junk and ambiguous orientations: %s.",
                ", ".join(f"{(reason == name).sum():,} {name}" for name in (*REASONS[1:], AMBIGUOUS)))
    return JunkLabels(reason, classes.particle_probability, shift_angstrom(recentre_px, images.pixel_size_angstrom),
                      np.where(ambiguous[:, None], evidence.strongest_alternative, np.nan))


def strongest_alternative(hypotheses: RefinedPoses, posterior: MatchPosterior) -> Float[Tensor, "n 4"]:
    """The most likely of the hypotheses (n, K, ...) that are another orientation than the best: quaternions. Where all are
    near it, the best itself."""
    weight = posterior.weight * (posterior.alternative_angle_rad > AMBIGUOUS_RAD)
    return hypotheses.quaternion[torch.arange(len(weight), device=weight.device), weight.argmax(1)]


def is_ambiguous(weight: Float[np.ndarray, "n k"], alternative_angle_rad: Float[np.ndarray, "n k"]
                 ) -> Bool[np.ndarray, " n"]:
    """Whether another orientation is about as likely. Both arguments are those of ``MatchPosterior``."""
    return (weight * (alternative_angle_rad > AMBIGUOUS_RAD)).sum(1) >= AMBIGUOUS_WEIGHT


def _with_off_centre(classes: Classification, results: PoseResults, rows: np.ndarray, images: ImagePreparation,
                     matcher: Matcher) -> tuple[Classification, np.ndarray]:
    """The classes with the reason off-centre where a particle is found off-centre, and nowhere else; and the displacements
    (n, 2) of those particles in px of the matching box, NaN elsewhere.

    A particle shows more power where it is than a random object does, but not much more: its match there tells the two
    apart. The match must also be better than the best pose in an image of noise. Of the ribosome at SNR 0.05 it is better
    than the match at the centre by 19 or more in log-likelihood for 48 of 49 off-centre particles, by 4 at most for 57
    other molecules.
    """
    features, elsewhere_px = results.evidence.junk_features, results.evidence.elsewhere_px
    reason, found_px = classes.reason.astype(object), np.full((len(rows), 2), np.nan, dtype=np.float32)
    asked = np.flatnonzero(np.isin(reason, (NOT_A_PARTICLE, OFF_CENTRE, OTHER_OBJECT)) & ~has_foreign_power(features))
    fit, ratio = (features[:, FEATURES.index(name)] for name in ("fit", "signal_to_noise"))
    # the log-likelihood ratio of the pose at the centre, see ``match_quality``: ``signal`` is what a particle should have
    signal = ratio - fit
    here = fit * signal + 0.5 * signal ** 2
    better = np.zeros(len(rows), dtype=bool)
    for some in np.array_split(asked, len(asked) // RECENTRE_BATCH + 1):
        if len(some):
            displacement, score = _match_off_centre(images, matcher, rows[some], elsewhere_px[some])
            # in noise alone the best pose at one place may be far better than at another, and is still no match
            better[some] = (score - here[some] > MISASSIGNED_ABOVE_LOG_LIKELIHOOD_GAIN) & (score > matcher.chance_score)
            found_px[some[better[some]]] = displacement[better[some]]
    others = [kind for kind, name in enumerate(REASONS) if name not in (PARTICLE, OFF_CENTRE)]
    second = np.array(REASONS)[others][classes.probability[:, others].argmax(1)]
    not_found = (classes.reason == OFF_CENTRE) & ~better
    reason[not_found] = second[not_found]
    reason[better] = OFF_CENTRE
    return Classification(reason.astype(str), classes.probability), found_px


def _match_off_centre(images: ImagePreparation, matcher: Matcher, rows: np.ndarray, roughly_px: np.ndarray
                      ) -> tuple[np.ndarray, np.ndarray]:
    """Displacements (n, 2) of particles far from the centre, by a search around ``roughly_px`` (n, 2), and the
    log-likelihood ratios (n,) of their poses."""
    images_ft, ctf = images.transforms(rows)
    roughly = torch.from_numpy(roughly_px).to(images_ft.device)
    centred = images_ft * shift_phase(-roughly, images.box_size_px)
    found = matcher.search(matcher.model.images(centred, ctf))[:, 0]
    return (roughly + found.displacement_px).cpu().numpy(), found.score.cpu().numpy()
