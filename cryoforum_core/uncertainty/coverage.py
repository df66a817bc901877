"""Nominal against empirical coverage of the error bounds, by cross-validation on particles with known poses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .error_model import ErrorModel, Evidence, conformal_quantile

# of the cross-validation
N_FOLDS = 5


@dataclass(frozen=True)
class EmpiricalCoverage:
    """Expected errors and bounds of models fitted without a particle, against its error: in degrees."""

    expected_error_deg: Float[Tensor, " n"]
    bound_deg: Float[Tensor, " n"]
    error_deg: Float[Tensor, " n"]
    nominal: tuple[float, ...]
    """coverages asked for"""
    empirical: tuple[float, ...]
    """part of the particles within each bound"""
    shift_error_angstrom: Float[Tensor, " n"]
    shift_bound_angstrom: Float[Tensor, " n"]


def cross_validated(evidence: Evidence, error_rad: Float[Tensor, " n"], shift_error_angstrom: Float[Tensor, " n"],
                    uniform_angles_rad: Float[Tensor, " u"], coverage: float, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)
                    ) -> EmpiricalCoverage:
    """Nominal against empirical coverage, each particle by a model that has not seen it."""
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
    return EmpiricalCoverage(expected, bound, torch.rad2deg(error_rad).float(), tuple(levels),
                             tuple(within.double().mean(1).tolist()), shift_error_angstrom.float(), shift_bound)
