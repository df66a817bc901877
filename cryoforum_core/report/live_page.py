"""The page of a running job: ``progress.json`` for programs, ``live.html`` for people, both complete at any time.

A browser that has the page open reloads it by itself, and switches to the report once that is written.
"""

import base64
import datetime
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from ..run_directory import RunDirectory, atomic_path
from . import plots
from .page import Picture, Table, duration, percent, significant
from .report import template

# often enough to see the run go on, seldom enough to read the page
RELOAD_SECONDS = 10
# the page is written every few seconds: coarse pictures are quick
_PNG_DPI = 80
# the time axis is in minutes from here on
_MINUTES_ABOVE_SECONDS = 300


def write_live(run: RunDirectory, progress: dict, volume: Float[np.ndarray, "d d d"] | None, pixel_size_angstrom: float,
               fsc_curves: Mapping[str, Float[np.ndarray, " shells"]], history: Sequence[dict],
               image_examples: Mapping[str, Float[np.ndarray, "k b b"]] | None = None) -> None:
    """Writes ``progress.json`` and ``live.html``.

    progress: ``stage``, ``stage_number`` (from 1), ``n_stages``, ``fraction`` (of the whole run), ``seconds``,
    ``seconds_left``, ``resolution_angstrom`` (None where not known), ``message``, and where known ``stages``, the names
    of all. volume: the map so far, [z, y, x]. fsc_curves: name -> FSC over the shells of the map's box.
    history: earlier progress, each with ``seconds``, ``stage`` and where known ``resolution_angstrom``, ``score`` and
    ``loss``.
    image_examples: name -> a row of images.
    """
    progress = {name: _finite(value) for name, value in progress.items()}
    with atomic_path(run.progress) as temporary:
        temporary.write_text(json.dumps(progress, indent=1) + "\n")
    past = [*history, progress]
    pictures = [*_map_pictures(volume, pixel_size_angstrom, fsc_curves, progress.get("resolution_angstrom")),
                *_course_pictures(past)]
    if image_examples:
        pictures.append((Picture("Examples", "One row for each kind of image.", plots.image_rows(image_examples), wide=True),
                         "png"))
    finished = progress["fraction"] >= 1
    text = template("live.html.j2").render(
        run_path=run.path.resolve(), progress=progress, percent=percent(progress["fraction"]), facts=_facts(progress),
        stages=_stages(past), finished=finished, reload_seconds=RELOAD_SECONDS,
        report=run.report.name, written=datetime.datetime.now().strftime("%H:%M:%S"),
        pictures=[vars(picture) | {"source": _inlined(picture.figure, kind)} for picture, kind in pictures])
    with atomic_path(run.live) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _finite(value):
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _facts(progress: dict) -> dict[str, str]:
    facts = {"completed": percent(progress["fraction"]), "elapsed time": duration(progress["seconds"])}
    left = progress.get("seconds_left")
    facts["time left (estimate)"] = "-" if left is None else duration(left)
    resolution = progress.get("resolution_angstrom")
    facts["current resolution"] = "-" if resolution is None else f"{significant(resolution)} Å"
    return facts


def _stages(past: Sequence[dict]) -> Table:
    """The stages in their order with the time each took; those to come where their names are known."""
    now = past[-1]
    number = int(now["stage_number"])
    seconds = _seconds_of_stages(past)
    names = list(now.get("stages") or [name for name in seconds if name != now["stage"]])
    if "stages" not in now:
        # a resumed run has no history of the stages before the interruption
        names = [f"stage {i + 1}" for i in range(number - 1 - len(names))] + names[-(number - 1):] * (number > 1)
        names += [now["stage"]] + [f"stage {i + 1}" for i in range(number, int(now["n_stages"]))]
    rows = []
    for i, name in enumerate(names, start=1):
        state = "done" if i < number or now["fraction"] >= 1 else "running" if i == number else "pending"
        rows.append((str(i), name, state, duration(seconds[name]) if name in seconds else ""))
    return Table("Stages", "", ("", "stage", "", "time"), tuple(rows), number - 1 if now["fraction"] < 1 else None)


def _seconds_of_stages(past: Sequence[dict]) -> dict[str, float]:
    """Time spent in each stage, in the order in which they started."""
    spent: dict[str, float] = {}
    before = 0.0
    for entry in past:
        spent[entry["stage"]] = spent.get(entry["stage"], 0.0) + max(entry["seconds"] - before, 0.0)
        before = entry["seconds"]
    return spent


def _map_pictures(volume: np.ndarray | None, pixel_size_angstrom: float, fsc_curves: Mapping[str, np.ndarray],
                  resolution_angstrom: float | None) -> list[tuple[Picture, str]]:
    pictures = []
    curves = {name: np.asarray(values, dtype=float) for name, values in fsc_curves.items() if len(values) > 2}
    if curves:
        n = max(map(len, curves.values()))
        box = 2 * (n - 1) if volume is None else len(volume)
        curves = {name: np.pad(values, (0, n - len(values)), constant_values=np.nan)[1:]
                  for name, values in curves.items()}
        pictures.append((Picture("Fourier shell correlation", "It starts near 1 and falls off once; the fall-off moves "
                                 "to the right as the map improves.",
                                 plots.fsc_curves(np.arange(1, n) / (box * pixel_size_angstrom), curves,
                                                  resolution_angstrom)), "svg"))
    if volume is not None:
        pictures.append((Picture("The map so far", "Central slices and projections. A featureless ball is normal at "
                                 "the start; detail appears as the resolution improves.",
                                 plots.map_views(np.asarray(volume), pixel_size_angstrom), wide=True), "png"))
    return pictures


def _course_pictures(past: Sequence[dict]) -> list[tuple[Picture, str]]:
    """Resolution, score and loss against time, where there are at least two values of them."""
    seconds = np.array([entry["seconds"] for entry in past], dtype=float)
    unit, name = (60.0, "minutes") if seconds[-1] > _MINUTES_ABOVE_SECONDS else (1.0, "seconds")
    resolution, score, loss = (_column(past, key) for key in ("resolution_angstrom", "score", "loss"))
    pictures = []
    if np.isfinite(resolution).sum() > 1:
        pictures.append((Picture("Resolution", "The value in Å should fall step by step and level off.", plots.curves(
            seconds / unit, {"resolution": resolution}, name, "resolution (Å)", y_scale="log")), "svg"))
    if np.isfinite(score).sum() > 1:
        pictures.append((Picture("Score", "How well the map fits the images; higher is better within a stage. Scores of "
                                 "different stages cannot be compared.",
                                 plots.curves(seconds / unit, _by_stage(past, score), name, "score")), "svg"))
    if np.isfinite(loss).sum() > 1:
        pictures.append((Picture("Loss", "The fraction of the power of held-out images that network and map do not explain. "
                                 "It should fall, but often stays flat for a long time first.",
                                 plots.curves(seconds / unit, {"held out": loss}, name, "unexplained power")), "svg"))
    return pictures


def _by_stage(past: Sequence[dict], values: np.ndarray) -> dict[str, np.ndarray]:
    stages = np.array([entry["stage"] for entry in past])
    split = {name: np.where(stages == name, values, np.nan) for name in dict.fromkeys(stages.tolist())}
    return {name: part for name, part in split.items() if np.isfinite(part).any()}


def _column(past: Sequence[dict], key: str) -> np.ndarray:
    values = (entry.get(key) for entry in past)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _inlined(figure: plots.Figure, kind: str) -> str:
    data = plots.to_png(figure, _PNG_DPI) if kind == "png" else plots.to_svg(figure)
    mime = "image/png" if kind == "png" else "image/svg+xml"
    return f"data:{mime};base64," + base64.b64encode(data).decode("ascii")
