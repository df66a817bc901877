"""Particles with match scores, junk labels and viewing directions, made in a moment."""

import numpy as np

from cryoforum_core.junk.rejection import ImageLabels


def labelled_views(rng: np.random.Generator, n: int = 2000) -> tuple[dict, ImageLabels]:
    """A preferred view whose particles match well, a rare one whose match is poorer, and junk in the preferred one."""
    cone = np.where(rng.random(n) < 0.05, 7, 3)
    junk = (cone == 3) & (rng.random(n) < 0.2)
    quality = np.where(cone == 7, -2.0, 0.0) + rng.normal(0, 1, n) - 10 * junk
    labels = ImageLabels(np.where(junk, "another-object", "none"), cone, np.full((n, 2), np.nan), np.full((n, 4), np.nan))
    return {"match-score": quality, "expected-error": np.exp(-quality),
            "particle-probability": np.where(junk, 0.0, 1.0)}, labels
