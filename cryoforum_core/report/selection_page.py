"""The page of a run of select."""

from pathlib import Path

import numpy as np

from ..catalogue import ERROR_BOUND, EXPECTED_ERROR, PARTICLE_PROBABILITY
from ..particles.image_stack import ImageStack, locate_images
from ..particles.table import ParticleTable
from ..problems import Problems
from ..results.gallery import Gallery, read_gallery
from ..run_directory import RunDirectory
from . import plots
from .calibration_plots import error_calibration
from .page import (
    Assessment,
    Level,
    NextStep,
    Page,
    Picture,
    Table,
    beside,
    command,
    degrees,
    percent,
    significant,
)
from .reasons import MEANINGS, REASON_HEADER, reason_rows
from .run_files import RunFiles, angles_deg, column
from .viewing_directions import view_density

# rejecting more can cost the map more than it gains (a rule of thumb, not measured)
_MUCH_REJECTED = 0.4
# two rows of images show the kinds that there are
_N_EXAMPLES = 20
# at the width of the page, more would be too small to see the particle
_EXAMPLES_PER_ROW = 10
# smoothing of noisy images in figures: enough to see the particle, too little to blur its outline
_DISPLAY_SIGMA_PX = 1.0
# a region is depleted where its density was above half of uniform ...
_COVERED_ABOVE = 0.5
# ... and less than half of it (or of uniform) is left
_DEPLETED_BELOW = 0.5
# part of the covered sphere that may be depleted without a word (not measured)
_DEPLETED_REGION = 0.01
# measures from 0 to 1, shown on a linear scale
_FRACTIONS = ("figure-of-merit", PARTICLE_PROBABILITY)
# measures in degrees, shown on a logarithmic scale
_ERRORS = (EXPECTED_ERROR, ERROR_BOUND)
_EXPECTED_ERROR_COLUMN = "rlnCryoforumExpectedError"
REASON_COLUMN = "rlnCryoforumReason"
# of examples whose reason is none of the catalogue's, too
_KEPT = "kept"
_REJECTED = "rejected"


def selection_page(files: RunFiles) -> Page:
    """What was kept and by which threshold, and whether some viewing directions lost more particles than others."""
    summary = files.summary
    n_kept, n_rejected = summary["n_selected"], summary["n_rejected"]
    kept, rejected = files.table(files.run.selected), files.table(files.run.rejected)
    facts = {"kept": f"{n_kept:,}", "rejected": f"{n_rejected:,}",
             "fraction kept": percent(n_kept / (n_kept + n_rejected)),
             "criterion": summary["measure"].replace("-", " ")}
    densities = _densities(kept, rejected, files.symmetry)
    run = RunDirectory(files.config["run"])
    predicted = RunFiles(run) if run.finished else None  # it may have been moved
    coverage, calibration = ([], []) if predicted is None else error_calibration(predicted)
    return Page("Particle selection", _assessment(summary, densities), _next_steps(files), facts,
                (*_map_pictures(files), *_pictures(files, predicted, kept, rejected, densities), *calibration),
                (*_reasons(summary), *coverage))


def _map_pictures(files: RunFiles) -> list[Picture]:
    """How the map depends on the number of particles kept, for a selection by the map (--auto)."""
    levels = files.csv_columns(files.run.auto_selection.name)
    if levels is None:
        return []
    kept, chosen = 100 * levels["kept_fraction"], int(levels["chosen"].argmax())
    best_label = f"best by {files.summary['measure'].replace('-', ' ')}"
    percent_of_all = 100 / levels["random_information"][0]
    information = plots.kept_against_random(
        kept, percent_of_all * levels["information"], percent_of_all * levels["random_information"],
        percent_of_all * levels["random_information_deviation"], chosen, "information in the map (% of all particles)",
        best_label)
    resolution = plots.kept_against_random(
        kept, levels["resolution_angstrom"], levels["random_resolution_angstrom"],
        levels["random_resolution_deviation_angstrom"], chosen, "half-map resolution (Å)", best_label,
        lower_is_better=True)
    return [Picture("Information in the map", "This decides how many particles are kept. Information is the signal that "
                    "the half maps share, summed over all resolution shells, minus what images of pure noise contribute "
                    "when they are aligned to a map (model bias, 'Einstein from noise'). Above 100 %, "
                    "the map is better than the map of all particles. Bands: one and two standard deviations of random "
                    "subsets.", information),
            Picture("Resolution of the half maps", "At FSC 0.143; better is up. The resolution is not corrected for "
                    "aligned noise, which inflates it: compare it with that of random subsets of the same size, not with "
                    "that of all particles.",
                    resolution)]


def _densities(kept: ParticleTable | None, rejected: ParticleTable | None, symmetry: str
               ) -> dict[str, np.ndarray] | None:
    after, gone = angles_deg(kept), angles_deg(rejected)
    if after is None or gone is None:
        return None
    before = (np.concatenate(both) for both in zip(after, gone, strict=True))
    return {"before": view_density(*before, symmetry), "after": view_density(*after, symmetry)}


def _assessment(summary: dict, densities: dict[str, np.ndarray] | None) -> Assessment:
    n_kept, n = summary["n_selected"], summary["n_selected"] + summary["n_rejected"]
    sentences = [f"{n_kept:,} of {n:,} particles were kept ({percent(n_kept / n)}).", summary["explanation"]]
    level: Level = "good"
    if summary["n_rejected"] > _MUCH_REJECTED * n:
        level = "caution"
        sentences.append("A large fraction of the particles was rejected: compare the maps of both sets before you "
                         "continue.")
    if densities is not None and summary["n_rejected"] and _depletes_directions(densities):
        level = "caution"
        sentences.append("Some viewing directions lost more than half of their particles; see the figures below.")
    if (short := summary.get("n_short_of_view_shares")) is not None and summary["n_rejected"]:
        sentences.append("No group of viewing directions lost a larger part of its share of the set than the fraction of "
                         "junk in it." if short == 0 else
                         "Some groups of viewing directions fell below their share by more than the junk in them, by "
                         f"{short:,} particles in all.")
    return Assessment(level, tuple(sentences))


def _depletes_directions(densities: dict[str, np.ndarray]) -> bool:
    covered = densities["before"] > _COVERED_ABOVE
    # what exceeded uniform density may be junk, which accumulates in few viewing directions
    depleted = densities["after"][covered] < _DEPLETED_BELOW * np.minimum(densities["before"][covered], 1)
    return bool(covered.any() and depleted.mean() > _DEPLETED_REGION)


def _next_steps(files: RunFiles) -> tuple[NextStep, ...]:
    symmetry = files.symmetry
    steps = [NextStep("Reconstruct the kept particles", command(
        "reconstruct", particles=files.run.selected, symmetry=symmetry, out=beside(files.path, "map")),
        "relion - reconstruct, with this run's outputParticles")]
    if files.summary["n_rejected"]:
        steps.append(NextStep("Reconstruct the rejected particles: the molecule should be much weaker than in the map of "
                              "the kept ones", command(
            "reconstruct", particles=files.run.rejected, symmetry=symmetry, out=beside(files.path, "rejected_map")),
            "relion - reconstruct, with this run's outputParticlesRejected"))
    return tuple(steps)


def _reasons(summary: dict) -> tuple[Table, ...]:
    named = {name: count for name, count in summary["reasons"].items() if name in MEANINGS}
    if not named:
        return ()
    n = summary["n_selected"] + summary["n_rejected"]
    rows = reason_rows(named, n)
    if others := summary["n_rejected"] - sum(named.values()):
        rows += (("beyond the limit", f"{others:,}", percent(others / n), "Not junk, but outside the limit set for "
                  "the selection; rlnCryoforumReason gives the value and the limit.",
                  "Relax the limit to keep more particles."),)
    return (Table("Why particles were rejected", "The column rlnCryoforumReason of rejected.star has the reason for "
                  "each image.", REASON_HEADER, rows, wide=True),)


def _gallery(predicted: RunFiles | None, kept: ParticleTable | None, rejected: ParticleTable | None) -> list[Picture]:
    """Example images with their matching projections, kept and rejected ones; empty where predict saved none."""
    if predicted is None or kept is None or rejected is None or not predicted.run.gallery.is_file():
        return []
    table = predicted.table(predicted.run.particles)
    if table is None:
        return []
    gallery, images, outcome = read_gallery(predicted.run.gallery), _image_keys(table), _outcomes(kept, rejected)
    row_of = {int(id_): row for row, id_ in enumerate(predicted.results().particle_id)}
    groups = _by_outcome(gallery, np.array([outcome.get(images[row_of[int(id_)]], "") for id_ in gallery.particle_id]))
    chosen = [row for rows in groups.values() for row in rows]
    if not chosen:
        return []
    titles = [f"{degrees(gallery.expected_error_deg[row])}   {gallery.match_score[row]:.1f}" for row in chosen]
    pairs = plots.image_pairs(plots.low_passed(gallery.images[chosen], _DISPLAY_SIGMA_PX), gallery.projections[chosen],
                              titles, [name.replace("-", " ") for name, rows in groups.items() for _ in rows])
    return [Picture("Kept and rejected, with matching projections", "Examples (upper rows, slightly smoothed) with their "
                    "expected error and match score, and below them the projection of the map at their estimated pose. "
                    "Kept images should resemble their projection; junk should not, or should show something in addition.",
                    pairs, wide=True)]


def _by_outcome(gallery: Gallery, outcome: np.ndarray) -> dict[str, list[int]]:
    """One row of examples for each outcome, from the best match to the poorest."""
    # predict lists a few particles more than once
    first = np.isin(np.arange(len(outcome)), np.unique(gallery.particle_id, return_index=True)[1])
    groups = {}
    for name in (_KEPT, *MEANINGS, _REJECTED):
        rows = np.flatnonzero(first & (outcome == name))
        rows = rows[np.argsort(-gallery.match_score[rows], kind="stable")]
        places = np.linspace(0, len(rows) - 1, min(len(rows), _EXAMPLES_PER_ROW)).round().astype(int)
        groups[name] = rows[places].tolist()
    return groups



def _outcomes(kept: ParticleTable, rejected: ParticleTable) -> dict[str, str]:
    """Image (``_image_keys``) -> kept, the reason for its rejection, or rejected."""
    reasons = rejected.strings(REASON_COLUMN) if len(rejected) else []
    named = [str(reason) if reason in MEANINGS else _REJECTED for reason in reasons]
    return dict.fromkeys(_image_keys(kept), _KEPT) | dict(zip(_image_keys(rejected), named, strict=True))


def _image_keys(table: ParticleTable) -> list[str]:
    """Image names without directories, which change when a table moves: number in the stack, and name of the stack."""
    parts = (name.rpartition("@") for name in table.strings("rlnImageName").tolist()) if len(table) else ()
    return [f"{number}@{Path(stack).name}" for number, _, stack in parts]


def _cones(summary: dict) -> list[Picture]:
    cones = summary.get("view_cone_percent")
    if cones is None or not summary["n_rejected"]:
        return []
    before, after = np.array(cones["before"]), np.array(cones["after"])
    return [Picture("Share of each group of viewing directions", "One point for each of 48 groups of neighbouring "
                    "viewing directions. Groups below the line lost part of their share: to junk if viewing directions are "
                    "protected, otherwise also because their particles rank lower by the measure.",
                    plots.scatter(before, after, "share of all particles (%)", "share of kept particles (%)",
                                  with_diagonal=True))]


def _pictures(files: RunFiles, predicted: RunFiles | None, kept: ParticleTable | None, rejected: ParticleTable | None,
              densities: dict[str, np.ndarray] | None) -> list[Picture]:
    summary = files.summary
    pictures = _histograms(summary, kept, rejected, files.config.get("max_error_deg"))
    if len(summary["reasons"]) > 1:
        pictures.append(Picture("Reasons", "Number of particles rejected for each reason.",
                                plots.bars(summary["reasons"], "particles rejected")))
    pictures += [*_cones(summary), *_gallery(predicted, kept, rejected)]
    pictures += [picture for picture in (
        _examples(kept, "Kept", "They should look like the particle, as far as the noise allows."),
        _examples(rejected, "Rejected", "Junk should be empty, off-centre, overlap with a neighbour, or show another "
                  "object; particles rejected by a limit or a fraction look like particles."))
        if picture is not None]
    if densities is not None:
        pictures.append(Picture("Viewing directions before and after", "No region should turn dark. A bright spot that "
                                "disappears was junk, which accumulates in few viewing directions.",
                                plots.view_maps(densities), wide=True))
    return pictures


def _histograms(summary: dict, kept: ParticleTable | None, rejected: ParticleTable | None, max_error_deg: float | None
                ) -> list[Picture]:
    measure, threshold = summary["measure"], summary["threshold"]
    marks = {} if threshold is None else {f"threshold {significant(threshold)}": threshold}
    label = measure.replace("-", " ") + (" (degrees)" if measure in _ERRORS else "")
    scale = "log" if measure in _ERRORS else "linear" if measure in _FRACTIONS else "asinh"
    pictures = []
    if (values := _both(kept, rejected, summary["column"])) is not None:
        caption = ("The threshold should lie in the valley between two peaks; with a single peak, its position is a "
                   "matter of choice.")
        if measure == PARTICLE_PROBABILITY:
            caption = "Particles are near 1, junk is near 0; few images should lie between."
        name = measure.replace("-", " ")
        pictures.append(Picture(f"Distribution of the {name}, kept and rejected particles", caption,
                                plots.histogram(values, label, marks, x_scale=scale)))
    if measure not in _ERRORS and (values := _both(kept, rejected, _EXPECTED_ERROR_COLUMN)) is not None:
        marks = {} if max_error_deg is None else {f"threshold {degrees(max_error_deg)}": max_error_deg}
        pictures.append(Picture("Distribution of the expected error, kept and rejected particles", "Junk should lie "
                                "at the right: its orientations are usually uncertain, too.",
                                plots.histogram(values, "expected error (degrees)", marks, x_scale="log")))
    return pictures


def _examples(table: ParticleTable | None, title: str, caption: str) -> Picture | None:
    """Images spread evenly over a table; None where there are none or they were moved."""
    locations = Problems().attempt(locate_images, table) if table is not None and len(table) else None
    if locations is None:
        return None
    rows = np.unique(np.linspace(0, len(table) - 1, _N_EXAMPLES).round().astype(int))
    stack = ImageStack(locations.subset(rows))
    images = stack.read(np.arange(len(rows)))
    stack.close()
    numbers = table.strings("rlnImageName")[rows].tolist()
    titles = [name.split("@")[0].lstrip("0") for name in numbers]
    return Picture(title, f"Some images, slightly smoothed, with their number in the stack. {caption}",
                   plots.image_grid(plots.low_passed(images, _DISPLAY_SIGMA_PX), titles, _EXAMPLES_PER_ROW), wide=True)


def _both(kept: ParticleTable | None, rejected: ParticleTable | None, name: str) -> dict[str, np.ndarray] | None:
    values = {"kept": column(kept, name), "rejected": column(rejected, name)}
    return None if any(each is None for each in values.values()) else values
