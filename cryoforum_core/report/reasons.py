"""Junk labels and other reasons to reject an image, explained."""

from collections import Counter
from collections.abc import Mapping

from ..results.pose_results import PoseResults
from .page import Table, percent

# label -> what it means, and what to do
MEANINGS = {
    "not-a-particle": ("No signal above the noise, or a signal unlike any particle: ice, carbon, an edge, an empty image.",
                       "Leave it out."),
    "overlapping-neighbour": ("The particle matches, but another one overlaps it.",
                              "Leave it out, or use a tighter mask."),
    "off-centre": ("Nothing matches at the centre; there is a particle off-centre.",
                   "Re-extract it with the origins of recentre.star."),
    "another-object": ("There is an object at the centre, but it does not match the map in any orientation.",
                       "Reconstruct these: another conformation or another molecule?"),
    "ambiguous-orientation": ("A good match, but an alternative orientation is about as likely. Not junk.",
                              "Keep it unless errors must be small; the alternative orientation is in rejected.star."),
    "error-beyond-limit": ("A good match, but its expected error is above the limit.",
                           "Keep it for a map at lower resolution."),
}
REASON_HEADER = ("label", "images", "of all", "meaning", "what to do")
_PARTICLE = "none"


def reason_rows(counts: Mapping[str, int], n_images: int) -> tuple[tuple[str, ...], ...]:
    """Rows under ``REASON_HEADER``, the most frequent first. ``counts``: by names of ``MEANINGS``."""
    return tuple((name.replace("-", " "), f"{count:,}", percent(count / n_images), *MEANINGS[name])
                 for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def junk_label_tables(results: PoseResults) -> list[Table]:
    """How many images have each junk label; empty where a run did not classify its images."""
    if results.junk is None:
        return []
    counts = {name: count for name, count in Counter(results.junk.reason.tolist()).items() if name != _PARTICLE}
    n_images = len(results.junk.reason)
    if not counts:
        return [Table("Junk labels", "All images are classified as particles.", ("images", "of all"),
                      ((f"{n_images:,}", percent(1.0)),))]
    rows = tuple(row[:4] for row in reason_rows(counts, n_images))
    return [Table("Junk labels", "All other images are classified as particles. No image has been removed yet: run "
                  "select (uncertainty subset in Scipion).", REASON_HEADER[:4], rows, wide=True)]
