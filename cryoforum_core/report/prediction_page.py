"""The page of a run of predict."""

import numpy as np
from jaxtyping import Float, Shaped

from ..particles.table import ParticleTable
from ..results.gallery import Gallery, read_gallery
from ..results.pose_results import PoseResults
from . import plots
from .calibration_plots import error_calibration
from .error_plots import error_histogram, expected_against_true, shift_error_histogram
from .micrograph_plots import micrograph_notes, micrograph_pictures
from .page import (
    Alarm,
    Assessment,
    NextStep,
    Page,
    Picture,
    beside,
    command,
    degrees,
    level_of,
    percent,
    significant,
    with_angstrom_sign,
)
from .population_plots import (
    other_molecule_notes,
    other_molecule_pictures,
    state_fact,
    state_notes,
    state_pictures,
)
from .reasons import junk_label_tables
from .run_files import RunFiles, angles_deg, defocus_um
from .viewing_directions import empty_fraction, view_density

# median expected errors of 4 and 12 degrees move a detail 100 A from the axis by 7 and 21 A
GOOD_BELOW_DEG = 4.0
USEFUL_BELOW_DEG = 12.0
# far above the errors of well-determined orientations (a rule of thumb, not measured)
UNCERTAIN_ABOVE_DEG = 20.0
# expected errors hold misassigned poses as well, and observed ones do not: below, nothing can be said
OBSERVED_FAR_ABOVE = 1.25
# part of the sphere that may lack particles: a cone of 26 degrees about one direction
_UNEVEN_ABOVE = 0.05
# fewer particles leave gaps by chance
_MIN_FOR_COVERAGE = 200
# smoothing of noisy images in figures: enough to see the particle, too little to blur its outline
_DISPLAY_SIGMA_PX = 1.0
# cause of ``Applicability`` -> title of the alarm
_ALARM_TITLES = {
    "noise-only": "These images contain no particles",
    "contrast": "The contrast of these images is inverted",
    "ctf-state": "The CTF correction of these images differs from the one specified",
    "pixel-size": "The pixel size is wrong",
    "another-molecule": "These are not particles of this molecule",
    "symmetry": "The map does not have this symmetry",
    "poses": "The estimated orientations do not fit the images",
}


def prediction_page(files: RunFiles, truth: dict[str, Shaped[np.ndarray, " n"]] | None = None) -> Page:
    """The estimated poses, their uncertainty, and how well they match the map.

    truth: ``error_deg``, ``shift_error_angstrom`` and ``is_junk`` against known poses, in the run's order.
    """
    results, table = files.results(), files.table(files.run.particles)
    expected = results.errors.expected_error_deg
    angles = angles_deg(table)
    density = None if angles is None else view_density(*angles, files.symmetry)
    facts = {"particles": f"{len(expected):,}", "median expected error": degrees(np.median(expected)),
             "expected error below 10°": percent(np.mean(expected < 10))}
    if files.summary.get("images_per_second"):
        facts["speed"] = f"{significant(files.summary['images_per_second'])} images/s"
    facts |= state_fact(files)
    tables, tested = error_calibration(files)
    pictures = [*tested, *state_pictures(files), *other_molecule_pictures(files), *pose_pictures(files, results, table, density)]
    if truth is not None:
        facts["median true error"] = degrees(np.median(truth["error_deg"][~truth["is_junk"]]))
        pictures = [error_histogram(truth["error_deg"], truth["is_junk"]),
                    expected_against_true(expected, truth["error_deg"], truth["is_junk"]),
                    shift_error_histogram(truth["shift_error_angstrom"], truth["is_junk"]), *pictures]
    alarm = _alarm(files)
    return Page("Predicted orientations", _assessment(files, results, density, truth),
                () if alarm else _next_steps(files), facts, tuple(pictures), (*junk_label_tables(results), *tables),
                notes=(*map(with_angstrom_sign, files.summary.get("model_applies_doubts", ())), *state_notes(files), *other_molecule_notes(files),
                       *micrograph_notes(files)),
                alarm=alarm)


def _alarm(files: RunFiles) -> Alarm | None:
    if files.summary.get("model_applies", True):
        return None
    title = _ALARM_TITLES.get(files.summary.get("model_applies_cause"), "This network does not fit these particles")
    reason = with_angstrom_sign(files.summary.get("model_applies_reason", "")).rstrip(".")
    return Alarm(title, f"{reason[:1].upper()}{reason[1:]}.")


def _assessment(files: RunFiles, results: PoseResults, density: np.ndarray | None,
             truth: dict[str, np.ndarray] | None) -> Assessment:
    expected = results.errors.expected_error_deg
    level = level_of(np.median(expected), GOOD_BELOW_DEG, USEFUL_BELOW_DEG)
    half = degrees(np.median(expected))
    sentences = [f"Half of the {len(expected):,} particles have an expected error below {half}."]
    if "error_bound_coverage" in files.summary:
        bound = degrees(np.median(results.errors.error_bound_deg))
        nominal, empirical = (percent(files.summary[f"error_bound_{name}"]) for name in ("coverage", "held"))
        sentences.append(f"The true error is within the error bound (nominal coverage {nominal}, median {bound}) for "
                         f"{empirical} of {files.summary['calibration_source']}.")
    if (agreement := observed_error(files.summary)) is not None:
        sentences.append(agreement)
    uncertain = float(np.mean(expected > UNCERTAIN_ABOVE_DEG))
    if uncertain:
        sentences.append(f"{percent(uncertain)} have an expected error above {UNCERTAIN_ABOVE_DEG:g}°: junk, or particles "
                         "whose images do not determine the orientation.")
    if files.summary.get("model_applies") is False:
        level = "poor"
        sentences = ["Do not use these orientations until the problem above is solved.", *sentences]
    if truth is not None:
        good = truth["error_deg"][~truth["is_junk"]]
        sentences.append(f"Against the known poses, the error is {degrees(np.median(good))} (median) and "
                         f"{degrees(good.mean())} (mean).")
    if (missing := missing_directions(density, len(expected))) is not None:
        level = "caution" if level == "good" else level
        sentences.append(missing)
    return Assessment(level, tuple(sentences))


def observed_error(summary: dict) -> str | None:
    """A sentence about expected and observed errors; None where none were observed."""
    if summary.get("particles_observed_error_deg") is None:
        return None
    expected, observed = (summary[f"particles_{name}_error_deg"] for name in ("expected", "observed"))
    sentence = (f"Without junk, the median expected error is {degrees(expected)}; the agreement of orientations from two "
                f"random halves of each image's Fourier pixels corresponds to {degrees(observed)}.")
    if observed > OBSERVED_FAR_ABOVE * expected:
        sentence += (" The expected errors are too small: the map may be wrong in places, or the particles may be in more "
                     "than one conformation.")
    return sentence


def missing_directions(density: Float[np.ndarray, "latitudes longitudes"] | None, n_particles: int) -> str | None:
    """A sentence about missing viewing directions in a density of them; None where the particles cover all."""
    if density is None or n_particles < _MIN_FOR_COVERAGE or empty_fraction(density) <= _UNEVEN_ABOVE:
        return None
    return (f"{percent(empty_fraction(density))} of the viewing directions have almost no particles, so the resolution of "
            "the map may be anisotropic.")


def _next_steps(files: RunFiles) -> tuple[NextStep, ...]:
    return (NextStep("Remove junk and uncertain orientations",
                     command("select", run=files.path, out=beside(files.path, "select")),
                     "cryoforum - uncertainty subset, with this run's outputParticles"),
            NextStep("Reconstruct all particles (RELION can read particles.star, too)",
                     command("reconstruct", particles=files.run.particles, symmetry=files.symmetry,
                             out=beside(files.path, "map")),
                     "relion - reconstruct, with this run's outputParticles"))


def pose_pictures(files: RunFiles, results: PoseResults, table: ParticleTable | None,
                  density: Float[np.ndarray, "latitudes longitudes"] | None) -> list[Picture]:
    """Plots of estimated poses, for any run that has them: uncertainty, match scores, viewing directions, shifts."""
    expected, score = results.errors.expected_error_deg, None if results.match is None else results.match.match_score
    marks = {f"median {degrees(np.median(expected))}": float(np.median(expected))}
    pictures = [Picture("Expected error", "There should be one peak at small angles; particles on the right are uncertain "
                        "or junk.",
                        plots.histogram({"particles": expected}, "expected error (degrees)", marks, x_scale="log"))]
    if score is not None and np.isfinite(score).any():
        pictures += _score_pictures(score, expected, defocus_um(table))
    if density is not None:
        pictures.append(Picture("Viewing directions", "Uniform colour means evenly sampled directions; dark regions "
                                "are missing viewing directions, bright ones preferred orientations.",
                                plots.view_maps({"all particles": density})))
    pictures.append(Picture("Shifts", "Position of each particle relative to the image centre (minus rlnOriginX/YAngst). A "
                            "sharp edge means that the maximum shift of the search is too small.",
                            plots.shift_map(results.shift_angstrom)))
    pictures += micrograph_pictures(files)
    if files.run.gallery.is_file():
        pictures.append(_gallery_picture(read_gallery(files.run.gallery)))
    return pictures


def _score_pictures(score: np.ndarray, expected: np.ndarray, defocus: np.ndarray | None) -> list[Picture]:
    pictures = [
        Picture("Match score", "Particles form the peak on the right. Images in its left tail, or in a second peak "
                "on the left, do not match the map: junk, or particles with wrong orientations.",
                plots.histogram({"particles": score}, "match score", x_scale="asinh")),
        Picture("Match score and expected error", "Particles cluster at the lower right, junk on the left.",
                plots.scatter(score, expected, "match score", "expected error (degrees)", "asinh", "log"))]
    if defocus is not None and len(defocus) == len(score):
        pictures.append(Picture("Match score and defocus", "The median should be flat; a drop at one end may "
                                "indicate wrong CTF parameters there.",
                                plots.scatter(defocus, score, "mean defocus (µm)", "match score", y_scale="asinh",
                                              with_median=True)))
    return pictures


def _gallery_picture(gallery: Gallery) -> Picture:
    titles = [f"{degrees(error)}   {score:.1f}"
              for error, score in zip(gallery.expected_error_deg, gallery.match_score, strict=True)]
    return Picture("Particles and matching projections",
                   "Each image (upper row, slightly smoothed) with its expected error and match score, and below it the "
                   "projection of the map at its estimated pose. In the best pairs image and projection should look "
                   "alike; the worst are often junk.",
                   plots.image_pairs(plots.low_passed(gallery.images, _DISPLAY_SIGMA_PX), gallery.projections, titles,
                                     list(gallery.kind)), wide=True)
