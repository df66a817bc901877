"""One self-contained HTML page about a run: it loads nothing from elsewhere, so it can be sent as a single file."""

import base64
import datetime
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jinja2
import numpy as np

from ..errors import InputError
from ..run_directory import RunDirectory, atomic_path
from . import plots
from .ab_initio_page import ab_initio_page
from .benchmark_page import benchmark_page
from .evaluation_page import evaluation_page
from .map_page import other_page, reconstruction_page
from .page import Page
from .prediction_page import prediction_page
from .result_labels import labelled, text_of
from .run_files import RunFiles
from .selection_page import selection_page
from .simulation_page import simulation_page
from .training_page import training_page

PAGES: dict[str, Callable[..., Page]] = {
    "simulate": simulation_page, "train": training_page, "predict": prediction_page, "select": selection_page,
    "reconstruct": reconstruction_page, "evaluate": evaluation_page, "ab-initio": ab_initio_page,
    "benchmark": benchmark_page,
}
LEVEL_NAMES = {"good": "Good", "caution": "Check", "poor": "Failed"}


def write_report(run: RunDirectory, path: Path, truth: Path | None = None, summary: dict | None = None) -> dict:
    """Writes the page of a finished run to ``path``, atomically; returns a summary of the report.

    truth: STAR file of known poses, for a run of predict. summary: the summary of a run that writes its report before
    its summary.json. Raises InputError where the run is not finished, or ``truth`` is given for another job.
    """
    files = RunFiles(run, summary)
    make = PAGES.get(files.job, other_page)
    if truth is not None and make is not prediction_page:
        raise InputError(f"--truth needs a run of predict; {run.path} is a run of {files.job}. Leave out --truth, or "
                         "use cryoforum evaluate.")
    page = make(files) if truth is None else make(files, _errors(files, truth))
    text = render(page, files)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if path == run.report and run.live.is_file():
        _close_live(run)
    return {"report": str(path), "n_figures": len(page.pictures), "assessment": " ".join(page.assessment.sentences)}


def _close_live(run: RunDirectory) -> None:
    """Redirects a browser on the live page of the run to its report."""
    name = run.report.name
    with atomic_path(run.live) as temporary:
        temporary.write_text(f'<!DOCTYPE html>\n<meta charset="utf-8">\n<meta http-equiv="refresh" content="0; '
                             f'url={name}">\n<title>cryoforum</title>\n<a href="{name}">The report of this run</a>\n',
                             encoding="utf-8")


def render(page: Page, files: RunFiles) -> str:
    """The HTML of a page."""
    finished = files.run.summary.stat().st_mtime if files.run.finished else datetime.datetime.now().timestamp()
    return template("report.html.j2").render(
        page=page, is_in_scipion=files.is_in_scipion, level_name=LEVEL_NAMES[page.assessment.level],
        run_path=files.path.resolve(), job=files.job, version=files.summary.get("version", ""),
        date=datetime.datetime.fromtimestamp(finished).strftime("%Y-%m-%d %H:%M"),
        pictures=[vars(picture) | {"source": _inlined(picture)} for picture in page.pictures],
        summary=labelled(files.summary), config={name: text_of(value) for name, value in files.config.items()})


def _errors(files: RunFiles, truth: Path) -> dict[str, np.ndarray]:
    """Errors (n,) of a run of predict against a truth, in the run's order."""
    # these need torch, which most pages do not
    from ..evaluation.evaluation import compare_poses
    from ..geometry.symmetry import symmetry_group
    from ..particles.dataset import read_table

    found = compare_poses(read_table(files.run.particles), read_table(truth), symmetry_group(files.symmetry))
    return {"error_deg": found.error_deg.double().numpy(), "is_junk": found.is_junk,
            "shift_error_angstrom": found.shift_error_angstrom.double().numpy()}


@cache
def template(name: str) -> jinja2.Template:
    """A template of this directory; an undefined variable in it is an error."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)


def _inlined(picture) -> str:
    """The figure as a data URI: an image of its own, so that identifiers of two figures cannot clash."""
    return "data:image/svg+xml;base64," + base64.b64encode(plots.to_svg(picture.figure)).decode("ascii")

