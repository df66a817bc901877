"""The page of a run of train."""

import numpy as np

from . import plots
from .error_pictures import error_picture
from .page import NextStep, Page, Picture, Verdict, beside, command, degrees, duration, level_of
from .run_files import RunFiles

GOOD_BELOW_DEG, USEFUL_BELOW_DEG = 8.0, 60.0
TRAIN_ON_ABOVE_DEG = 20.0
_NO_TERMS = {"step", "progress", "seconds", "learning_rate", "loss"}
_OVERFITS_ABOVE = 1.5


def training_page(files: RunFiles) -> Page:
    """How well the network does on images that it was not trained on, and how it got there."""
    median = files.summary["validation_median_error_deg"]
    mean = files.summary["validation_mean_error_deg"]
    facts = {"median error": degrees(median), "mean error": degrees(mean),
             "training time": duration(files.summary.get("train_seconds", files.summary["seconds"]))}
    if "steps" in files.summary:
        facts["steps"] = f"{files.summary['steps']:,}"
    metrics = files.csv_columns(files.run.metrics.name)
    source = f"{files.summary.get('validation_source', 'images')} that it was not trained on"
    return Page("Training of an orientation network", _verdict(median, mean, source, metrics),
                _next_steps(files, median), facts, tuple(_pictures(files, metrics)))


def _verdict(median: float, mean: float, source: str, metrics: dict[str, np.ndarray] | None) -> Verdict:
    level = level_of(median, GOOD_BELOW_DEG, USEFUL_BELOW_DEG)
    meaning = {
        "good": "This is as good as networks get alone; predict refines it further by matching against the map.",
        "caution": "This is a start: the adaptive refinement of predict searches again where the network is unsure, "
                   "which takes longer the more there is to search.",
        "poor": "It has learnt little: the search of predict's adaptive refinement would have to find nearly every "
                "orientation. Train longer, or check contrast, pixel size and symmetry."}[level]
    sentences = [f"On {source}, the network is off by {degrees(median)} (median) and {degrees(mean)} (mean).", meaning]
    if metrics is not None and (ratio := _overfit_ratio(metrics)) > _OVERFITS_ABOVE:
        sentences.append(f"The held-out error ends {ratio:.1f} times as high as its lowest: the network learns its "
                         "images by heart. The best weights were kept; more particles or a --reference map would help.")
    return Verdict(level, tuple(sentences))


def _overfit_ratio(metrics: dict[str, np.ndarray]) -> float:
    """The last held-out error over the lowest one; 1 where there is none."""
    errors = metrics.get("validation_median_error_deg", np.array([]))
    errors = errors[np.isfinite(errors)]
    return float(errors[-1] / errors.min()) if len(errors) and errors.min() > 0 else 1.0


def _next_steps(files: RunFiles, median: float) -> tuple[NextStep, ...]:
    particles = files.input_path("particles")
    steps = [NextStep("Find the orientations of all particles",
                      command("predict", particles=particles, model=files.path, out=beside(files.path, "predict")),
                      "cryoforum - predict orientations, with this run's outputNetwork")]
    if median > TRAIN_ON_ABOVE_DEG:
        steps.append(NextStep("Train on from here", command(
            "train", particles=particles, reference=files.input_path("reference"), from_checkpoint=files.path,
            symmetry=files.symmetry, out=beside(files.path, "longer")),
            "cryoforum - train orientation network, with this run's outputNetwork as Start from network"))
    return tuple(steps)


def _pictures(files: RunFiles, metrics: dict[str, np.ndarray] | None) -> list[Picture]:
    pictures = []
    if metrics is not None and len(metrics.get("step", ())):
        pictures += training_curves(metrics)
    errors = files.csv_columns("errors.csv")
    if errors is not None:
        pictures.append(error_picture(errors["error_deg"], what="held-out error"))
    return pictures


def training_curves(metrics: dict[str, np.ndarray]) -> list[Picture]:
    """The course of a training from its metrics.csv, whose columns have a ``step``."""
    step = metrics["step"]
    errors = {name: metrics[f"validation_{name}_error_deg"] for name in ("median", "mean")
              if f"validation_{name}_error_deg" in metrics}
    losses = {name.replace("_", " "): metrics[name] for name in ("loss", "validation_loss") if name in metrics}
    terms = {name.replace("_", " "): values for name, values in metrics.items()
             if name not in _NO_TERMS and not name.startswith("validation_") and np.isfinite(values).any()}
    pictures = []
    if errors:
        pictures.append(Picture("Error on held-out images", "It should fall and level off; a mean far above the "
                                "median is a share of images that are plainly wrong.",
                                plots.curves(step, errors, "step", "error (degrees)", y_scale="log")))
    if losses:
        pictures.append(Picture("Loss", "At the end both should be level and alike; before, the training images get "
                                "noisier step by step. A held-out loss far above the other means learning by heart.",
                                plots.curves(step, losses, "step", "loss")))
    if len(terms) > 1:
        pictures.append(Picture("Terms of the loss", "Each term on its own, over the images trained on.",
                                plots.curves(step, terms, "step", "value")))
    return pictures
