"""The micrographs of a run: their noise and the contrast of their particles, and which of them to look at."""

import numpy as np

from ..results.micrographs import Micrographs, read_micrographs
from . import plots
from .page import Picture
from .run_files import RunFiles

# points with a name in the plot, and characters of it
_N_NAMED = 5
_NAME_LENGTH = 32


def micrograph_pictures(files: RunFiles) -> list[Picture]:
    """Noise and contrast over the micrographs; none in runs that have no such table, or where it is empty of both."""
    if not files.run.micrographs.is_file():
        return []
    micrographs = read_micrographs(files.run.micrographs)
    panels = {"low-frequency noise power\n(set: 1)": micrographs.noise[:, 0], "mean contrast\n(set: about 1)":
              micrographs.mean_contrast}
    panels = {label: values for label, values in panels.items() if np.isfinite(values).any()}
    if not panels:
        return []
    figure = plots.in_order(panels, "micrograph, in the order of the particles' file", micrographs.is_unusual,
                            "unusual noise or contrast", _names(micrographs))
    return [Picture("Noise and contrast of the micrographs",
                    "Noise at low frequencies (down to 1/8 of the Nyquist frequency), whose total power is the same in all "
                    "images, and mean contrast of the particles. Steps and drifts show that imaging changed. Micrographs "
                    "beyond 4 robust standard deviations are marked, also for noise at higher frequencies: thick or "
                    "contaminated ice, carbon, or a wrong defocus. All figures are in micrographs.csv.", figure, wide=True)]


def micrograph_notes(files: RunFiles) -> tuple[str, ...]:
    """A sentence that names the worst micrographs; none where there are none."""
    worst = files.summary.get("unusual_micrographs")
    return (f"Micrographs to look at: {'; '.join(worst)}.",) if worst else ()


def _names(micrographs: Micrographs) -> dict[int, str]:
    """Of the most unusual ones, without folder."""
    rows = micrographs.worst_rows()[:_N_NAMED].tolist()
    return {row: micrographs.name[row].rsplit("/", 1)[-1][-_NAME_LENGTH:] for row in rows}
