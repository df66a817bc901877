"""The page of a run of predict."""

import numpy as np

from ..particles.table import ParticleTable
from . import plots
from .error_pictures import error_picture, expected_against_true, shift_error_picture
from .gallery import Gallery, read_gallery
from .page import (
    Alarm,
    NextStep,
    Page,
    Picture,
    Verdict,
    beside,
    command,
    degrees,
    level_of,
    percent,
    significant,
)
from .promise_pictures import promises
from .reasons import judged_table
from .run_files import RunFiles, angles_deg, defocus_um
from .view_coverage import empty_fraction, view_density

GOOD_BELOW_DEG, USEFUL_BELOW_DEG = 4.0, 12.0
UNSURE_ABOVE_DEG = 20.0
_UNEVEN_ABOVE = 0.05
# fewer particles leave gaps by chance
_MIN_FOR_COVERAGE = 200
_DISPLAY_SIGMA_PX = 1.0
_ALARM_TITLES = {
    "noise-only": "There are no particles in these images",
    "contrast": "The contrast of these images is the other one",
    "ctf-state": "The state of these images' CTF is another one",
    "pixel-size": "A pixel size is wrong",
    "another-molecule": "These are not the particles of this model",
    "symmetry": "The map has not this symmetry",
    "poses": "The orientations found do not fit the images",
}


def prediction_page(files: RunFiles, truth: dict[str, np.ndarray] | None = None) -> Page:
    """What was found, how sure it is, and what it looks like.

    truth: ``error_deg``, ``shift_error_angstrom`` and ``is_junk`` (n,) against known poses, in the run's order.
    """
    posterior, table = files.posterior(), files.table(files.run.particles)
    expected = posterior["expected_error_deg"]
    angles = angles_deg(table)
    density = None if angles is None else view_density(*angles, files.symmetry)
    facts = {"particles": f"{len(expected):,}", "median expected error": degrees(np.median(expected)),
             "expected below 10°": percent(np.mean(expected < 10))}
    if files.summary.get("images_per_second"):
        facts["speed"] = f"{significant(files.summary['images_per_second'])} images/s"
    tables, tested = promises(files)
    pictures = [*tested, *pose_pictures(files, posterior, table, density)]
    if truth is not None:
        facts["median true error"] = degrees(np.median(truth["error_deg"][~truth["is_junk"]]))
        pictures = [error_picture(truth["error_deg"], truth["is_junk"]),
                    expected_against_true(expected, truth["error_deg"], truth["is_junk"]),
                    shift_error_picture(truth["shift_error_angstrom"], truth["is_junk"]), *pictures]
    alarm = _alarm(files)
    return Page("Orientations of particles", _verdict(files, posterior, density, truth),
                () if alarm else _next_steps(files), facts, tuple(pictures), (*judged_table(posterior), *tables),
                notes=tuple(files.summary.get("model_applies_doubts", ())), alarm=alarm)


def _alarm(files: RunFiles) -> Alarm | None:
    if files.summary.get("model_applies", True):
        return None
    title = _ALARM_TITLES.get(files.summary.get("model_applies_cause"), "This model does not apply to these particles")
    reason = files.summary.get("model_applies_reason", "").rstrip(".")
    return Alarm(title, f"{reason[:1].upper()}{reason[1:]}.")


def _verdict(files: RunFiles, posterior: dict[str, np.ndarray], density: np.ndarray | None,
             truth: dict[str, np.ndarray] | None) -> Verdict:
    expected = posterior["expected_error_deg"]
    level = level_of(np.median(expected), GOOD_BELOW_DEG, USEFUL_BELOW_DEG)
    half = degrees(np.median(expected))
    sentences = [f"Half of the {len(expected):,} particles have an expected error below {half}."]
    if "error_bound_coverage" in files.summary:
        bound = degrees(np.median(posterior["error_bound_deg"]))
        promised, held = (percent(files.summary[f"error_bound_{name}"]) for name in ("coverage", "held"))
        sentences.append(f"Each has a bound too, meant to hold for {promised} of them: {bound} for half. On "
                         f"{files.summary['calibration_source']} it held for {held}.")
    unsure = float(np.mean(expected > UNSURE_ABOVE_DEG))
    if unsure:
        sentences.append(f"{percent(unsure)} are unsure by more than {UNSURE_ABOVE_DEG:g}°: junk, or views that the "
                         "image does not tell.")
    if files.summary.get("model_applies") is False:
        level = "poor"
        sentences = ["Do not use these orientations before the cause above is removed.", *sentences]
    if truth is not None:
        good = truth["error_deg"][~truth["is_junk"]]
        sentences.append(f"Against the known poses the error is {degrees(np.median(good))} (median) and "
                         f"{degrees(good.mean())} (mean).")
    if (unseen := unseen_views(density, len(expected))) is not None:
        level = "caution" if level == "good" else level
        sentences.append(unseen)
    return Verdict(level, tuple(sentences))


def unseen_views(density: np.ndarray | None, n_particles: int) -> str | None:
    """A sentence about views that are missing from a density of views; None where the particles cover all."""
    if density is None or n_particles < _MIN_FOR_COVERAGE or empty_fraction(density) <= _UNEVEN_ABOVE:
        return None
    return (f"{percent(empty_fraction(density))} of all viewing directions are almost unseen, so the map will be "
            "blurred along some of them.")


def _next_steps(files: RunFiles) -> tuple[NextStep, ...]:
    return (NextStep("Leave out junk and orientations that cannot be trusted",
                     command("select", run=files.path, out=beside(files.path, "select")),
                     "cryoforum - uncertainty subset, with this run's outputParticles"),
            NextStep("Make a map of all particles (RELION reads the same particles.star)",
                     command("reconstruct", particles=files.run.particles, symmetry=files.symmetry,
                             out=beside(files.path, "map")),
                     "relion - reconstruct, with this run's outputParticles"))


def pose_pictures(files: RunFiles, posterior: dict[str, np.ndarray], table: ParticleTable | None,
                  density: np.ndarray | None) -> list[Picture]:
    """What any run that finds poses shows of them: how sure, how well matched, from where seen."""
    expected, score = posterior["expected_error_deg"], posterior.get("match_score")
    marks = {f"median {degrees(np.median(expected))}": float(np.median(expected))}
    pictures = [Picture("Expected error", "Look for one hill at small angles; what is at the right is unsure or junk.",
                        plots.histogram({"particles": expected}, "expected error (degrees)", marks, x_scale="log"))]
    if score is not None and np.isfinite(score).any():
        pictures += _score_pictures(score, expected, defocus_um(table))
    if density is not None:
        pictures.append(Picture("Viewing directions", "Even coverage is one colour; dark regions are views that are "
                                "missing, bright ones are preferred.", plots.view_maps({"all particles": density})))
    pictures.append(Picture("Displacements", "A cloud about the middle; a sharp border means that the largest shift "
                            "searched is too small.", plots.shift_map(posterior["shift_angstrom"])))
    if files.run.gallery.is_file():
        pictures.append(_gallery_picture(read_gallery(files.run.gallery)))
    return pictures


def _score_pictures(score: np.ndarray, expected: np.ndarray, defocus: np.ndarray | None) -> list[Picture]:
    pictures = [
        Picture("Match with the map", "Particles form the hill at the right; the tail or hill at its left is what does "
                "not match, such as junk.", plots.histogram({"particles": score}, "match score", x_scale="asinh")),
        Picture("Match and expected error", "Particles gather at the lower right, junk at the left.",
                plots.scatter(score, expected, "match score", "expected error (degrees)", "asinh", "log"))]
    if defocus is not None and len(defocus) == len(score):
        pictures.append(Picture("Match and defocus", "The median should be level; a drop at one end points to wrong "
                                "CTFs there.", plots.scatter(defocus, score, "mean defocus (µm)", "match score",
                                                             y_scale="asinh", with_median=True)))
    return pictures


def _gallery_picture(gallery: Gallery) -> Picture:
    titles = [f"{degrees(error)}   {score:.1f}"
              for error, score in zip(gallery.expected_error_deg, gallery.match_score, strict=True)]
    return Picture("Particles beside their projections",
                   "Each image (upper row, slightly smoothed) with its expected error and match score, above the map's "
                   "projection at the orientation found. The best should be alike; the worst show what junk is.",
                   plots.image_pairs(plots.low_passed(gallery.images, _DISPLAY_SIGMA_PX), gallery.projections, titles,
                                     list(gallery.kind)), wide=True)
