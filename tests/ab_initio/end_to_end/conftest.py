"""Sets of images without CTF and shifts, and one short run, for all tests that only read them."""

import numpy as np
import pytest

import cryoforum_core as cf
from cryoforum_core.ab_initio import live_run
from cryoforum_core.cli import EXIT_NOT_CONVERGED
from cryoforum_core.mrc import write_map
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.report.live_page import write_live
from cryoforum_core.run_directory import RunDirectory

from .end_to_end_runs import N_SHORT, NO_CTF, PIXEL, cryoforum, molecule


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """Makes sets of 1,000 images without CTF and shifts: ``sets(snr)`` returns the run, whose truth.star has poses."""
    folder, made = tmp_path_factory.mktemp("sets"), {}
    write_map(folder / "molecule.mrc", molecule().numpy(), PIXEL)

    def make(snr: float, n: int = 1000) -> RunDirectory:
        if (snr, n) not in made:
            made[snr, n] = cf.simulate(cf.SimulateConfig(out=folder / f"{snr}_{n}", model=folder / "molecule.mrc",
                                                         n_particles=n, snr=snr, shift_rms_px=0.0, **NO_CTF))
        return made[snr, n]

    return make


@pytest.fixture(scope="session")
def short(sets, tmp_path_factory):
    """A short job of everything that can be switched on: its summary, its run, that of its particles, which belong to
    no half sets, and the pages that it showed."""
    made, run = sets(2.0, N_SHORT), RunDirectory(tmp_path_factory.mktemp("short") / "run")
    ParticleTable.read(made.particles).with_columns({"rlnRandomSubset": np.ones(N_SHORT, int)}).write(
        made.path / "no_halves.star")
    pages = []

    def write_and_keep(run, progress, volume, *more):
        write_live(run, progress, volume, *more)
        pages.append((progress, volume, run.live.read_text(encoding="utf-8")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_run, "write_live", write_and_keep)
        code = cryoforum("ab-initio", "--out", run.path, "--particles", made.path / "no_halves.star", "--device", "cpu",
                         "--method", "end-to-end", "--encoder", "cryoposenet", "--batch-size", 20, "--epochs", 3,
                         "--symmetric-loss", "--n-heads", 2, "--random-pose-weight", 0.3, "--frequency-marching",
                         "--ctf-state", "raw", "--contrast", "bright")
    assert code == EXIT_NOT_CONVERGED
    return run.read_summary(), run, made, pages
