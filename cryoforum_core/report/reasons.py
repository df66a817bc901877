"""Junk labels and other reasons to reject an image, explained."""

from collections import Counter
from collections.abc import Mapping

from ..catalogue import NO_REASON, REASONS
from ..results.pose_results import PoseResults
from .page import Table, percent

# label -> what it means, and what to do
MEANINGS = {label: (reason.meaning, reason.remedy) for label, reason in REASONS.items()}
REASON_HEADER = ("label", "images", "of all", "meaning", "what to do")


def reason_rows(counts: Mapping[str, int], n_images: int) -> tuple[tuple[str, ...], ...]:
    """Rows under ``REASON_HEADER``, the most frequent first. ``counts``: by names of ``MEANINGS``."""
    return tuple((name.replace("-", " "), f"{count:,}", percent(count / n_images), *MEANINGS[name])
                 for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def junk_label_tables(results: PoseResults) -> list[Table]:
    """How many images have each junk label; empty where a run did not classify its images."""
    if results.junk is None:
        return []
    counts = {name: count for name, count in Counter(results.junk.reason.tolist()).items() if name != NO_REASON}
    n_images = len(results.junk.reason)
    if not counts:
        return [Table("Junk labels", "All images are classified as particles.", ("images", "of all"),
                      ((f"{n_images:,}", percent(1.0)),))]
    rows = tuple(row[:4] for row in reason_rows(counts, n_images))
    return [Table("Junk labels", "All other images are classified as particles. No image has been removed yet: run "
                  "select (uncertainty subset in Scipion).", REASON_HEADER[:4], rows, wide=True)]
