"""The page of simulate."""

import numpy as np

from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.report.run_files import RunFiles
from cryoforum_core.report.simulation_page import simulation_page

from .example_runs import JUNK_KINDS, N_JUNK, N, simulate_run
from .page_texts import titles_of, words


def test_facts_and_sentences_are_those_of_the_set(runs):
    page = simulation_page(RunFiles(runs["simulate"]))
    assert page.facts["particles"] == str(N) and page.facts["junk"] == "15 %" and page.facts["signal-to-noise"] == "0.100"
    assert f"{N_JUNK} of them are junk of {len(JUNK_KINDS)} kinds." in words(page)


def test_particles_and_each_kind_of_junk_are_shown(runs):
    page = simulation_page(RunFiles(runs["simulate"]))
    assert titles_of(page) == ["Images", "The map", "Viewing directions", "Defocus"]
    shown = [text.get_text() for axes in page.pictures[0].figure.axes for text in axes.texts]
    assert shown.count("particle") == 10 and all(shown.count(kind) == 5 for kind in JUNK_KINDS)


def test_images_without_noise_and_junk_are_said_to_be_so(tmp_path):
    files = RunFiles(simulate_run(tmp_path / "run"))
    files.summary = {name: value for name, value in files.summary.items() if "junk" not in name} | {"snr": None}
    page = simulation_page(files)
    assert page.facts["signal-to-noise"] == "no noise" and page.facts["junk"] == "0 %" and "junk" not in words(page)


def test_a_page_can_be_made_after_the_images_were_removed(tmp_path):
    run = simulate_run(tmp_path / "run")
    run.particle_images.unlink()
    assert "Images" not in titles_of(simulation_page(RunFiles(run)))


def test_ingredients_of_a_session_are_shown_and_counted(tmp_path):
    run = simulate_run(tmp_path / "run")
    truth = ParticleTable.read(run.truth)
    number = np.arange(N)
    truth.with_columns({"rlnClassNumber": 1 + (number % 3 == 0), "rlnCryoforumNeighbour": (number % 4 == 0).astype(int),
                        "rlnCryoforumNoiseLevel": np.linspace(0.5, 2, N)}).write(run.truth)
    files = RunFiles(run)
    files.summary = files.summary | {"n_micrographs": 40, "n_minor_state": 70, "n_with_neighbour": 50}
    page = simulation_page(files)
    assert page.facts["micrographs"] == "40" and "70 particles are in a minor state" in words(page)
    assert titles_of(page)[-1] == "Noise levels"
    shown = [text.get_text() for axes in page.pictures[0].figure.axes for text in axes.texts]
    assert shown.count("particle") == 10 and shown.count("minor state") == shown.count("with neighbour") == 5
