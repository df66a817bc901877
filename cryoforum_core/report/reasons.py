"""Reasons to reject an image, explained: kinds of junk, and others."""

from collections import Counter
from collections.abc import Mapping

from ..catalogue import NO_REASON, REASONS
from ..results.pose_results import PoseResults
from .page import Table, percent

# reason -> what it means, and what to do
MEANINGS = {name: (reason.meaning, reason.remedy) for name, reason in REASONS.items()}
# of tables of reasons
REASON_HEADER = ("reason", "images", "of all", "meaning", "what to do")


def reason_rows(counts: Mapping[str, int], n_images: int) -> tuple[tuple[str, ...], ...]:
    """Rows under ``REASON_HEADER``, the most frequent first. ``counts``: by names of ``MEANINGS``."""
    return tuple((name.replace("-", " "), f"{count:,}", percent(count / n_images), *MEANINGS[name])
                 for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def junk_label_tables(results: PoseResults) -> list[Table]:
    """How many images could be rejected for each reason; empty where a run did not classify its images."""
    if results.junk is None:
        return []
    counts = {name: count for name, count in Counter(results.junk.reason.tolist()).items() if name != NO_REASON}
    n_images = len(results.junk.reason)
    if not counts:
        return [Table("Junk and ambiguous images", "All images are classified as particles.", ("images", "of all"),
                      ((f"{n_images:,}", percent(1.0)),))]
    rows = tuple(row[:4] for row in reason_rows(counts, n_images))
    return [Table("Junk and ambiguous images", "All other images are classified as particles. No image has been removed "
                  "yet: select (uncertainty subset in Scipion) does that.", REASON_HEADER[:4], rows, wide=True)]
