"""The Bingham distribution on unit quaternions: a 4x4 symmetric matrix as a posterior of a rotation.

Convention, stated once: the density of q on the unit sphere of R^4 is ``exp(-q' A q) / F(A)``, so that the mode is
the eigenvector of A's **smallest** eigenvalue, A and ``A + c I`` are the same distribution, and q and -q are equally
likely. An eigenvalue gap g is the precision of one rotation axis: the angle about it has a standard deviation of about
``sqrt(2 / g)`` radians where g is large. Sources: Peretroukhin et al. 2020 (doi 10.15607/RSS.2020.XVI.007) for the
matrix as a network's output, Bingham 1974 for the distribution.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .rotations import smallest_eigenvector

# lower triangle, column by column, as in roma.symmatrixvec_to_unitquat
_ROW = (0, 1, 2, 3, 1, 2, 3, 2, 3, 3)
_COLUMN = (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)


def symmetric_from_10(vector: Float[Tensor, "*batch 10"]) -> Float[Tensor, "*batch 4 4"]:
    """Ten numbers (..., 10) to the symmetric matrix (..., 4, 4) whose lower triangle, column by column, they are."""
    matrix = vector.new_zeros(*vector.shape[:-1], 4, 4)
    matrix[..., _ROW, _COLUMN] = vector
    return matrix + matrix.tril(-1).transpose(-1, -2)


def psd_from_10(vector: Float[Tensor, "*batch 10"]) -> Float[Tensor, "*batch 4 4"]:
    """Ten numbers (..., 10) to the positive semi-definite ``L L'`` (..., 4, 4), L lower triangular (Chung 2023)."""
    lower = vector.new_zeros(*vector.shape[:-1], 4, 4)
    lower[..., _ROW, _COLUMN] = vector
    return lower @ lower.transpose(-1, -2)


def isotropic_bingham(quaternion: Float[Tensor, "*batch 4"], concentration: Float[Tensor, " *batch"]
                      ) -> Float[Tensor, "*batch 4 4"]:
    """``A = k (I - q q')`` (..., 4, 4): equally certain about all axes. Shapes (..., 4) and (...,)."""
    outer = quaternion[..., :, None] * quaternion[..., None, :]
    return concentration[..., None, None] * (torch.eye(4, dtype=outer.dtype, device=outer.device) - outer)


def bingham_from_weights(quaternion: Float[Tensor, "*batch m 4"], weight: Float[Tensor, "*batch m"]
                         ) -> Float[Tensor, "*batch 4 4"]:
    """``A = -sum_j w_j q_j q_j'`` (..., 4, 4) from rotations (..., m, 4) and weights (..., m).

    Its eigenvector of the smallest eigenvalue is the weighted mean rotation (Markley et al. 2007, doi 10.2514/1.28949).
    """
    return -torch.einsum("...m,...mi,...mj->...ij", weight, quaternion, quaternion)


def eigenvalue_gaps(bingham: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 3"]:
    """The three precisions ``lambda_i - lambda_1`` (..., 3), ascending, of matrices (..., 4, 4)."""
    eigenvalues = torch.linalg.eigvalsh(bingham)
    return eigenvalues[..., 1:] - eigenvalues[..., :1]


# solving for the nodes takes longer than using them
_legendre = functools.lru_cache(np.polynomial.legendre.leggauss)


def _log_spaced_nodes(scale: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights (..., n) on [0, 1], spaced evenly in log(t + 1 / scale).

    ``t = ((1 + scale)^v - 1) / scale``: even for scale 0; for a large one the range from 1 / scale to 1 gets as
    many nodes per factor e as any other.
    """
    nodes, weights = _legendre(n)
    v = torch.as_tensor(0.5 * (nodes + 1), dtype=scale.dtype, device=scale.device)
    w = torch.as_tensor(0.5 * weights, dtype=scale.dtype, device=scale.device)
    scale = scale.detach().clamp_min(1e-9)[..., None]
    growth = torch.log1p(scale)
    return torch.expm1(v * growth) / scale, w * growth * torch.exp(v * growth) / scale


def bingham_log_normalizer(eigenvalues: Float[Tensor, "*batch 4"], n_nodes: int = 48) -> Float[Tensor, " *batch"]:
    """log F (...,) for ascending eigenvalues (..., 4); exact to 1e-10 for gaps from 0 to 1e6, differentiable.

    In the coordinates ``(sqrt(1-t) e^(i a), sqrt(t) e^(i b))`` of the sphere both angles integrate to Bessel functions:
    ``F = 2 pi^2 int_0^1 exp(-(l1+l2)/2 (1-t) - (l3+l4)/2 t) I0((l2-l1)/2 (1-t)) I0((l4-l3)/2 t) dt``. What is left is
    one-dimensional. Computed in float64; the exponentials are taken out (``i0e``) so that nothing overflows.
    """
    first, second, third, fourth = eigenvalues.double().unbind(-1)
    t, weight = _log_spaced_nodes(fourth - first, n_nodes)
    decay = torch.exp(-(third - first)[..., None] * t)
    near = torch.special.i0e(0.5 * (second - first)[..., None] * (1 - t))
    far = torch.special.i0e(0.5 * (fourth - third)[..., None] * t)
    integral = (weight * decay * near * far).sum(-1)
    return (math.log(2 * math.pi ** 2) - first + integral.log()).to(eigenvalues.dtype)


def bingham_negative_log_likelihood(bingham: Float[Tensor, "*#batch 4 4"], quaternion: Float[Tensor, "*#batch 4"]
                                    ) -> Float[Tensor, "..."]:
    """``q' A q + log F(A)`` (...,) of rotations (..., 4) under matrices (..., 4, 4).

    Finite, with finite gradients, also where eigenvalues coincide (only eigenvalues are differentiated).
    """
    eigenvalues = torch.linalg.eigvalsh(bingham)
    energy = torch.einsum("...i,...ij,...j->...", quaternion, bingham, quaternion)
    # both terms relative to the smallest eigenvalue: it cancels, and float32 keeps its digits
    lowest = eigenvalues[..., 0]
    return (energy - lowest) + bingham_log_normalizer(eigenvalues - lowest[..., None])


def _error_density(gaps: Tensor, half_angle_rad: Tensor, n_nodes: int = 16) -> Tensor:
    """Unnormalised density (n, k) of half the angle between a sample and the mode; gaps (n, 3), angles (n, k).

    At half-angle h the quaternion is ``(cos h, sin h u)``; u on the sphere S^2 is integrated out: along the axis of the
    largest gap by quadrature, around it by a Bessel function.
    """
    low, middle, high = gaps[:, None, :].unbind(-1)
    radius_squared = torch.sin(half_angle_rad).square()
    scale = torch.sqrt((radius_squared * (high - low)).clamp_min(0))
    axis, weight = _log_spaced_nodes(scale, n_nodes)
    ring = 1 - axis.square()
    exponent = -(radius_squared * (high - low))[..., None] * axis.square()
    bessel = torch.special.i0e((0.5 * radius_squared * (middle - low))[..., None] * ring)
    sphere = (weight * torch.exp(exponent) * bessel).sum(-1)
    return radius_squared * torch.exp(-radius_squared * low) * sphere


def _error_distribution(gaps: Tensor, n_angles: int = 64) -> tuple[Tensor, Tensor]:
    """Angles in radians (n, k) and the probability (n, k) that the error is below each; gaps (n, 3) float64.

    The angles end where nothing is left (a density of exp(-40)) and are even in the logarithm below that.
    """
    v = torch.linspace(0, 1, n_angles, dtype=gaps.dtype, device=gaps.device)
    largest = torch.asin(torch.sqrt(40 / gaps[:, :1].clamp_min(40)))
    scale = (largest * torch.sqrt(gaps[:, 2:])).clamp_min(1e-6)
    growth = torch.log1p(scale)
    half_angle = largest * torch.expm1(v * growth) / scale
    mass = _error_density(gaps, half_angle) * torch.exp(v * growth)
    # cumulative trapezoids with the Euler-Maclaurin end correction
    slope = torch.gradient(mass, dim=1)[0]
    steps = 0.5 * (mass[:, 1:] + mass[:, :-1]) - slope.diff(dim=1) / 12
    cumulative = torch.nn.functional.pad(torch.cumsum(steps, dim=1), (1, 0)).cummax(dim=1).values
    return 2 * half_angle, cumulative / cumulative[:, -1:]


def angular_error(eigenvalues: Float[Tensor, "n 4"], coverage: float = 0.9, chunk: int = 2048
                  ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The error of the mode expected under the distribution itself, from ascending eigenvalues (n, 4).

    Returns the expected angle in degrees (n,) between the mode and the true rotation, and the angle in degrees (n,)
    that the truth stays within with probability ``coverage``. By two-dimensional quadrature, good to 1 % of the angle.
    """
    expected, bound = [], []
    for part in eigenvalues.double().split(chunk):
        angle, probability = _error_distribution(part[:, 1:] - part[:, :1])
        middle = 0.5 * (angle[:, 1:] + angle[:, :-1])
        expected.append((middle * probability.diff(dim=1)).sum(1))
        wanted = torch.full_like(angle[:, :1], coverage)
        right = torch.searchsorted(probability, wanted).clamp(1, angle.shape[1] - 1)
        p0, p1 = probability.gather(1, right - 1), probability.gather(1, right)
        a0, a1 = angle.gather(1, right - 1), angle.gather(1, right)
        bound.append((a0 + (a1 - a0) * ((wanted - p0) / (p1 - p0).clamp_min(1e-300)))[:, 0])
    if not expected:
        return eigenvalues.new_zeros(0), eigenvalues.new_zeros(0)
    return tuple(torch.rad2deg(torch.cat(part)).to(eigenvalues.dtype) for part in (expected, bound))


def sample_bingham(bingham: Float[Tensor, "batch 4 4"], n: int, generator: torch.Generator | None = None
                   ) -> Float[Tensor, "batch {n} 4"]:
    """``n`` rotations (batch, n, 4) from each of the matrices (batch, 4, 4).

    Rejection from an angular central Gaussian envelope (Kent, Ganeiber and Mardia 2013, arXiv 1310.8110), exact; on
    average about two trials a sample at any concentration.
    """
    eigenvalues, axes = torch.linalg.eigh(bingham.double())
    gaps = eigenvalues - eigenvalues[:, :1]
    envelope = _envelope_parameter(gaps)
    inverse_covariance = 1 + 2 * gaps / envelope[:, None]
    log_bound = -0.5 * (4 - envelope) + 2 * torch.log(4 / envelope)
    samples = torch.empty(len(bingham), n, 4, dtype=gaps.dtype, device=gaps.device)
    row, column = torch.nonzero(torch.ones(len(bingham), n, device=gaps.device), as_tuple=True)
    while len(row):
        normal = torch.randn(len(row), 4, dtype=gaps.dtype, device=gaps.device, generator=generator)
        trial = torch.nn.functional.normalize(normal / inverse_covariance[row].sqrt(), dim=-1)
        log_target = -(trial.square() * gaps[row]).sum(-1)
        log_envelope = -2 * torch.log((trial.square() * inverse_covariance[row]).sum(-1))
        uniform = torch.rand(len(row), dtype=gaps.dtype, device=gaps.device, generator=generator)
        accepted = uniform.log() < log_target - log_envelope - log_bound[row]
        samples[row[accepted], column[accepted]] = trial[accepted]
        row, column = row[~accepted], column[~accepted]
    return torch.einsum("bij,bnj->bni", axes, samples).to(bingham.dtype)


def _envelope_parameter(gaps: Tensor) -> Tensor:
    """The b (batch,) in (0, 4] with ``sum_i 1 / (b + 2 gap_i) = 1``, by bisection: the tightest envelope."""
    low, high = torch.zeros_like(gaps[:, 0]), torch.full_like(gaps[:, 0], 4.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        too_small = (1 / (middle[:, None] + 2 * gaps)).sum(-1) > 1
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return 0.5 * (low + high)


def dispersion_max(eigenvalues: Float[Tensor, "*batch 4"]) -> Float[Tensor, " *batch"]:
    """Largest dispersion ``lambda_1 - lambda_2`` (...,) of Chung (2023): <= 0, lower is more certain. Eigenvalues ascend."""
    return eigenvalues[..., 0] - eigenvalues[..., 1]


def dispersion_trace(eigenvalues: Float[Tensor, "*batch 4"]) -> Float[Tensor, " *batch"]:
    """Sum of dispersions ``sum_i (lambda_1 - lambda_i)`` (...,) of Chung (2023): <= 0, lower is more certain."""
    return (eigenvalues[..., :1] - eigenvalues).sum(-1)


def dispersion_wigner(eigenvalues: Float[Tensor, "*batch 4"]) -> Float[Tensor, " *batch"]:
    """Wigner log-likelihood of the spacings (Chung 2023), ``sum_i log s_i - pi s_i^2 / 4`` (...,)."""
    spacing = eigenvalues.diff(dim=-1).clamp_min(torch.finfo(eigenvalues.dtype).tiny)
    return (spacing.log() - 0.25 * math.pi * spacing.square()).sum(-1)


@dataclass(frozen=True)
class OrientationPosterior:
    """The posterior of n particles' rotations. Angles in degrees."""

    bingham: Float[Tensor, "n 4 4"]
    """(n, 4, 4) symmetric; density exp(-q'Aq) / F(A)."""
    quaternion: Float[Tensor, "n 4"]
    """(n, 4) the mode."""
    eigenvalues: Float[Tensor, "n 4"]
    """(n, 4) of ``bingham``, ascending."""
    expected_error_deg: Float[Tensor, " n"]
    """(n,) expected angle between the mode and the true rotation."""
    error_bound_deg: Float[Tensor, " n"]
    """(n,) the truth is within this angle of the mode with probability ``coverage``."""
    coverage: float

    @classmethod
    def from_bingham(cls, bingham: Float[Tensor, "n 4 4"], quaternion: Float[Tensor, "n 4"] | None = None,
                     coverage: float = 0.9) -> "OrientationPosterior":
        """From matrices (n, 4, 4). ``quaternion`` (n, 4): the mode, where it is known already."""
        eigenvalues = torch.linalg.eigvalsh(bingham)
        expected, bound = angular_error(eigenvalues, coverage)
        mode = smallest_eigenvector(bingham) if quaternion is None else quaternion
        return cls(bingham, mode, eigenvalues, expected, bound, coverage)

    @property
    def gaps(self) -> Float[Tensor, "n 3"]:
        """(n, 3) precisions lambda_i - lambda_1, ascending."""
        return self.eigenvalues[:, 1:] - self.eigenvalues[:, :1]

    def __len__(self) -> int:
        return len(self.bingham)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "len {n} 4"]:
        """``n`` rotations (len, n, 4) from each posterior."""
        return sample_bingham(self.bingham, n, generator)
