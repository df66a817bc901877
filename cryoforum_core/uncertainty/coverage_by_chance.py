"""How low empirical coverage may be by chance alone. Plain numpy: pages of reports need it without torch."""

import math

import numpy as np
from jaxtyping import Float, Int


def lowest_by_chance(n_in_groups: Int[np.ndarray, " groups"], coverage: float, probability: float = 0.05) -> float:
    """Quantile of the lowest empirical coverage of several groups whose true coverage is ``coverage``, each.

    The number of particles within their bound in a group of n is binomial. The lowest proportion of independent groups
    is above x with probability ``prod_i P(X_i > n_i x)``; returned is the smallest proportion x that the lowest one
    reaches or stays below with at least ``probability``. A lowest coverage below x is less likely than that by chance.
    """
    proportion, below = [], []
    for n in n_in_groups.tolist():
        proportion.append(np.arange(n + 1) / n)
        below.append(np.cumsum(_binomial(n, coverage)))
    possible = np.unique(np.concatenate(proportion))
    above = np.ones(len(possible))
    for values, cumulative in zip(proportion, below, strict=True):
        above *= 1 - cumulative[np.searchsorted(values, possible, side="right") - 1]
    return float(possible[np.flatnonzero(1 - above >= probability)[0]])


def _binomial(n: int, p: float) -> Float[np.ndarray, " {n}+1"]:
    """Probabilities of 0 to n successes; by logarithms, since the coefficients overflow."""
    k = np.arange(n + 1)
    log_factorial = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    return np.exp(log_factorial[n] - log_factorial - log_factorial[::-1] + k * math.log(p) + (n - k) * math.log1p(-p))
