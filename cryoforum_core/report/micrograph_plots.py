"""The micrographs of a run: their noise and the contrast of their particles, and which of them to look at."""

import numpy as np

from ..particles.particle_groups import OPTICS_GROUP
from ..results.micrographs import UNUSUAL_CONTRAST, UNUSUAL_DEVIATIONS, UNUSUAL_NOISE, Micrographs, read_micrographs
from . import plots
from .page import Picture
from .run_files import RunFiles

# points with a name in the plot, and characters of it
_N_NAMED = 5
_NAME_LENGTH = 32
_NOISE_LABELS = ("noise,\nlow frequencies", "noise,\nmiddle frequencies", "noise,\nhigh frequencies")


def micrograph_pictures(files: RunFiles) -> list[Picture]:
    """Noise and contrast over the micrographs; none in runs that have no such table, or where it is empty of both."""
    if not files.run.micrographs.is_file():
        return []
    micrographs = read_micrographs(files.run.micrographs)
    columns = zip((*_NOISE_LABELS, "mean contrast"), (*micrographs.noise.T, micrographs.mean_contrast),
                  (*UNUSUAL_NOISE, UNUSUAL_CONTRAST), strict=True)
    panels = {label: plots.OrderedValues(values, np.array([reason in text for text in micrographs.unusual]))
              # also without the noise of micrographs that are all alike
              for label, values, reason in columns if len(np.unique(values[np.isfinite(values)])) > 1}
    if not panels:
        return []
    what = "optics group" if micrographs.name[0].startswith(OPTICS_GROUP) else "micrograph"
    figure = plots.in_order(panels, f"{what}, in the order of the particles' file",
                            f"beyond {UNUSUAL_DEVIATIONS:g} robust standard deviations", _names(micrographs))
    return [Picture("Noise and contrast of the micrographs",
                    "Noise power relative to the set's, at frequencies up to 1/8, up to 1/2 and above 1/2 of the Nyquist "
                    "frequency (its total is the same in all images, since their background is normalised), and mean "
                    "contrast of the particles. Steps and drifts mean that the imaging conditions changed. Marked "
                    "micrographs may have thick or contaminated ice, carbon, or a wrong defocus. All values are in "
                    "micrographs.csv.", figure, wide=True)]


def micrograph_notes(files: RunFiles) -> tuple[str, ...]:
    """A sentence that names the worst micrographs; none where there are none."""
    worst = files.summary.get("unusual_micrographs")
    return (f"Micrographs to look at: {'; '.join(worst)}.",) if worst else ()


def _names(micrographs: Micrographs) -> dict[int, str]:
    """Of the most unusual ones, without folder."""
    rows = micrographs.worst_rows()[:_N_NAMED].tolist()
    return {row: micrographs.name[row].rsplit("/", 1)[-1][-_NAME_LENGTH:] for row in rows}
