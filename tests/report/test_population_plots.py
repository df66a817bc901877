"""The two states of the particles on the pages of predict and ab-initio."""

import pytest

from cryoforum_core.mrc import write_map
from cryoforum_core.report.ab_initio_page import ab_initio_page
from cryoforum_core.report.population_plots import state_pictures
from cryoforum_core.report.prediction_page import prediction_page
from cryoforum_core.report.run_files import RunFiles

from .example_runs import PIXEL, ab_initio_run, molecule, predict_run
from .page_texts import titles_of

PAGES = [(prediction_page, lambda path: predict_run(path)[0]), (ab_initio_page, ab_initio_run)]
FOUND = {"minor_state_fraction": 0.274, "minor_state_gain": 5.02, "minor_state_gain_error": 0.43,
         "minor_state_resolution_angstrom": 21.8}


@pytest.mark.parametrize("page, make", PAGES)
def test_pages_show_both_states_and_say_how_many_particles_are_in_the_second(page, make, tmp_path):
    run = make(tmp_path / "run")
    run.write_summary(run.read_summary() | FOUND)
    write_map(run.map_state1, molecule().astype("float32"), PIXEL)
    write_map(run.map_state2, (0.8 * molecule()).astype("float32"), PIXEL)
    found = page(RunFiles(run))
    assert found.facts["second state"] == "27 % of the particles"
    assert "Two states" in titles_of(found)
    note = next(note for note in found.notes if "second state" in note)
    assert "5.02 ± 0.43 nats" in note and "rlnCryoforumState" in note
    figure = next(picture for picture in found.pictures if picture.title == "Two states").figure
    assert len([axes for axes in figure.axes if axes.images]) == 9


@pytest.mark.parametrize("page, make", PAGES)
def test_pages_say_that_no_second_state_was_found(page, make, tmp_path):
    run = make(tmp_path / "run")
    assert "second state" not in page(RunFiles(run)).facts
    run.write_summary(run.read_summary() | {"minor_state_fraction": None, "minor_state_gain": -0.8,
                                            "minor_state_gain_error": 0.04})
    found = page(RunFiles(run))
    assert found.facts["second state"] == "none found" and state_pictures(RunFiles(run)) == []
    assert not any("second state" in note for note in found.notes)
