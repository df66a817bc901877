"""The files of a run: where each is, and how it is written so that an interruption never leaves half a file."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write to; it takes the place of ``path`` only when the block succeeds."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only the owner reads; results are as readable as any other file of the user
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class RunDirectory:
    """The directory that a job writes, with one attribute for each file; the file names are part of the interface.

    ``summary.json`` is written last: a run that has it is finished.
    """

    # options that may differ when a run is resumed: how --out is spelled, and where the run computes
    NO_OPTIONS = frozenset({"job", "resume", "device", "out"})

    def __init__(self, path: Path | str):
        self.path = Path(path)
        # every job
        self.config = self.path / "config.json"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        # particles and poses
        self.particles = self.path / "particles.star"
        self.particle_images = self.path / "particles.mrcs"
        self.truth = self.path / "truth.star"
        self.orientation_posterior = self.path / "orientation_posterior.npz"
        self.gallery = self.path / "gallery.npz"
        # error calibration: the calibration particles, and nominal against empirical coverage
        self.calibration = self.path / "calibration.npz"
        self.calibration_table = self.path / "calibration.csv"
        # noise, contrast and errors of each micrograph
        self.micrographs = self.path / "micrographs.csv"
        # maps
        self.map = self.path / "map.mrc"
        self.map_half1 = self.path / "map_half1.mrc"
        self.map_half2 = self.path / "map_half2.mrc"
        self.fsc = self.path / "fsc.csv"
        # of the two states, where particles are in two
        self.map_state1 = self.path / "map_state1.mrc"
        self.map_state2 = self.path / "map_state2.mrc"
        # of another molecule among the rejected images
        self.map_other_molecule = self.path / "map_other_molecule.mrc"
        # selection
        self.selected = self.path / "selected.star"
        self.rejected = self.path / "rejected.star"
        self.recentre = self.path / "recentre.star"
        self.auto_selection = self.path / "auto_selection.csv"
        # training and evaluation
        self.checkpoint = self.path / "checkpoint"
        self.metrics = self.path / "metrics.csv"
        self.errors = self.path / "errors.csv"
        # while the job runs
        self.live = self.path / "live.html"
        self.progress = self.path / "progress.json"
        self.training_state = self.checkpoint / "training_state.pt"
        self.stages = self.path / "stages"
        self.parts = self.path / "parts"

    @property
    def finished(self) -> bool:
        return self.summary.is_file()

    def prepare(self, config, resume: bool = False) -> None:
        """Creates the directory and writes ``config.json``.

        Raises InputError where the directory holds files and ``resume`` is False, where it belongs to another
        job, or where it cannot be written. Nothing in an existing directory is touched before these checks.
        """
        self.check(config, resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.config) as temporary:
                temporary.write_text(config.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise InputError(f"The output directory must be writable; {self.path} is not ({error.strerror}). "
                             "Choose another --out.") from error

    def check(self, config, resume: bool) -> None:
        """Raises InputError where ``prepare`` would, but writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out must be a directory; {self.path} is a file. Choose another --out.")
        occupied = self.path.is_dir() and any(self.path.iterdir())
        if occupied and not resume:
            raise InputError(f"--out must be a new or empty directory; {self.path} contains files of an earlier run. "
                             "Add --resume to continue that run, or choose another --out.")
        if occupied and not self.config.is_file():
            raise InputError(f"--resume continues an earlier run; {self.path} contains files but no "
                             f"{self.config.name}. Choose another --out.")
        if occupied:
            self._check_same_options(config)

    def _check_same_options(self, config) -> None:
        found = json.loads(self.config.read_text()).get("job")
        if found != config.job:
            raise InputError(f"--resume continues a run of the same job; {self.path} is a {found!r} run, "
                             f"and this is {config.job!r}. Choose another --out.")
        changed = [f"{name} (was {before!r}, is {now!r})" for name, (before, now) in self.changed_options(config).items()
                   if name not in config.MAY_CHANGE]
        if changed:
            raise InputError(f"--resume needs the options that the run was started with; in {self.path} these differ: "
                             f"{', '.join(changed)}. Give the same options, or choose another --out.")

    def changed_options(self, config) -> dict[str, tuple]:
        """Options of ``config`` that differ from the run's own: name -> (before, now). The run must have its config. An
        option that its version did not know has the default, which leaves everything as it was."""
        before, now = json.loads(self.config.read_text()), json.loads(config.model_dump_json())
        before |= {name: now[name] for name, field in type(config).model_fields.items()
                   if name not in before and getattr(config, name) == field.default}
        return {name: (before.get(name), value) for name, value in now.items()
                if name not in self.NO_OPTIONS and before.get(name) != value}

    def write_summary(self, summary: dict) -> None:
        """Writes ``summary.json``, which marks the run as finished."""
        with atomic_path(self.summary) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")

    def remove_temporary(self) -> None:
        """Removes what only --resume needs; to be called once the summary is written."""
        for path in (self.training_state, self.stages, self.parts):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def read_summary(self) -> dict:
        """The summary of a finished run; InputError where the run did not finish."""
        if not self.finished:
            raise InputError(f"The run must be finished; {self.path} has no {self.summary.name}. "
                             "Run its job again with --resume.")
        return json.loads(self.summary.read_text())
