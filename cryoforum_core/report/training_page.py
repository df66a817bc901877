"""The page of a run of train."""

import numpy as np
from jaxtyping import Float

from . import plots
from .error_plots import error_histogram
from .page import Assessment, NextStep, Page, Picture, beside, command, degrees, duration, level_of
from .run_files import RunFiles

# near enough for local matching, without a search (a rule of thumb, not measured)
GOOD_BELOW_DEG = 8.0
# random orientations are off by 132 degrees (median); a network this far off guides no search
USEFUL_BELOW_DEG = 60.0
# so far off, matching has to search for many particles (a rule of thumb, not measured)
TRAIN_LONGER_ABOVE_DEG = 20.0
# columns of metrics.csv
_NOT_LOSS_TERMS = {"step", "progress", "seconds", "learning_rate", "loss"}
# the last validation error over the lowest; more than evaluations vary by (not measured)
_OVERFITS_ABOVE = 1.5


def training_page(files: RunFiles) -> Page:
    """The errors of the network on held-out images, and the course of the training."""
    median = files.summary["validation_median_error_deg"]
    mean = files.summary["validation_mean_error_deg"]
    facts = {"median error": degrees(median), "mean error": degrees(mean),
             "training time": duration(files.summary.get("train_seconds", files.summary["seconds"]))}
    if "steps" in files.summary:
        facts["steps"] = f"{files.summary['steps']:,}"
    metrics = files.csv_columns(files.run.metrics.name)
    source = f"{files.summary.get('validation_source', 'images')} that were not used for training"
    return Page("Training of the orientation network", _assessment(median, mean, source, metrics),
                _next_steps(files, median), facts, tuple(_pictures(files, metrics)))


def _assessment(median: float, mean: float, source: str, metrics: dict[str, np.ndarray] | None) -> Assessment:
    level = level_of(median, GOOD_BELOW_DEG, USEFUL_BELOW_DEG)
    meaning = {
        "good": "This is as accurate as a network gets on its own; predict refines its poses by matching them to the map.",
        "caution": "This is a starting point: where the network is uncertain, the adaptive refinement of predict searches "
                   "all orientations, which takes longer.",
        "poor": "The network is poorly trained: predict would have to search all orientations for nearly every particle. "
                "Train longer, or check contrast, pixel size and symmetry."}[level]
    sentences = [f"On {source}, the error of the network is {degrees(median)} (median) and {degrees(mean)} (mean).", meaning]
    if metrics is not None and (ratio := _overfit_ratio(metrics)) > _OVERFITS_ABOVE:
        sentences.append(f"The validation error rose to {ratio:.1f} times its minimum: the network overfits. The best "
                         "weights were kept; more particles or a --reference map would help.")
    return Assessment(level, tuple(sentences))


def _overfit_ratio(metrics: dict[str, np.ndarray]) -> float:
    """The last validation error over the lowest one; 1 where there is none."""
    errors = metrics.get("validation_median_error_deg", np.array([]))
    errors = errors[np.isfinite(errors)]
    return float(errors[-1] / errors.min()) if len(errors) and errors.min() > 0 else 1.0


def _next_steps(files: RunFiles, median: float) -> tuple[NextStep, ...]:
    particles = files.input_path("particles")
    steps = [NextStep("Predict the orientations of all particles",
                      command("predict", particles=particles, model=files.path, out=beside(files.path, "predict")),
                      "cryoforum - predict orientations, with this run's outputNetwork")]
    if median > TRAIN_LONGER_ABOVE_DEG:
        steps.append(NextStep("Continue the training from this network", command(
            "train", particles=particles, reference=files.input_path("reference"), from_checkpoint=files.path,
            symmetry=files.symmetry, out=beside(files.path, "longer")),
            "cryoforum - train orientation network, with this run's outputNetwork as Start from network"))
    return tuple(steps)


def _pictures(files: RunFiles, metrics: dict[str, np.ndarray] | None) -> list[Picture]:
    pictures = []
    if metrics is not None and len(metrics.get("step", ())):
        pictures += training_curves(metrics)
    errors = files.csv_columns(files.run.errors.name)
    if errors is not None:
        pictures.append(error_histogram(errors["error_deg"], what="validation error"))
    return pictures


def training_curves(metrics: dict[str, Float[np.ndarray, " n"]]) -> list[Picture]:
    """Training curves from the columns of metrics.csv, which have a ``step``."""
    step = metrics["step"]
    errors = {name: metrics[f"validation_{name}_error_deg"] for name in ("median", "mean")
              if f"validation_{name}_error_deg" in metrics}
    losses = {name.replace("_", " "): metrics[name] for name in ("loss", "validation_loss") if name in metrics}
    terms = {name.replace("_", " "): values for name, values in metrics.items()
             if name not in _NOT_LOSS_TERMS and not name.startswith("validation_") and np.isfinite(values).any()}
    pictures = []
    if errors:
        pictures.append(Picture("Validation error", "It should fall and level off. A mean far above the median comes from "
                                "misassigned images.",
                                plots.curves(step, errors, "step", "error (degrees)", y_scale="log")))
    if losses:
        pictures.append(Picture("Loss", "The curves may rise at first, while the training images get noisier; at the end "
                                "they should be flat and similar. A validation loss far above the training loss means "
                                "overfitting.",
                                plots.curves(step, losses, "step", "loss")))
    if len(terms) > 1:
        pictures.append(Picture("Terms of the loss", "Each term by itself, on the training images.",
                                plots.curves(step, terms, "step", "value")))
    return pictures
