"""The files of a finished run as arrays, for the pages. Without torch, so that a report is made in a moment."""

import csv
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..particles.table import ParticleTable
from ..results.pose_results import PoseResults
from ..run_directory import RunDirectory

# the database of every Scipion project
_SCIPION_PROJECT = "project.sqlite"


class RunFiles:
    """The results of a run. ``summary`` stands in for summary.json while the run itself writes its report."""

    def __init__(self, run: RunDirectory, summary: dict | None = None):
        self.run = run
        self.path = run.path
        self.summary = run.read_summary() if summary is None else summary
        if not run.config.is_file():
            raise InputError(f"A run directory must have a {run.config.name}; {run.path} has none. Give the output "
                             "directory of a cryoforum job.")
        self.config = json.loads(run.config.read_text())
        self.job = self.config.get("job", "")

    @property
    def symmetry(self) -> str:
        """The point group of the molecule, from this run or the one it started from; c1 where neither states it."""
        earlier = Path(self.config["run"]) / self.run.summary.name if "run" in self.config else None
        of_earlier = json.loads(earlier.read_text()) if earlier is not None and earlier.is_file() else {}
        return self.summary.get("symmetry") or self.config.get("symmetry") or of_earlier.get("symmetry") or "c1"

    @property
    def is_in_scipion(self) -> bool:
        """Whether the run is part of a Scipion project, whose users run protocols instead of commands."""
        return any((folder / _SCIPION_PROJECT).is_file() for folder in self.path.absolute().parents)

    def input_path(self, name: str) -> Path | None:
        """The file that an option of the run named; None where the option was not given."""
        return None if self.config.get(name) is None else Path(self.config[name])

    def table(self, path: Path | str | None) -> ParticleTable | None:
        """The particles of a STAR file; None where there is none (it may have been moved since)."""
        if path is None or not Path(path).is_file() or Path(path).suffix != ".star":
            return None
        return ParticleTable.read(path)

    def csv_columns(self, name: str) -> dict[str, Float[np.ndarray, " n"]] | None:
        """Columns of a CSV file of the run, NaN where a cell is not a number; None without the file."""
        path = self.path / name
        if not path.is_file():
            return None
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        return {column: np.array([_number(row[column]) for row in rows]) for column in reader.fieldnames or ()}

    def results(self) -> PoseResults:
        """What the run has found out about its particles."""
        return PoseResults.load(self.run.orientation_posterior)


def column(table: ParticleTable | None, name: str) -> Float[np.ndarray, " n"] | None:
    """A column of numbers; None where the table lacks it."""
    return table.floats(name) if table is not None and table.has(name) else None


def angles_deg(table: ParticleTable | None) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None:
    """rot and tilt of a table; None where it has no poses."""
    if table is None or not table.has("rlnAngleRot", "rlnAngleTilt"):
        return None
    return table.floats("rlnAngleRot"), table.floats("rlnAngleTilt")


def defocus_um(table: ParticleTable | None) -> Float[np.ndarray, " n"] | None:
    """Mean defocus in micrometres; None where the table has none."""
    if table is None or not table.has("rlnDefocusU", "rlnDefocusV"):
        return None
    return 0.5e-4 * (table.floats("rlnDefocusU") + table.floats("rlnDefocusV"))


def _number(text: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")
