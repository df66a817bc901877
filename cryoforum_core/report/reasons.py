"""What images without a trustworthy particle are, in words."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ..catalogue import NO_REASON, REASONS
from .page import Table, percent

# by label: what a reason means, and what can be done about it
MEANINGS = {label: (reason.meaning, reason.remedy) for label, reason in REASONS.items()}
REASON_HEADER = ("reason", "particles", "of all", "what it means", "what to do")


def reason_rows(counts: Mapping[str, int], n_images: int) -> tuple[tuple[str, ...], ...]:
    """Rows under ``REASON_HEADER``, the commonest first. ``counts``: by names of ``MEANINGS``."""
    return tuple((name.replace("-", " "), f"{count:,}", percent(count / n_images), *MEANINGS[name])
                 for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def judged_table(posterior: Mapping[str, np.ndarray]) -> list[Table]:
    """How a run classified its images; nothing if it did not classify them."""
    if "reason" not in posterior:
        return []
    counts = {name: count for name, count in Counter(posterior["reason"].tolist()).items() if name != NO_REASON}
    n_images = len(posterior["reason"])
    if not counts:
        return [Table("What the images are", "All are particles.", ("particles", "of all"),
                      ((f"{n_images:,}", percent(1.0)),))]
    rows = tuple(row[:4] for row in reason_rows(counts, n_images))
    return [Table("What the images are", "All others are particles. Nothing is rejected yet: run select (uncertainty subset in "
                  "Scipion).", REASON_HEADER[:4], rows, wide=True)]
