"""Micrographs on the pages of predict and ab-initio."""

import numpy as np
import pytest

from cryoforum_core.report.ab_initio_page import ab_initio_page
from cryoforum_core.report.micrograph_plots import micrograph_pictures
from cryoforum_core.report.prediction_page import prediction_page
from cryoforum_core.report.run_files import RunFiles
from cryoforum_core.results.micrographs import Micrographs

from .example_runs import ab_initio_run, predict_run
from .page_texts import titles_of

G = 30
TITLE = "Noise and contrast of the micrographs"


def write_micrographs(run, noise, contrast, unusual=None, prefix="session/m"):
    values = np.full(G, 0.1)
    Micrographs(tuple(f"{prefix}{g:02d}" for g in range(G)), np.full(G, 20), noise, contrast, values, values,
                tuple((unusual or {}).get(g, "") for g in range(G))).write(run.micrographs)


@pytest.mark.parametrize("page, make", [(prediction_page, lambda path: predict_run(path)[0]),
                                        (ab_initio_page, ab_initio_run)])
def test_pages_show_the_micrographs_and_name_the_worst(page, make, tmp_path):
    run, rng = make(tmp_path / "run"), np.random.default_rng(0)
    assert TITLE not in titles_of(page(RunFiles(run)))
    write_micrographs(run, rng.uniform(0.9, 1.1, (G, 3)), rng.uniform(0.9, 1.1, G), {4: "noise at low frequencies"})
    run.write_summary(run.read_summary() | {"unusual_micrographs": ["session/m04 (noise)", "and 3 more"]})
    found = page(RunFiles(run))
    assert TITLE in titles_of(found) and "Micrographs to look at: session/m04 (noise); and 3 more." in found.notes
    picture = next(picture for picture in found.pictures if picture.title == TITLE)
    named = [[text.get_text() for text in axes.texts] for axes in picture.figure.axes]
    assert named == [["m04"], [], [], []]
    run.write_summary(run.read_summary() | {"unusual_micrographs": []})
    assert not any("Micrographs" in note for note in page(RunFiles(run)).notes)


def test_what_is_unknown_or_alike_has_no_panel(tmp_path):
    run, contrast = predict_run(tmp_path / "run")[0], np.random.default_rng(0).uniform(0.9, 1.1, G)
    for noise in (np.ones((G, 3)), np.full((G, 3), np.nan)):
        write_micrographs(run, noise, contrast, prefix="optics group ")
        picture, = micrograph_pictures(RunFiles(run))
        assert [axes.get_ylabel() for axes in picture.figure.axes] == ["mean contrast"]
        assert picture.figure.axes[0].get_xlabel().startswith("optics group")
    write_micrographs(run, noise, np.full(G, np.nan))
    assert micrograph_pictures(RunFiles(run)) == []
