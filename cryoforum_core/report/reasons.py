"""What images without a trustworthy particle are, in words."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from .page import Table, percent

# what a reason means, and what can be done about it
MEANINGS = {
    "not-a-particle": ("No power above the noise, or power that no particle has: ice, carbon, an edge, an empty image.",
                       "Nothing: leave it out."),
    "overlapping-neighbour": ("The particle matches, and there is another one beside it.",
                              "Leave it out, or mask tightly."),
    "off-centre": ("Nothing matches at the centre; a particle lies aside.",
                   "Extract it again with the origins of recentre.star."),
    "another-object": ("There is something at the centre, but not this molecule in any orientation.",
                       "Look at a map of these: another state or another molecule?"),
    "ambiguous-orientation": ("A good match, but another orientation is about as good: no junk.",
                              "Keep it unless errors must be small; the other orientation is in rejected.star."),
    "error-beyond-limit": ("A good match whose expected error is above what was asked for.",
                           "Keep it for a coarser map."),
}
REASON_HEADER = ("reason", "particles", "of all", "what it means", "what to do")
_NO_JUNK = "none"


def reason_rows(counts: Mapping[str, int], n_images: int) -> tuple[tuple[str, ...], ...]:
    """Rows under ``REASON_HEADER``, the commonest first. ``counts``: by names of ``MEANINGS``."""
    return tuple((name.replace("-", " "), f"{count:,}", percent(count / n_images), *MEANINGS[name])
                 for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def judged_table(posterior: Mapping[str, np.ndarray]) -> list[Table]:
    """What a run takes its images for; nothing where it did not judge them."""
    if "reason" not in posterior:
        return []
    counts = {name: count for name, count in Counter(posterior["reason"].tolist()).items() if name != _NO_JUNK}
    n_images = len(posterior["reason"])
    if not counts:
        return [Table("What the images are", "All are taken for particles.", ("particles", "of all"),
                      ((f"{n_images:,}", percent(1.0)),))]
    rows = tuple(row[:4] for row in reason_rows(counts, n_images))
    return [Table("What the images are", "All others are taken for particles. Nothing is left out yet: select (uncertainty "
                  "subset in Scipion) does that.", REASON_HEADER[:4], rows, wide=True)]
