"""Which images hold no good particle, and why: each is held against images of every kind that are made like the set's.

For a data set and its map, images of particles and of four kinds of junk are simulated with the set's own CTFs, noise
and box, and matched as the set's images are. What their statistics (``junk_statistics``) look like makes one normal
distribution for each kind (quadratic discriminant analysis); an image's probability to be a particle is Bayes's rule,
with the shares of the kinds found by expectation-maximisation on the set itself (Saerens, Latinne and Decaestecker,
Neural Computation 14, 2002), and the particles' own distribution adapted to the set in the same steps. The width of a
pose's posterior is no part of it: a good particle in a view that many poses share is no junk.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..catalogue import AMBIGUOUS, JUNK_PARTICLES, NOT_A_PARTICLE, OFF_CENTRE, OTHER_OBJECT
from ..imaging.fourier import shift_phase
from ..matching.matcher import WRONG_BY_LOG_LIKELIHOOD, Matcher
from ..matching.refine import RefinedPoses
from ..particles.preparation import ImagePreparation
from ..uncertainty.match_posterior import Belief
from .features import STATISTICS
from .labels import PARTICLE, REASONS
from .simulation import JunkSimulation

logger = logging.getLogger("cryoforum")

MIN_IMAGES = JUNK_PARTICLES.value
# what is simulated is an eighth of the set, within limits
MIN_SIMULATED, MAX_SIMULATED = 180, 900
RECENTRE_BATCH = 256
N_ITERATIONS = 20
# in standard deviations of the noise: powers count as they are below, and by factors above
POWER_SCALE = 3.0
# a share that is not ruled out by finding none among so many images
SMALLEST_SHARE = 1e-3
# images of each kind that a set's junk is divided by besides its own: of a dozen, some that look like another kind would
# draw the whole kind over
PRIOR_JUNK = 10
# in standard deviations of particles: further than two of them upon each other, neither particle nor simulated junk
FAR_OUT = 12.0
# rivals so far away that they are another orientation, and with so much of the belief that the pose is not determined
AMBIGUOUS_RAD, AMBIGUOUS_WEIGHT = math.radians(15.0), 0.2


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Of n images: ``reason`` (n,) of ``REASONS``, and the ``probability`` (n, k) of each."""

    reason: np.ndarray
    probability: np.ndarray

    @property
    def particle_probability(self) -> np.ndarray:
        """(n,) float32."""
        return self.probability[:, 0].astype(np.float32)


@dataclass(frozen=True, eq=False)
class KindsOfImages:
    """Normal distributions of the features of each kind (``REASONS``): ``mean`` (k, s), ``covariance`` (k, s, s),
    ``share`` (k,) of the set."""

    mean: np.ndarray
    covariance: np.ndarray
    share: np.ndarray

    @classmethod
    def learn(cls, simulated: list[np.ndarray]) -> "KindsOfImages":
        """From features (n_k, s) of simulated images of each kind.

        A covariance from few images is drawn towards what all kinds have in common, by s images' weight.
        """
        covariances = [np.cov(features, rowvar=False) for features in simulated]
        common = np.mean(covariances, axis=0)
        s = len(common)
        covariance = np.stack([(len(f) * c + s * common) / (len(f) + s) for f, c in zip(simulated, covariances)])
        share = np.array([0.5] + [0.5 / (len(simulated) - 1)] * (len(simulated) - 1))
        return cls(np.stack([f.mean(0) for f in simulated]), covariance + 1e-3 * np.eye(s), share)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Of each kind (n, k) for features (n, s)."""
        log = np.log(self.share) + np.stack([_log_normal(features, mean, covariance) for mean, covariance
                                             in zip(self.mean, self.covariance)], axis=1)
        log -= log.max(1, keepdims=True)
        return np.exp(log) / np.exp(log).sum(1, keepdims=True)

    def adapted(self, features: np.ndarray, n_simulated: int) -> "KindsOfImages":
        """With the set's own shares, and with the particles' distribution as the set has it.

        The ``n_simulated`` simulated particles keep their weight; junk's distributions stay as simulated, since a wide
        one that may move takes particles in.
        """
        kinds, own, own_covariance = self, self.mean[0], self.covariance[0]
        for _ in range(N_ITERATIONS):
            probability = kinds.probabilities(features)
            weight = probability[:, 0]
            total = weight.sum() + n_simulated
            mean = (weight @ features + n_simulated * own) / total
            off, moved = features - mean, own - mean
            covariance = ((weight[:, None] * off).T @ off + n_simulated * (
                own_covariance + np.outer(moved, moved))) / total
            share = np.maximum(probability.mean(0), SMALLEST_SHARE)
            of_junk = probability[:, 1:].sum(0) + PRIOR_JUNK
            share[1:] = share[1:].sum() * of_junk / of_junk.sum()
            kinds = KindsOfImages(np.concatenate([mean[None], self.mean[1:]]),
                                  np.concatenate([covariance[None], self.covariance[1:]]), share / share.sum())
        return kinds


def _log_normal(features: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    factor = np.linalg.cholesky(covariance)
    distance = np.linalg.solve(factor, (features - mean).T)
    return -0.5 * (distance ** 2).sum(0) - np.log(np.diag(factor)).sum()


def junk_features(statistics: np.ndarray) -> np.ndarray:
    """Statistics (n, s) on a scale on which kinds are about normal: powers spread by factors once they are large."""
    return POWER_SCALE * np.arcsinh(np.asarray(statistics, dtype=np.float64) / POWER_SCALE)


def judge(statistics: np.ndarray, simulated: list[np.ndarray]) -> Verdicts:
    """Verdicts on images by their statistics (n, s), from those of simulated images of each kind (n_k, s)."""
    features, is_foreign = junk_features(statistics), has_foreign_power(statistics)
    learnt = KindsOfImages.learn([junk_features(each) for each in simulated])
    probability = learnt.adapted(features[~is_foreign], len(simulated[0])).probabilities(features)
    probability[is_foreign] = np.eye(len(REASONS))[REASONS.index(NOT_A_PARTICLE)]
    kind = np.where(probability[:, 0] >= 0.5, 0, 1 + probability[:, 1:].argmax(1))
    return Verdicts(np.array(REASONS)[kind], probability)


def is_junk(statistics: np.ndarray, simulated: list[np.ndarray]) -> np.ndarray:
    """bool (n,), of ``judge``."""
    return judge(statistics, simulated).reason != PARTICLE


def has_foreign_power(statistics: np.ndarray) -> np.ndarray:
    """bool (n,): power at the lowest or highest resolution that no particle has: contamination, an edge, no image.

    The half that fits better speaks for the particles.
    """
    fit = statistics[:, STATISTICS.index("fit")]
    shells = statistics[:, [STATISTICS.index("low_power"), STATISTICS.index("high_power")]]
    particles = shells[fit >= np.median(fit)]
    centre = np.median(particles, axis=0)
    deviation = 1.4826 * np.median(np.abs(particles - centre), axis=0)
    # in standard deviations of the noise, which no set's spread can be below
    return (np.abs(shells - centre) > FAR_OUT * np.maximum(deviation, 1)).any(1)


# -- the verdicts of a run

VERDICT_ARRAYS = ("reason", "particle_probability", "recentre_shift_angstrom", "alternative_quaternion")


def simulated_like(arrays: dict[str, np.ndarray], simulation: JunkSimulation) -> list[np.ndarray]:
    """Statistics (n_k, s) of simulated images of every kind, with views and displacements of those of n matched images that
    fit well. Empty for fewer than ``MIN_IMAGES``, which are no population."""
    statistics = arrays["junk_statistics"]
    if len(statistics) < MIN_IMAGES:
        return []
    fit = statistics[:, STATISTICS.index("fit")]
    good = np.flatnonzero(fit >= np.median(fit))
    displacement_px = -arrays["shift_angstrom"][good] / simulation.images.pixel_size_angstrom
    n = min(max(len(statistics) // 8, MIN_SIMULATED), MAX_SIMULATED)
    logger.info("Junk: learnt from %d simulated images.", n)
    return simulation.statistics(torch.from_numpy(arrays["quaternion"][good]), torch.from_numpy(displacement_px), n)


def verdict_arrays(arrays: dict[str, np.ndarray], rows: np.ndarray, simulation: JunkSimulation, simulated: list[np.ndarray]
                   ) -> dict[str, np.ndarray]:
    """What joins the arrays of n matched images (``predict.matched_arrays`` and ``PowerMap.statistics``), those of
    ``rows`` (n,): ``VERDICT_ARRAYS``. Nothing where there is nothing ``simulated_like`` them.

    ``recentre_shift_angstrom`` (n, 2): the origin offset that recentres an off-centre image, else NaN;
    ``alternative_quaternion`` (n, 4): the other orientation of an ambiguous one, else NaN.
    """
    if not simulated:
        return {}
    statistics, images = arrays["junk_statistics"], simulation.images
    verdicts = judge(statistics, simulated)
    verdicts, recentre_px = _looked_for_aside(verdicts, statistics, arrays["elsewhere_px"], rows, images, simulation.matcher)
    ambiguous = (verdicts.reason == PARTICLE) & is_ambiguous(arrays["weight"], arrays["rival_angle_rad"])
    reason = np.where(ambiguous, AMBIGUOUS, verdicts.reason)
    logger.info("Judged: %s.", ", ".join(
        f"{(reason == name).sum():,} {name}" for name in (*REASONS[1:], AMBIGUOUS)))
    return {"reason": reason, "particle_probability": verdicts.particle_probability,
            "recentre_shift_angstrom": -images.pixel_size_angstrom * recentre_px,
            "alternative_quaternion": np.where(ambiguous[:, None], arrays["alternative_quaternion"], np.nan)}


def strongest_rival(hypotheses: RefinedPoses, beliefs: Belief) -> Tensor:
    """The most likely of the hypotheses (n, K, ...) that are another orientation than the first: quaternions (n, 4). Where
    all are near it, the first itself."""
    weight = beliefs.weight * (beliefs.rival_angle_rad > AMBIGUOUS_RAD)
    return hypotheses.quaternion[torch.arange(len(weight), device=weight.device), weight.argmax(1)]


def is_ambiguous(weight: np.ndarray, rival_angle_rad: np.ndarray) -> np.ndarray:
    """bool (n,): another orientation is about as likely. ``weight`` and ``rival_angle_rad`` (n, K) of ``Belief``."""
    return (weight * (rival_angle_rad > AMBIGUOUS_RAD)).sum(1) >= AMBIGUOUS_WEIGHT


def _looked_for_aside(verdicts: Verdicts, statistics: np.ndarray, elsewhere_px: np.ndarray, rows: np.ndarray,
                      images: ImagePreparation, matcher: Matcher) -> tuple[Verdicts, np.ndarray]:
    """Verdicts with the reason off-centre where a particle is found aside, and nowhere else; and the displacements
    (n, 2) of those particles in px of the matching box, NaN elsewhere.

    A particle shows more power where it is than an object of chance does, but not much more: its match there tells the
    two apart; it must also be better than what the best pose in an image of noise comes to. Of the ribosome at SNR 0.05 it
    is better than the match at the centre by 19 or more in log-likelihood for 48 of 49 off-centre particles, by 4 at
    most for 57 other molecules.
    """
    reason, found_px = verdicts.reason.astype(object), np.full((len(rows), 2), np.nan, dtype=np.float32)
    asked = np.flatnonzero(np.isin(reason, (NOT_A_PARTICLE, OFF_CENTRE, OTHER_OBJECT)) & ~has_foreign_power(statistics))
    fit, signal = (statistics[:, STATISTICS.index(name)] for name in ("fit", "signal"))
    # the log-likelihood ratio of the pose at the centre, see ``match_quality``
    here = fit * signal + 0.5 * signal ** 2
    better = np.zeros(len(rows), dtype=bool)
    for some in np.array_split(asked, len(asked) // RECENTRE_BATCH + 1):
        if len(some):
            displacement_px, score = _match_aside(images, matcher, rows[some], elsewhere_px[some])
            # the best of all poses in noise alone may be far better at one place than at another, and is still no match
            better[some] = (score - here[some] > WRONG_BY_LOG_LIKELIHOOD) & (score > matcher.chance_score)
            found_px[some[better[some]]] = displacement_px[better[some]]
    others = [kind for kind, name in enumerate(REASONS) if name not in (PARTICLE, OFF_CENTRE)]
    second = np.array(REASONS)[others][verdicts.probability[:, others].argmax(1)]
    reason[(reason == OFF_CENTRE) & ~better] = second[(verdicts.reason == OFF_CENTRE) & ~better]
    reason[better] = OFF_CENTRE
    return Verdicts(reason.astype(str), verdicts.probability), found_px


def _match_aside(images: ImagePreparation, matcher: Matcher, rows: np.ndarray, roughly_px: np.ndarray
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Displacements (n, 2) of particles far from the centre, by a search around ``roughly_px`` (n, 2), and the
    log-likelihood ratios (n,) of their poses."""
    images_ft, ctf = images.transforms(rows)
    roughly = torch.from_numpy(roughly_px).to(images_ft.device)
    centred = images_ft * shift_phase(-roughly, images.box_size_px)
    found = matcher.search(matcher.model.images(centred, ctf))[:, 0]
    return (roughly + found.displacement_px).cpu().numpy(), found.score.cpu().numpy()
