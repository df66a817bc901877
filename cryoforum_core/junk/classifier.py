"""Which images show no good particle, and why: each is compared with images of every kind that are made like the set's own.

Images of particles and of four kinds of junk are made from the set's own images, whose particles are taken away (module
``simulation``), and matched as the set's images are. Their features (module ``features``) make one normal distribution for
each kind (quadratic discriminant analysis); an image's particle probability follows by Bayes's rule, with the shares of the
kinds estimated by expectation-maximisation on the set itself (Saerens, Latinne and Decaestecker, Neural Computation 14,
2002), and the particles' own distribution adapted to the set in the same steps. The width of a pose's posterior is no
feature: a good particle in a viewing direction that is hard to align is no junk.

What else a set may show, such as ice and the edges of the carbon, cannot be simulated. It is described by what it lacks: the
last kind fits the map no better than an empty image does, and may have anything that images of the set have in all other
features.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from ..catalogue import NOT_A_PARTICLE, OVERLAP
from .features import FEATURES, OF_THE_PARTICLE
from .rejection import PARTICLE, REASONS
from .simulation import SimulatedFeatures

# of expectation-maximisation: the shares of the kinds have converged long before
N_ITERATIONS = 20
# in standard deviations of the noise: features count as they are below, and by factors above
POWER_SCALE = 3.0
# a share that finding none among so many images does not rule out
SMALLEST_SHARE = 1e-3
# pseudo-count of images of each kind of junk: of a dozen, a few that look like another kind would take the whole kind over
PRIOR_JUNK = 10
# simulated particles with the noise of good images; fewer make no distribution
MIN_GOOD_DONORS = 20
# in standard deviations of particles: more power than two particles on top of each other have, so no simulated kind
FAR_OUT = 12.0


@dataclass(frozen=True, eq=False)
class Classification:
    """Of n images: ``reason`` of ``REASONS``, and the ``probability`` of each."""

    reason: Shaped[np.ndarray, " n"]
    probability: Float[np.ndarray, "n k"]

    @property
    def is_junk(self) -> Bool[np.ndarray, " n"]:
        return self.reason != PARTICLE

    @property
    def particle_probability(self) -> Float32[np.ndarray, " n"]:
        return self.probability[:, 0].astype(np.float32)


@dataclass(frozen=True, eq=False)
class KindsOfImages:
    """Normal distributions of the features of each kind (``REASONS``): ``mean``, ``covariance``, and ``share`` of the
    set."""

    mean: Float[np.ndarray, "k s"]
    covariance: Float[np.ndarray, "k s s"]
    share: Float[np.ndarray, " k"]

    @classmethod
    def fit(cls, simulated: list[Float[np.ndarray, "_ s"]]) -> "KindsOfImages":
        """From features of simulated images of each kind.

        A covariance from few images is drawn towards what all kinds have in common, by s images' weight.
        """
        covariances = [np.cov(features, rowvar=False) for features in simulated]
        common = np.mean(covariances, axis=0)
        s = len(common)
        covariance = np.stack([(len(f) * c + s * common) / (len(f) + s) for f, c in zip(simulated, covariances)])
        share = np.array([0.5] + [0.5 / (len(simulated) - 1)] * (len(simulated) - 1))
        return cls(np.stack([f.mean(0) for f in simulated]), covariance + 1e-3 * np.eye(s), share)

    def probabilities(self, features: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n k"]:
        """Of each kind."""
        log = np.log(self.share) + np.stack([_log_normal(features, mean, covariance) for mean, covariance
                                             in zip(self.mean, self.covariance)], axis=1)
        log -= log.max(1, keepdims=True)
        return np.exp(log) / np.exp(log).sum(1, keepdims=True)

    def adapted(self, features: Float[np.ndarray, "n s"], n_simulated: int) -> "KindsOfImages":
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


def normalised(features: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n s"]:
    """Features on a scale on which kinds are about normal: powers spread by factors once they are large."""
    return POWER_SCALE * np.arcsinh(np.asarray(features, dtype=np.float64) / POWER_SCALE)


def classify(features: Float[np.ndarray, "n s"], simulated: SimulatedFeatures) -> Classification:
    """Images by their features, from those of simulated images of each kind.

    Simulated particles whose noise comes from an image that turns out to show no particle are left out, and all are
    classified again. Those with the noise of an overlap stay: good particles that look like one, such as those of a minor
    state, would be left out with them, and the others of their kind be taken for junk.
    """
    found = _classify(features, simulated.of_kind)
    if simulated.donor is None:
        return found
    is_good = np.isin(found.reason[simulated.donor], (PARTICLE, OVERLAP))
    if is_good.all() or is_good.sum() < MIN_GOOD_DONORS:
        return found
    return _classify(features, (simulated.of_kind[0][is_good], *simulated.of_kind[1:]))


def _classify(features: np.ndarray, simulated: tuple[np.ndarray, ...]) -> Classification:
    values, is_foreign = normalised(features), has_foreign_power(features)
    of_kind = [normalised(each) for each in simulated]
    kinds = KindsOfImages.fit([*of_kind, _unlike_particles(of_kind[REASONS.index(NOT_A_PARTICLE)], values)])
    probability = kinds.adapted(values[~is_foreign], len(simulated[0])).probabilities(values)
    probability[:, REASONS.index(NOT_A_PARTICLE)] += probability[:, -1]
    probability = probability[:, :-1]
    probability[is_foreign] = np.eye(len(REASONS))[REASONS.index(NOT_A_PARTICLE)]
    kind = np.where(probability[:, 0] >= 0.5, 0, 1 + probability[:, 1:].argmax(1))
    return Classification(np.array(REASONS)[kind], probability)


def _unlike_particles(empty: np.ndarray, of_set: np.ndarray) -> np.ndarray:
    """Values of images without a particle that show anything else: those of empty ones, spread as the set's are."""
    spread = np.where(np.isin(FEATURES, OF_THE_PARTICLE), 0.0, of_set.std(0))
    return empty + spread * np.random.default_rng(0).normal(size=empty.shape)


def has_foreign_power(features: Float[np.ndarray, "n s"]) -> Bool[np.ndarray, " n"]:
    """Whether there is power at the lowest or highest resolution that no particle has: contamination, an edge, no image.

    The better-fitting half stands for the particles.
    """
    fit = features[:, FEATURES.index("fit")]
    shells = features[:, [FEATURES.index("low_power"), FEATURES.index("high_power")]]
    particles = shells[fit >= np.median(fit)]
    centre = np.median(particles, axis=0)
    deviation = 1.4826 * np.median(np.abs(particles - centre), axis=0)
    # in standard deviations of the noise, which no set's spread can be below
    return (np.abs(shells - centre) > FAR_OUT * np.maximum(deviation, 1)).any(1)
