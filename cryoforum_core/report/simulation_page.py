"""The page of a run of simulate."""

import numpy as np

from ..catalogue import JUNK_KIND_COLUMN, NEIGHBOUR_COLUMN, NOISE_LEVEL_COLUMN, STATE_COLUMN
from ..mrc import MrcStack, read_map
from ..particles.table import ParticleTable
from . import plots
from .map_page import map_picture
from .page import Assessment, NextStep, Page, Picture, beside, command, percent, significant
from .run_files import RunFiles, angles_deg, column, defocus_um
from .viewing_directions import view_density

# at the width of the page, more would be too small to see the particle
_PER_ROW = 10
# smoothing of noisy images in figures: enough to see the particle, too little to blur its outline
_DISPLAY_SIGMA_PX = 1.0


def simulation_page(files: RunFiles) -> Page:
    """What the images, junk included, look like, and what the data set contains."""
    summary, truth = files.summary, files.table(files.run.truth)
    n, n_junk = summary["n_particles"], summary.get("n_junk", 0)
    snr = summary["snr"]
    facts = {"particles": f"{n:,}", "box": f"{summary['box_size_px']} px",
             "pixel size": f"{significant(summary['pixel_size_angstrom'])} Å",
             "signal-to-noise": "no noise" if snr is None else significant(snr), "junk": percent(n_junk / n)}
    sentences = [f"{n:,} images of {summary['box_size_px']} px were simulated; {files.run.truth.name} has their true poses."]
    if n_junk:
        sentences.append(f"{n_junk:,} of them are junk of {len(summary.get('junk', {}))} kinds.")
    if "n_micrographs" in summary:
        facts["micrographs"] = f"{summary['n_micrographs']:,}"
        sentences.append(f"They come from {summary['n_micrographs']:,} micrographs with different noise, B factors and "
                         f"defocus; {summary['n_minor_state']:,} particles are in a minor state, which lacks a domain, and "
                         f"{summary['n_with_neighbour']:,} have a neighbour in the box.")
    return Page("Simulated particles", Assessment("good", tuple(sentences)), _next_steps(files), facts,
                tuple(_pictures(files, truth)))


def _next_steps(files: RunFiles) -> tuple[NextStep, ...]:
    trained = beside(files.path, "train")
    return (NextStep("Train a network on projections of the map", command(
                "train", particles=files.run.particles, reference=files.run.map, out=trained)),
            NextStep("Predict the orientations", command(
                "predict", particles=files.run.particles, model=trained, out=beside(files.path, "predict"))),
            NextStep("Compare them with the true poses", command(
                "evaluate", particles=beside(files.path, "predict") / files.run.particles.name, truth=files.run.truth,
                out=beside(files.path, "evaluate"))))


def _pictures(files: RunFiles, truth: ParticleTable | None) -> list[Picture]:
    pictures = []
    if truth is not None and (files.run.particle_images).is_file():
        pictures.append(_images(files, truth))
    if files.run.map.is_file():
        pictures.append(map_picture(*read_map(files.run.map)))
    angles, defocus = angles_deg(truth), defocus_um(truth)
    if angles is not None:
        pictures.append(Picture("Viewing directions", "Uniform colour means evenly sampled directions; a bright spot "
                                "is the preferred orientation that was requested.",
                                plots.view_maps({"all particles": view_density(*angles)})))
    if defocus is not None:
        pictures.append(Picture("Defocus", "Spread uniformly over the requested range.",
                                plots.histogram({"particles": defocus}, "mean defocus (µm)")))
    noise_level = column(truth, NOISE_LEVEL_COLUMN)
    if noise_level is not None:
        pictures.append(Picture("Noise levels", "Of the micrographs, relative to a typical one. The background of each image "
                                "is normalised, so that particles of noisy micrographs have less contrast.",
                                plots.histogram({"particles": noise_level}, "noise level")))
    return pictures


def _images(files: RunFiles, truth: ParticleTable) -> Picture:
    """A row of particles, and up to five images of each kind of junk, in a session also of other groups."""
    kinds = truth.strings(JUNK_KIND_COLUMN) if truth.has(JUNK_KIND_COLUMN) else np.full(len(truth), "none")
    kinds = np.where(kinds == "none", "particle", kinds).astype(object)
    for name, there in (("minor state", truth.has(STATE_COLUMN) and truth.integers(STATE_COLUMN) > 1),
                        ("with neighbour", truth.has(NEIGHBOUR_COLUMN) and truth.integers(NEIGHBOUR_COLUMN) > 0)):
        kinds[(kinds == "particle") & there] = name
    names = ["particle", *sorted(set(kinds.tolist()) - {"particle"})]
    shown = {name: _PER_ROW // (1 if name == "particle" else 2) for name in names}
    rows = np.concatenate([np.flatnonzero(kinds == name)[:n] for name, n in shown.items()])
    with MrcStack(files.run.particle_images) as stack:
        images = stack.read(rows)
    titles = [str(kinds[row]) for row in rows]
    return Picture("Images", "Slightly smoothed. Particles come first, then each kind of junk, and other groups.",
                   plots.image_grid(plots.low_passed(images, _DISPLAY_SIGMA_PX), titles, _PER_ROW), wide=True)
