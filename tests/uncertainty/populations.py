"""Populations of particles whose errors are known, and what is known of them without their poses."""

import torch

from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.uncertainty.error_model import Evidence
from cryoforum_core.uncertainty.match_posterior import MatchPosterior, uniform_angles_rad

UNIFORM = uniform_angles_rad(symmetry_group("c1"))


def evidence(deviation_rad, fit=None):
    """Of particles without alternative poses: local deviations (n, 3) and how well they fit (n,)."""
    n = len(deviation_rad)
    posterior = MatchPosterior(torch.ones(n, 1), torch.zeros(n, 1), deviation_rad)
    return Evidence(posterior, torch.zeros(n) if fit is None else fit, torch.full((n,), 0.1), torch.full((n, 2), 0.5))


def population(n, seed, understated=1.5):
    """Errors that are larger than stated; particles of a poor fit are more often misassigned: evidence, error, shift error."""
    generator = torch.Generator().manual_seed(seed)
    deviation = torch.deg2rad(torch.exp(torch.randn(n, 1, generator=generator) * 0.5)).expand(n, 3)
    fit = torch.randn(n, generator=generator)
    local = (understated * deviation * torch.randn(n, 3, generator=generator)).norm(dim=1)
    is_misassigned = torch.rand(n, generator=generator) < torch.sigmoid(-3 - 2 * fit)
    anywhere = UNIFORM[torch.randint(len(UNIFORM), (n,), generator=generator)].float()
    shift_error = (0.5 * understated * torch.randn(n, 2, generator=generator)).norm(dim=1)
    return evidence(deviation, fit), torch.where(is_misassigned, anywhere, local), shift_error
