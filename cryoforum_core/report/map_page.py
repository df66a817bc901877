"""The page of a run that made a map, and of any other run."""

import shlex

import numpy as np
from jaxtyping import Float

from ..mrc import read_map
from . import plots
from .page import Assessment, NextStep, Page, Picture, significant
from .result_labels import label
from .run_files import RunFiles, angles_deg
from .viewing_directions import view_density

# Fourier shells up to the resolution: fewer show an outline at most
_FEW_SHELLS = 8
# times the resolution of the Nyquist limit: closer to it, the pixel size may limit the resolution
_NEAR_NYQUIST = 1.1


def reconstruction_page(files: RunFiles) -> Page:
    """The map, and its resolution by the FSC of its half maps."""
    volume, pixel_size_angstrom = read_map(files.run.map)
    resolution = files.summary["resolution_angstrom"]
    facts = {"resolution (FSC 0.143)": f"{significant(resolution)} Å", "box": f"{len(volume)} px",
             "pixel size": f"{significant(pixel_size_angstrom)} Å"}
    if "n_particles" in files.summary:
        facts["particles"] = f"{files.summary['n_particles']:,}"
    return Page("Reconstruction", _assessment(resolution, len(volume), pixel_size_angstrom), _next_steps(files), facts,
                tuple(_pictures(files, volume, pixel_size_angstrom)))


def _assessment(resolution_angstrom: float, box_size_px: int, pixel_size_angstrom: float) -> Assessment:
    sentences = [f"The half maps agree to {significant(resolution_angstrom)} Å (FSC 0.143)."]
    if box_size_px * pixel_size_angstrom / resolution_angstrom < _FEW_SHELLS:
        return Assessment("poor", (*sentences, "The map is a featureless blob: most orientations are "
                                                 "wrong, or there are too few particles."))
    if resolution_angstrom < _NEAR_NYQUIST * 2 * pixel_size_angstrom:
        sentences.append("This is close to the Nyquist limit; images with a smaller pixel size may resolve more.")
    sentences.append("The FSC shows whether the half maps agree, not whether they are correct: check that the map "
                     "shows the features that your molecule must have.")
    return Assessment("good", tuple(sentences))


def _next_steps(files: RunFiles) -> tuple[NextStep, ...]:
    volume, half1, half2 = (shlex.quote(str(path.absolute()))
                            for path in (files.run.map, files.run.map_half1, files.run.map_half2))
    return (NextStep("Look at the map", f"chimerax {volume}"),
            NextStep("Mask and sharpen it, and measure its resolution, in RELION",
                     f"relion_postprocess --i {half1} --i2 {half2} --auto_mask --o postprocess"))


def _pictures(files: RunFiles, volume: np.ndarray, pixel_size_angstrom: float) -> list[Picture]:
    pictures = [map_picture(volume, pixel_size_angstrom)]
    if (fsc := fsc_picture(files)) is not None:
        pictures.append(fsc)
    angles = angles_deg(files.table(files.config.get("particles")))
    if angles is not None:
        pictures.append(Picture("Viewing directions", "Dark regions are missing viewing directions, which may make the "
                                "resolution of the map anisotropic.",
                                plots.view_maps({"all particles": view_density(*angles, files.symmetry)})))
    return pictures


def map_picture(volume: Float[np.ndarray, "d d d"], pixel_size_angstrom: float) -> Picture:
    """Slices and projections of a map [z, y, x]."""
    return Picture("The map", "Slices should show solid density with sharp edges on a flat background. Streaks point to "
                   "missing viewing directions, a featureless ball to wrong orientations.",
                   plots.map_views(volume, pixel_size_angstrom), wide=True)


def fsc_picture(files: RunFiles) -> Picture | None:
    """The curves of fsc.csv, whose columns ``fsc...`` are over ``resolution_angstrom``; None without the file."""
    columns = files.csv_columns(files.run.fsc.name)
    if columns is None or "resolution_angstrom" not in columns:
        return None
    shells = slice(1, None)  # the zeroth has no resolution
    curves = {name.removeprefix("fsc_").replace("_", " "): values[shells] for name, values in columns.items()
              if name.startswith("fsc")}
    return Picture("Fourier shell correlation", "It should stay near 1, then fall off once to about 0 without rising "
                   "again; the vertical line marks the resolution.",
                   plots.fsc_curves(1 / columns["resolution_angstrom"][shells], curves,
                                    files.summary.get("resolution_angstrom")))


def other_page(files: RunFiles) -> Page:
    """A run of a job without a page of its own: what its files show."""
    pictures = []
    if files.run.map.is_file():
        pictures.append(map_picture(*read_map(files.run.map)))
    fsc = fsc_picture(files)
    facts = {label(name): significant(value) for name, value in files.summary.items()
             if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return Page(f"Results of {files.job}", Assessment("good", (f"The {files.job} run is finished.",)), (), facts,
                tuple(pictures + ([fsc] if fsc is not None else [])))
