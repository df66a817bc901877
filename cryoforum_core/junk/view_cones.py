"""Cones of viewing directions, and how many particles of each a selection must keep, so that none is lost with the junk."""

import numpy as np
from jaxtyping import Bool, Float, Int

from ..geometry.even_directions import even_directions

# 48 equal parts of the sphere, some 17 degrees from the middle of each to its edge
N_CONES = 48
# viewing directions compared with all cones at a time
CHUNK = 4096


def view_cones(directions: Float[np.ndarray, "n 3"], matrices: Float[np.ndarray, "g 3 3"]) -> Int[np.ndarray, " n"]:
    """Which of ``N_CONES`` even cones each viewing direction lies in.

    ``matrices`` of the point group: equivalent views share a cone, the first of those that they lie in.
    """
    axes = even_directions(N_CONES).T
    # every equivalent of a direction is compared with every cone: of icosahedral sets 2,880 numbers each
    parts = np.array_split(directions, len(directions) // CHUNK + 1)
    return np.concatenate([(np.einsum("ni,gij->ngj", part, matrices) @ axes).argmax(-1).min(-1) for part in parts])


def quotas(cone: Int[np.ndarray, " n"], is_junk: Bool[np.ndarray, " n"], n_kept: int) -> Int[np.ndarray, " cones"]:
    """How many particles each cone must have among ``n_kept`` of n, so that its share falls by no more than
    the share of junk in it: ``n_kept x (its particles that are no junk) / n``, rounded down."""
    good = np.bincount(cone[~is_junk], minlength=N_CONES)
    return n_kept * good // len(cone)


def protected_best(quality: Float[np.ndarray, " n"], cone: Int[np.ndarray, " n"], is_junk: Bool[np.ndarray, " n"],
                   n_kept: int) -> Bool[np.ndarray, " n"]:
    """The ``n_kept`` best by ``quality``, once each cone's best have filled its quota.

    Of equal values the earlier rows; quality that is not finite must be -inf.
    """
    order = np.argsort(-quality, kind="stable")
    is_kept = np.zeros(len(quality), dtype=bool)
    for this, quota in enumerate(quotas(cone, is_junk, n_kept)):
        members = order[(cone[order] == this) & ~is_junk[order] & np.isfinite(quality[order])]
        is_kept[members[:quota]] = True
    rest = order[~is_kept[order]]
    is_kept[rest[:n_kept - is_kept.sum()]] = True
    return is_kept


def shares(cone: Int[np.ndarray, " n"], is_kept: Bool[np.ndarray, " n"], is_junk: Bool[np.ndarray, " n"]
           ) -> dict[str, list[float]]:
    """Of each cone, in percent: its share ``before`` and ``after``, and the share of ``junk`` in it."""
    before, after = np.bincount(cone, minlength=N_CONES), np.bincount(cone[is_kept], minlength=N_CONES)
    junk = np.bincount(cone[is_junk], minlength=N_CONES)
    return {"before": (100 * before / max(before.sum(), 1)).round(3).tolist(),
            "after": (100 * after / max(after.sum(), 1)).round(3).tolist(),
            "junk": (100 * junk / np.maximum(before, 1)).round(3).tolist()}
