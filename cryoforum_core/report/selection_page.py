"""The page of a run of select."""

from pathlib import Path

import numpy as np

from ..particles.image_stack import ImageStack, locate_images
from ..particles.table import ParticleTable
from ..problems import Problems
from ..run_directory import RunDirectory
from . import plots
from .gallery import Gallery, read_gallery
from .page import (
    Level,
    NextStep,
    Page,
    Picture,
    Table,
    Verdict,
    beside,
    command,
    degrees,
    percent,
    significant,
)
from .promise_pictures import promises
from .reasons import MEANINGS, REASON_HEADER, reason_rows
from .run_files import RunFiles, angles_deg, column
from .view_coverage import view_density

_MUCH_REJECTED = 0.4
_N_EXAMPLES, _EXAMPLES_PER_ROW, _DISPLAY_SIGMA_PX = 20, 10, 1.0
# a region is lost where it was seen by half of an even share, and less than half of that (or of an even share) is left
_SEEN_ABOVE, _LOST_BELOW, _LOST_REGION = 0.5, 0.5, 0.01
_FRACTIONS = ("figure-of-merit", "particle-probability")
_ERRORS = ("expected-error", "error-bound")
_EXPECTED_ERROR_COLUMN, REASON_COLUMN = "rlnCryoforumExpectedError", "rlnCryoforumReason"


def selection_page(files: RunFiles) -> Page:
    """What was kept, by which border, and whether some views lost more than others."""
    summary = files.summary
    n_kept, n_rejected = summary["n_selected"], summary["n_rejected"]
    kept, rejected = files.table(files.run.selected), files.table(files.run.rejected)
    facts = {"kept": f"{n_kept:,}", "rejected": f"{n_rejected:,}",
             "fraction kept": percent(n_kept / (n_kept + n_rejected)),
             "chosen by": summary["measure"].replace("-", " ")}
    densities = _densities(kept, rejected, files.symmetry)
    run = RunDirectory(files.config["run"])
    predicted = RunFiles(run) if run.finished else None  # it may have been moved since
    promised, tested = ([], []) if predicted is None else promises(predicted)
    return Page("Selection of particles", _verdict(summary, densities), _next_steps(files), facts,
                (*_map_pictures(files), *_pictures(files, predicted, kept, rejected, densities), *tested),
                (*_reasons(summary), *promised))


def _map_pictures(files: RunFiles) -> list[Picture]:
    """How the map changes with what is kept, where the map decided."""
    levels = files.csv_columns(files.run.auto_selection.name)
    if levels is None:
        return []
    kept, chosen = 100 * levels["kept_fraction"], int(levels["chosen"].argmax())
    best_label = f"best by {files.summary['measure'].replace('-', ' ')}"
    percent_of_all = 100 / levels["random_information"][0]
    information = plots.kept_against_random(
        kept, percent_of_all * levels["information"], percent_of_all * levels["random_information"],
        percent_of_all * levels["random_information_deviation"], chosen, "information in the map (% of all particles')",
        best_label)
    resolution = plots.kept_against_random(
        kept, levels["resolution_angstrom"], levels["random_resolution_angstrom"],
        levels["random_resolution_deviation_angstrom"], chosen, "half-map resolution (Å)", best_label,
        lower_is_better=True)
    return [Picture("Information in the map", "Decides what is kept: what the half maps agree in, summed over all "
                    "resolutions, less what empty images add by being matched to a map. Above 100 %, the map is better "
                    "than that of all particles. Bands: one and two standard deviations of random draws.", information),
            Picture("Resolution of the half maps", "FSC 0.143, finer upwards, without correction for empty images, "
                    "which make it look finer than it is: compare it with the random line, not with all particles.",
                    resolution)]


def _densities(kept: ParticleTable | None, rejected: ParticleTable | None, symmetry: str
               ) -> dict[str, np.ndarray] | None:
    after, gone = angles_deg(kept), angles_deg(rejected)
    if after is None or gone is None:
        return None
    before = (np.concatenate(both) for both in zip(after, gone, strict=True))
    return {"before": view_density(*before, symmetry), "after": view_density(*after, symmetry)}


def _verdict(summary: dict, densities: dict[str, np.ndarray] | None) -> Verdict:
    n_kept, n = summary["n_selected"], summary["n_selected"] + summary["n_rejected"]
    sentences = [f"{n_kept:,} of {n:,} particles were kept ({percent(n_kept / n)}).", summary["explanation"]]
    level: Level = "good"
    if summary["n_rejected"] > _MUCH_REJECTED * n:
        level = "caution"
        sentences.append("That leaves out a large part: compare the maps of both sets before you go on.")
    if densities is not None and summary["n_rejected"] and _loses_views(densities):
        level = "caution"
        sentences.append("Some viewing directions lost more than half of their particles; see the maps of views.")
    if (short := summary.get("n_short_of_view_shares")) is not None and summary["n_rejected"]:
        sentences.append("No view cone's share fell by more than the share of junk found in it." if short == 0 else
                         f"View cones miss {short:,} particles that only their view's share would have kept.")
    return Verdict(level, tuple(sentences))


def _loses_views(densities: dict[str, np.ndarray]) -> bool:
    seen = densities["before"] > _SEEN_ABOVE
    # what exceeds an even share before may be junk, which piles up in few views
    lost = densities["after"][seen] < _LOST_BELOW * np.minimum(densities["before"][seen], 1)
    return bool(seen.any() and lost.mean() > _LOST_REGION)


def _next_steps(files: RunFiles) -> tuple[NextStep, ...]:
    symmetry = files.symmetry
    steps = [NextStep("Make a map of what was kept", command(
        "reconstruct", particles=files.run.selected, symmetry=symmetry, out=beside(files.path, "map")),
        "relion - reconstruct, with this run's outputParticles")]
    if files.summary["n_rejected"]:
        steps.append(NextStep("Make a map of what was rejected: the molecule should not be in it", command(
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
        rows += (("beyond the limit", f"{others:,}", percent(others / n), "No junk: what was asked for keeps better ones. The "
                  "column says the figure and the limit.", "Keep it for a larger set."),)
    return (Table("Why particles were rejected", "The column rlnCryoforumReason of rejected.star says it of each.",
                  REASON_HEADER, rows, wide=True),)


def _gallery(predicted: RunFiles | None, kept: ParticleTable | None, rejected: ParticleTable | None) -> list[Picture]:
    """Images beside the projections at their best poses, by what became of them here; none where predict left no
    examples."""
    if predicted is None or kept is None or rejected is None or not predicted.run.gallery.is_file():
        return []
    table = predicted.table(predicted.run.particles)
    if table is None:
        return []
    gallery, images, outcome = read_gallery(predicted.run.gallery), _image_keys(table), _outcomes(kept, rejected)
    row_of = {int(id_): row for row, id_ in enumerate(predicted.posterior()["particle_id"])}
    groups = _by_outcome(gallery, np.array([outcome.get(images[row_of[int(id_)]], "") for id_ in gallery.particle_id]))
    chosen = [row for rows in groups.values() for row in rows]
    if not chosen:
        return []
    titles = [f"{degrees(gallery.expected_error_deg[row])}   {gallery.match_score[row]:.1f}" for row in chosen]
    pairs = plots.image_pairs(plots.low_passed(gallery.images[chosen], _DISPLAY_SIGMA_PX), gallery.projections[chosen],
                              titles, [name.replace("-", " ") for name, rows in groups.items() for _ in rows])
    return [Picture("Kept and rejected beside their projections", "Examples (upper rows, slightly smoothed) with their "
                    "expected error and match score, above the map's projection at the best pose found for them. What "
                    "was kept should be like its projection; junk should be unlike it, or show something else, too.",
                    pairs, wide=True)]


def _by_outcome(gallery: Gallery, outcome: np.ndarray) -> dict[str, list[int]]:
    """A row's length of examples of each outcome, from the best match to the poorest."""
    # predict names a few particles more than once
    first = np.isin(np.arange(len(outcome)), np.unique(gallery.particle_id, return_index=True)[1])
    groups = {}
    for name in (_KEPT, *MEANINGS, _REJECTED):
        rows = np.flatnonzero(first & (outcome == name))
        rows = rows[np.argsort(-gallery.match_score[rows], kind="stable")]
        places = np.linspace(0, len(rows) - 1, min(len(rows), _EXAMPLES_PER_ROW)).round().astype(int)
        groups[name] = rows[places].tolist()
    return groups


_KEPT, _REJECTED = "kept", "rejected"


def _outcomes(kept: ParticleTable, rejected: ParticleTable) -> dict[str, str]:
    """By image (``_image_keys``): kept, or the reason why it was rejected, where it has a name of its own."""
    reasons = rejected.strings(REASON_COLUMN) if len(rejected) else []
    named = [str(reason) if reason in MEANINGS else _REJECTED for reason in reasons]
    return dict.fromkeys(_image_keys(kept), _KEPT) | dict(zip(_image_keys(rejected), named, strict=True))


def _image_keys(table: ParticleTable) -> list[str]:
    """What is left of image names when a table moves: the number in the stack and the stack's own name."""
    parts = (name.rpartition("@") for name in table.strings("rlnImageName").tolist()) if len(table) else ()
    return [f"{number}@{Path(stack).name}" for number, _, stack in parts]


def _cones(summary: dict) -> list[Picture]:
    cones = summary.get("view_cone_percent")
    if cones is None or not summary["n_rejected"]:
        return []
    before, after = np.array(cones["before"]), np.array(cones["after"])
    return [Picture("Share of each view cone", "Each point is one of 48 cones of views; on or above the line nothing "
                    "was lost. Points below it held junk.", plots.scatter(
                        before, after, "share before (%)", "share after (%)", with_diagonal=True))]


def _pictures(files: RunFiles, predicted: RunFiles | None, kept: ParticleTable | None, rejected: ParticleTable | None,
              densities: dict[str, np.ndarray] | None) -> list[Picture]:
    summary = files.summary
    pictures = _histograms(summary, kept, rejected, files.config.get("max_error_deg"))
    if len(summary["reasons"]) > 1:
        pictures.append(Picture("Reasons", "How many particles each rule rejected.",
                                plots.bars(summary["reasons"], "particles rejected")))
    pictures += [*_cones(summary), *_gallery(predicted, kept, rejected)]
    pictures += [picture for picture in (
        _examples(kept, "Kept", "They should look like the particle, as far as the noise lets it be seen."),
        _examples(rejected, "Rejected", "They should be empty, off-centre, crowded, or of something else."))
        if picture is not None]
    if densities is not None:
        pictures.append(Picture("Viewing directions before and after", "No region should turn dark; bright spots that "
                                "go were junk, which piles up in few views.", plots.view_maps(densities), wide=True))
    return pictures


def _histograms(summary: dict, kept: ParticleTable | None, rejected: ParticleTable | None, max_error_deg: float | None
                ) -> list[Picture]:
    measure, threshold = summary["measure"], summary["threshold"]
    marks = {} if threshold is None else {f"border {significant(threshold)}": threshold}
    label = measure.replace("-", " ") + (" (degrees)" if measure in _ERRORS else "")
    scale = "log" if measure in _ERRORS else "linear" if measure in _FRACTIONS else "asinh"
    pictures = []
    if (values := _both(kept, rejected, summary["column"])) is not None:
        caption = ("The border should lie in the valley between two hills; where there is one hill only, it is a "
                   "matter of taste.")
        if measure == "particle-probability":
            caption = "Particles are near 1, junk near 0; few should lie between."
        pictures.append(Picture("Kept and rejected", caption,
                                plots.histogram(values, label, marks, x_scale=scale)))
    if measure not in _ERRORS and (values := _both(kept, rejected, _EXPECTED_ERROR_COLUMN)) is not None:
        marks = {} if max_error_deg is None else {f"border {degrees(max_error_deg)}": max_error_deg}
        pictures.append(Picture("Expected errors of both", "What was rejected should lie at the right: its "
                                "orientations were not to be trusted either.",
                                plots.histogram(values, "expected error (degrees)", marks, x_scale="log")))
    return pictures


def _examples(table: ParticleTable | None, title: str, caption: str) -> Picture | None:
    """Images from all over a table, evenly; None where there are none or they were moved."""
    locations = Problems().attempt(locate_images, table) if table is not None and len(table) else None
    if locations is None:
        return None
    rows = np.unique(np.linspace(0, len(table) - 1, _N_EXAMPLES).round().astype(int))
    stack = ImageStack(locations.subset(rows))
    images = stack.read(np.arange(len(rows)))
    stack.close()
    numbers = table.strings("rlnImageName")[rows].tolist()
    titles = [name.split("@")[0].lstrip("0") for name in numbers]
    return Picture(title, f"Some images with their number in the stack, slightly smoothed. {caption}",
                   plots.image_grid(plots.low_passed(images, _DISPLAY_SIGMA_PX), titles, _EXAMPLES_PER_ROW), wide=True)


def _both(kept: ParticleTable | None, rejected: ParticleTable | None, name: str) -> dict[str, np.ndarray] | None:
    values = {"kept": column(kept, name), "rejected": column(rejected, name)}
    return None if any(each is None for each in values.values()) else values
