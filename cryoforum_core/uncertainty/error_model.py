"""From the match of each particle to an expected error and a calibrated error bound.

The error of each pose has a distribution: near the pose, with the spread of the local match; at an alternative pose; or
anywhere, where the particle is misassigned. Two parts of it are calibrated on particles with known poses: the scale of the
spread, and the probability of misassignment. The bound is then calibrated by distributional conformal prediction
(Chernozhukov, Wuethrich and Zhu, PNAS 2021): it is the quantile of each particle's own distribution at the level that covers
the nominal part of the known particles. For exchangeable particles its coverage is at least nominal, but for the few
parameters of the distribution that are fitted to the same particles; the empirical coverage on particles that a model has
not seen (``coverage.cross_validated``) goes with every run.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .match_posterior import MatchPosterior, misassignment_probability

# samples of a particle's local error: quantiles to about 1 %
N_LOCAL_SAMPLES = 256
# quantiles of the error of misassigned particles, which are few
N_MISASSIGNED_SAMPLES = 64
# a pose is misassigned where its error is above so many times the root-mean-square error of its match
MISASSIGNED_ABOVE_RMS = 4.0
# penalty of the logistic regression on standardised features: a prior deviation of 1
RIDGE = 1.0
# the intercept is all but free: the share of misassigned particles may be anything
INTERCEPT_RIDGE = 0.01
# Newton's method converges in ten steps; far more mean a fault
MAX_NEWTON_STEPS = 100
# nats: steps that gain less change no digit of a probability
CONVERGED_NATS = 1e-9
# pseudo-count: a tenth of a misassigned particle keeps the regression finite where the known particles show none
PRIOR_MISASSIGNED = 0.1
# smallest total weight of the alternatives, so that its logarithm is finite
MIN_ALTERNATIVE_WEIGHT = 1e-13
# particles at a time: their distributions take 16 MB
_CHUNK = 4096


@dataclass(frozen=True)
class Evidence:
    """What the error model uses of n particles, whose true poses need not be known.

    ``fit``: standardised; ``independent_angle_rad``: between the pose and an independent one (0 where there is none, or it is the
    network's own); ``shift_deviation_angstrom``: principal standard deviations of the shift.
    """

    posterior: MatchPosterior
    fit: Float[Tensor, " n"]
    independent_angle_rad: Float[Tensor, " n"]
    shift_deviation_angstrom: Float[Tensor, "n 2"]

    def __len__(self) -> int:
        return len(self.fit)

    def __getitem__(self, index) -> "Evidence":
        posterior = MatchPosterior(self.posterior.weight[index], self.posterior.alternative_angle_rad[index],
                                   self.posterior.local_deviation_rad[index])
        return Evidence(posterior, self.fit[index], self.independent_angle_rad[index], self.shift_deviation_angstrom[index])

    @property
    def rms_rad(self) -> Float[Tensor, " n"]:
        """Root-mean-square error of the local match."""
        return self.posterior.local_deviation_rad.double().square().sum(1).sqrt()

    def features(self) -> Float[Tensor, "n 4"]:
        """Predictors of misassignment."""
        alternatives = self.posterior.weight[:, 1:].double().sum(1).clamp_min(MIN_ALTERNATIVE_WEIGHT)
        odds = self.posterior.weight[:, 0].double().log() - alternatives.log()
        return torch.stack([self.fit.double().clamp(-8, 3), odds, self.rms_rad.clamp(1e-4, math.pi).log(),
                            self.independent_angle_rad.double().clamp_min(1e-3).log()], dim=1)


@dataclass(frozen=True)
class MisassignmentModel:
    """Logistic regression of misassignment on the standardised features."""

    mean: Float[Tensor, " f"]
    deviation: Float[Tensor, " f"]
    coefficients: Float[Tensor, " 1+f"]
    """the constant first"""

    @classmethod
    def fit(cls, features: Float[Tensor, "n f"], is_misassigned: Bool[Tensor, " n"]) -> "MisassignmentModel":
        """Penalised maximum likelihood by Newton's method; a pseudo-count keeps it finite where none is misassigned."""
        mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
        x = cls._design(features, mean, deviation)
        target = (is_misassigned.double() * len(x) + PRIOR_MISASSIGNED) / (len(x) + 2 * PRIOR_MISASSIGNED)
        penalty = torch.full((x.shape[1],), RIDGE, dtype=x.dtype)
        penalty[0] = INTERCEPT_RIDGE
        coefficients = torch.zeros(x.shape[1], dtype=x.dtype)
        coefficients[0] = torch.logit(target.mean())

        def loss(some: Tensor) -> Tensor:
            logit = x @ some
            return (torch.nn.functional.softplus(logit) - target * logit).sum() + 0.5 * (penalty * some.square()).sum()

        for _ in range(MAX_NEWTON_STEPS):
            probability = torch.sigmoid(x @ coefficients)
            gradient = x.T @ (probability - target) + penalty * coefficients
            hessian = (x * (probability * (1 - probability))[:, None]).T @ x + torch.diag(penalty)
            step = torch.linalg.solve(hessian, gradient)
            expected_gain = float(gradient @ step)
            if expected_gain < CONVERGED_NATS:
                break
            # features far off the others make a whole step go too far, and the next one back
            now = loss(coefficients)
            while loss(coefficients - step) > now - 1e-4 * expected_gain and expected_gain > CONVERGED_NATS:
                step, expected_gain = 0.5 * step, 0.5 * expected_gain
            coefficients = coefficients - step
        return cls(mean, deviation, coefficients)

    @staticmethod
    def _design(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        x = (features - mean) / deviation
        return torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], dim=1)

    def probability(self, features: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
        """Of misassignment."""
        return torch.sigmoid(self._design(features, self.mean, self.deviation) @ self.coefficients)


@dataclass(frozen=True)
class ErrorModel:
    """Calibrated on particles with known poses (``fit``); without them (``uncalibrated``) the errors are as the matches
    state."""

    scale: float
    """true over stated local error"""
    misassignment: MisassignmentModel | None
    misassigned_angle_rad: Float[Tensor, " u"]
    """quantiles of the error of misassigned particles"""
    level: float
    """the quantile of each particle's own distribution that has the nominal coverage"""
    shift_scale: float
    shift_bound_scale: float
    """bound of the shift's error over its root-mean-square"""

    @classmethod
    def uncalibrated(cls, uniform_angles_rad: Float[Tensor, " u"], coverage: float) -> "ErrorModel":
        """``uniform_angles_rad``: angles to a random rotation, the symmetry taken into account."""
        # Rayleigh's distribution for the shift: two equal deviations
        bound = math.sqrt(-math.log(1 - coverage)) if coverage < 1 else math.inf
        return cls(1.0, None, uniform_angles_rad.double(), coverage, 1.0, bound)

    @classmethod
    def fit(cls, evidence: Evidence, error_rad: Float[Tensor, " n"], shift_error_angstrom: Float[Tensor, " n"],
            uniform_angles_rad: Float[Tensor, " u"], coverage: float) -> "ErrorModel":
        """From n particles whose errors are known."""
        error_rad = error_rad.double()
        is_near = error_rad <= MISASSIGNED_ABOVE_RMS * evidence.rms_rad
        near = is_near if is_near.any() else torch.ones_like(is_near)
        stated = cls.uncalibrated(uniform_angles_rad, coverage)
        middle = stated._local_angles(evidence[near]).median(1).values
        scale = float((error_rad[near] / middle).median())
        is_misassigned = error_rad > MISASSIGNED_ABOVE_RMS * max(scale, 1.0) * evidence.rms_rad
        misassignment = MisassignmentModel.fit(evidence.features(), is_misassigned)
        anywhere = stated.misassigned_angle_rad
        copies = error_rad[is_misassigned].repeat_interleave(round(len(anywhere) / PRIOR_MISASSIGNED))
        # numpy's: torch's takes 16 million values at most, and many labelled particles may be misassigned
        angles = torch.from_numpy(np.quantile(torch.cat([copies, anywhere]).numpy(),
                                              (np.arange(N_MISASSIGNED_SAMPLES) + 0.5) / N_MISASSIGNED_SAMPLES))
        shift_rms = evidence.shift_deviation_angstrom.double().square().sum(1).sqrt()
        ratio = shift_error_angstrom.double() / shift_rms
        shift_scale = float(shift_error_angstrom.double().mean() / shift_rms.mean())
        model = replace(stated, scale=scale, misassignment=misassignment, misassigned_angle_rad=angles,
                        shift_scale=shift_scale, shift_bound_scale=conformal_quantile(ratio, coverage))
        return replace(model, level=conformal_quantile(model.reached_level(evidence, error_rad), coverage))

    def misassignment_probability(self, evidence: Evidence) -> Float[Tensor, " n"]:
        """Probability that the pose is wrong, or the image no particle."""
        by_fit = misassignment_probability(evidence.fit.double())
        if self.misassignment is None:
            return by_fit
        return 1 - (1 - by_fit) * (1 - self.misassignment.probability(evidence.features()))

    def expected_error_deg(self, evidence: Evidence) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Expected error and bound in degrees."""
        pairs = [self._expected_and_bound(evidence[start:start + _CHUNK]) for start in range(0, len(evidence), _CHUNK)]
        return tuple(torch.rad2deg(torch.cat(column)).float() for column in zip(*pairs, strict=True))

    def _expected_and_bound(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        angle, weight = self._distribution(evidence)
        reached = weight.cumsum(1) >= min(self.level, 1.0) - 1e-9
        # rounding must not leave the last one out
        reached[:, -1] = True
        bound = angle.gather(1, reached.double().argmax(1, keepdim=True))[:, 0]
        return (angle * weight).sum(1), bound if self.level <= 1.0 else torch.full_like(bound, math.pi)

    def expected_shift_error_angstrom(self, evidence: Evidence) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Expected error and bound of the shift."""
        rms = evidence.shift_deviation_angstrom.double().square().sum(1).sqrt()
        return (self.shift_scale * rms).float(), (self.shift_bound_scale * rms).float()

    def reached_level(self, evidence: Evidence, error_rad: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The smallest level whose bound holds for each error; above 1 where none does."""
        levels = []
        for start in range(0, len(evidence), _CHUNK):
            angle, weight = self._distribution(evidence[start:start + _CHUNK])
            holds = angle >= error_rad.double()[start:start + _CHUNK, None]
            first = holds.double().argmax(1, keepdim=True)
            levels.append(torch.where(holds.any(1), weight.cumsum(1).gather(1, first)[:, 0], math.inf))
        return torch.cat(levels)

    def _local_angles(self, evidence: Evidence) -> Tensor:
        """Samples (n, s) of the error of right poses, in radians, unsorted; the same normal numbers for all."""
        normal = torch.randn(N_LOCAL_SAMPLES, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        deviation = self.scale * evidence.posterior.local_deviation_rad.double()
        return (deviation[:, None] * normal).norm(dim=-1).clamp_max(math.pi)

    def _distribution(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Angles (n, m), ascending, and their weights, which sum to 1."""
        misassigned, posterior = self.misassignment_probability(evidence)[:, None], evidence.posterior
        local, weight = self._local_angles(evidence), posterior.weight.double() * (1 - misassigned)
        n, u = len(misassigned), len(self.misassigned_angle_rad)
        angle = torch.cat([local, posterior.alternative_angle_rad[:, 1:].double(),
                           self.misassigned_angle_rad.expand(n, -1)], dim=1)
        weight = torch.cat([(weight[:, :1] / N_LOCAL_SAMPLES).expand(-1, N_LOCAL_SAMPLES), weight[:, 1:],
                            (misassigned / u).expand(-1, u)], dim=1)
        angle, order = angle.sort(dim=1)
        return angle, weight.gather(1, order) / weight.sum(1, keepdim=True)


def conformal_quantile(scores: Float[Tensor, " n"], coverage: float) -> float:
    """The ``ceil((n + 1) coverage)``-th smallest of n scores: a further score is at most this with probability
    ``coverage`` or more. Infinite where n is too small for that."""
    rank = math.ceil((len(scores) + 1) * coverage)
    if rank > len(scores):
        return math.inf
    return float(scores.double().sort().values[rank - 1])
