"""From what matching says of each particle to an expected error, and to a bound that holds as often as it says.

Each particle has a distribution of its error: near its pose with the spread of the local match, at a rival, or lost. Two
things of it are learnt from particles with known poses: the factor of the spread, and who is lost. What is promised then
is corrected by distributional conformal prediction (Chernozhukov, Wuethrich and Zhu, PNAS 2021): the level of each
particle's own distribution at which, of the known ones, as many hold as were promised. For particles drawn as the known
ones are, a bound at level a holds for at least a of them, but for the few numbers of the distribution that are fitted to the
same particles; how it held for particles that a model had not seen (``cross_validated``) goes with every run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .match_posterior import Belief, chance_lost

N_LOCAL_SAMPLES, N_LOST_SAMPLES = 256, 64
# a right pose is no farther from the truth than so many times its root-mean-square error
LOST_ABOVE_RMS = 4.0
RIDGE, INTERCEPT_RIDGE = 1.0, 0.01
MAX_NEWTON_STEPS, SETTLED_NATS = 100, 1e-9
# so much of a further particle, lost anywhere, stands for what so few known ones do not show
PRIOR_LOST = 0.1
N_FOLDS = 5
MIN_RIVAL_WEIGHT = 1e-13
_CHUNK = 4096


@dataclass(frozen=True)
class Evidence:
    """What is known of n particles without knowing the truth.

    ``fit`` (n,) standardised; ``network_angle_rad`` (n,) between the pose and the network's answer (0 where the pose is
    the network's own); ``shift_deviation_angstrom`` (n, 2) principal standard deviations of the shift.
    """

    belief: Belief
    fit: Tensor
    network_angle_rad: Tensor
    shift_deviation_angstrom: Tensor

    def __len__(self) -> int:
        return len(self.fit)

    def __getitem__(self, index) -> "Evidence":
        belief = Belief(self.belief.weight[index], self.belief.rival_angle_rad[index],
                        self.belief.local_deviation_rad[index])
        return Evidence(belief, self.fit[index], self.network_angle_rad[index], self.shift_deviation_angstrom[index])

    @property
    def rms_rad(self) -> Tensor:
        """Root-mean-square error (n,) of the local match."""
        return self.belief.local_deviation_rad.double().square().sum(1).sqrt()

    def features(self) -> Tensor:
        """What tells the lost from the others: (n, 4)."""
        rivals = self.belief.weight[:, 1:].double().sum(1).clamp_min(MIN_RIVAL_WEIGHT)
        odds = self.belief.weight[:, 0].double().log() - rivals.log()
        return torch.stack([self.fit.double().clamp(-8, 3), odds, self.rms_rad.clamp(1e-4, math.pi).log(),
                            self.network_angle_rad.double().clamp_min(1e-3).log()], dim=1)


@dataclass(frozen=True)
class LostModel:
    """Logistic regression of being lost on the standardised features."""

    mean: Tensor
    deviation: Tensor
    coefficients: Tensor
    """(1 + features,), the constant first"""

    @classmethod
    def fit(cls, features: Tensor, is_lost: Tensor) -> "LostModel":
        """Penalised maximum likelihood by Newton's method; a part of a particle that is lost keeps it finite where none
        is."""
        mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
        x = cls._design(features, mean, deviation)
        target = (is_lost.double() * len(x) + PRIOR_LOST) / (len(x) + 2 * PRIOR_LOST)
        penalty = torch.full((x.shape[1],), RIDGE, dtype=x.dtype)
        penalty[0] = INTERCEPT_RIDGE
        coefficients = torch.zeros(x.shape[1], dtype=x.dtype)
        coefficients[0] = torch.logit(target.mean())

        def loss(some: Tensor) -> Tensor:
            logit = x @ some
            return (torch.nn.functional.softplus(logit) - target * logit).sum() + 0.5 * (penalty * some.square()).sum()

        for _ in range(MAX_NEWTON_STEPS):
            chance = torch.sigmoid(x @ coefficients)
            gradient = x.T @ (chance - target) + penalty * coefficients
            hessian = (x * (chance * (1 - chance))[:, None]).T @ x + torch.diag(penalty)
            step = torch.linalg.solve(hessian, gradient)
            expected_gain = float(gradient @ step)
            if expected_gain < SETTLED_NATS:
                break
            # features far off the others make a whole step go too far, and the next one back
            now = loss(coefficients)
            while loss(coefficients - step) > now - 1e-4 * expected_gain and expected_gain > SETTLED_NATS:
                step, expected_gain = 0.5 * step, 0.5 * expected_gain
            coefficients = coefficients - step
        return cls(mean, deviation, coefficients)

    @staticmethod
    def _design(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        x = (features - mean) / deviation
        return torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], dim=1)

    def chance(self, features: Tensor) -> Tensor:
        """Probability (n,)."""
        return torch.sigmoid(self._design(features, self.mean, self.deviation) @ self.coefficients)


@dataclass(frozen=True)
class ErrorModel:
    """Learnt from particles with known poses (``fit``); without them (``unlearnt``), what the matches say themselves."""

    scale: float
    """true over stated local error"""
    lost: LostModel | None
    lost_angle_rad: Tensor
    """(u,) quantiles of the error of the lost"""
    level: float
    """of the particles' own distributions, for what is promised"""
    shift_scale: float
    shift_bound_scale: float
    """bound of the shift's error over its root-mean-square"""

    @classmethod
    def unlearnt(cls, uniform_angles_rad: Tensor, coverage: float) -> "ErrorModel":
        """``uniform_angles_rad`` (u,): angles to a random rotation, the symmetry taken into account."""
        # Rayleigh's distribution for the shift: two equal deviations
        bound = math.sqrt(-math.log(1 - coverage)) if coverage < 1 else math.inf
        return cls(1.0, None, uniform_angles_rad.double(), coverage, 1.0, bound)

    @classmethod
    def fit(cls, evidence: Evidence, error_rad: Tensor, shift_error_angstrom: Tensor, uniform_angles_rad: Tensor,
            coverage: float) -> "ErrorModel":
        """From n particles whose errors (n,) are known."""
        error_rad = error_rad.double()
        is_near = error_rad <= LOST_ABOVE_RMS * evidence.rms_rad
        near = is_near if is_near.any() else torch.ones_like(is_near)
        stated = cls.unlearnt(uniform_angles_rad, coverage)
        middle = stated._local_angles(evidence[near]).median(1).values
        scale = float((error_rad[near] / middle).median())
        is_lost = error_rad > LOST_ABOVE_RMS * max(scale, 1.0) * evidence.rms_rad
        lost = LostModel.fit(evidence.features(), is_lost)
        anywhere = stated.lost_angle_rad
        copies = error_rad[is_lost].repeat_interleave(round(len(anywhere) / PRIOR_LOST))
        # numpy's: torch's takes 16 million values at most, and many labelled particles may be lost
        angles = torch.from_numpy(np.quantile(torch.cat([copies, anywhere]).numpy(),
                                              (np.arange(N_LOST_SAMPLES) + 0.5) / N_LOST_SAMPLES))
        shift_rms = evidence.shift_deviation_angstrom.double().square().sum(1).sqrt()
        ratio = shift_error_angstrom.double() / shift_rms
        shift_scale = float(shift_error_angstrom.double().mean() / shift_rms.mean())
        model = replace(stated, scale=scale, lost=lost, lost_angle_rad=angles, shift_scale=shift_scale,
                        shift_bound_scale=conformal_quantile(ratio, coverage))
        return replace(model, level=conformal_quantile(model.reached_level(evidence, error_rad), coverage))

    def chance_lost(self, evidence: Evidence) -> Tensor:
        """Probability (n,) that the pose is wrong, or the image no particle."""
        by_fit = chance_lost(evidence.fit.double())
        if self.lost is None:
            return by_fit
        return 1 - (1 - by_fit) * (1 - self.lost.chance(evidence.features()))

    def expected_error_deg(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Expected error and bound in degrees, (n,) each."""
        pairs = [self._expected_and_bound(evidence[start:start + _CHUNK]) for start in range(0, len(evidence), _CHUNK)]
        return tuple(torch.rad2deg(torch.cat(column)).float() for column in zip(*pairs, strict=True))

    def _expected_and_bound(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        angle, weight = self._distribution(evidence)
        reached = weight.cumsum(1) >= min(self.level, 1.0) - 1e-9
        # rounding must not leave the last one out
        reached[:, -1] = True
        bound = angle.gather(1, reached.double().argmax(1, keepdim=True))[:, 0]
        return (angle * weight).sum(1), bound if self.level <= 1.0 else torch.full_like(bound, math.pi)

    def expected_shift_error_angstrom(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Expected error and bound of the shift, (n,) each."""
        rms = evidence.shift_deviation_angstrom.double().square().sum(1).sqrt()
        return (self.shift_scale * rms).float(), (self.shift_bound_scale * rms).float()

    def reached_level(self, evidence: Evidence, error_rad: Tensor) -> Tensor:
        """The smallest level (n,) whose bound holds for errors (n,); above 1 where none does."""
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
        deviation = self.scale * evidence.belief.local_deviation_rad.double()
        return (deviation[:, None] * normal).norm(dim=-1).clamp_max(math.pi)

    def _distribution(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Angles (n, m), ascending, and their weights, which sum to 1."""
        lost, belief = self.chance_lost(evidence)[:, None], evidence.belief
        local, weight = self._local_angles(evidence), belief.weight.double() * (1 - lost)
        n, u = len(lost), len(self.lost_angle_rad)
        angle = torch.cat([local, belief.rival_angle_rad[:, 1:].double(), self.lost_angle_rad.expand(n, -1)], dim=1)
        weight = torch.cat([(weight[:, :1] / N_LOCAL_SAMPLES).expand(-1, N_LOCAL_SAMPLES), weight[:, 1:],
                            (lost / u).expand(-1, u)], dim=1)
        angle, order = angle.sort(dim=1)
        return angle, weight.gather(1, order) / weight.sum(1, keepdim=True)


def conformal_quantile(scores: Tensor, coverage: float) -> float:
    """The ``ceil((n + 1) coverage)``-th smallest of scores (n,): a further score is at most this with probability
    ``coverage`` or more. Infinite where n is too small for that."""
    rank = math.ceil((len(scores) + 1) * coverage)
    if rank > len(scores):
        return math.inf
    return float(scores.double().sort().values[rank - 1])


@dataclass(frozen=True)
class HeldPromises:
    """What models fitted without a particle promised of it, against its error: all in degrees, (n,) each."""

    expected_error_deg: Tensor
    bound_deg: Tensor
    error_deg: Tensor
    levels: tuple[float, ...]
    held: tuple[float, ...]
    """part of the particles that each level's bound holds for"""
    shift_error_angstrom: Tensor
    shift_bound_angstrom: Tensor


def cross_validated(evidence: Evidence, error_rad: Tensor, shift_error_angstrom: Tensor, uniform_angles_rad: Tensor,
                    coverage: float, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> HeldPromises:
    """Promised against held, each particle by a model that has not seen it."""
    n, levels = len(error_rad), sorted({*levels, coverage})
    fold = torch.arange(n) % N_FOLDS
    expected, bound, shift_bound = torch.zeros(3, n)
    within = torch.zeros(len(levels), n, dtype=torch.bool)
    for number in range(N_FOLDS):
        out = fold == number
        model = ErrorModel.fit(evidence[~out], error_rad[~out], shift_error_angstrom[~out], uniform_angles_rad, coverage)
        expected[out], bound[out] = model.expected_error_deg(evidence[out])
        shift_bound[out] = model.expected_shift_error_angstrom(evidence[out])[1]
        reached = model.reached_level(evidence[~out], error_rad[~out])
        for row, level in enumerate(levels):
            at_level = replace(model, level=conformal_quantile(reached, level))
            within[row, out] = torch.deg2rad(at_level.expected_error_deg(evidence[out])[1]) >= error_rad[out]
    return HeldPromises(expected, bound, torch.rad2deg(error_rad).float(), tuple(levels),
                        tuple(within.double().mean(1).tolist()), shift_error_angstrom.float(), shift_bound)
