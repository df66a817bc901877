"""The page of reconstruct, and that of a job without a page of its own."""

import json
import shlex

from cryoforum_core.report.map_page import fsc_picture, other_page, reconstruction_page
from cryoforum_core.report.run_files import RunFiles

from .example_runs import reconstruct_run
from .page_texts import titles_of, words


def test_reconstruction_level_follows_the_resolution(tmp_path):
    pages = {resolution: reconstruction_page(RunFiles(reconstruct_run(tmp_path / f"{resolution}", resolution)))
             for resolution in (12.3, 14.2, 60.0)}
    assert [page.assessment.level for page in pages.values()] == ["good", "good", "poor"]
    assert "Nyquist limit" in words(pages[12.3]) and "Nyquist limit" not in words(pages[14.2])
    assert "14.2 Å" in words(pages[14.2]) and "blob" in words(pages[60.0])


def test_next_steps_name_the_maps_of_the_run(tmp_path):
    run = reconstruct_run(tmp_path / "my run")
    look, sharpen = (step.command for step in reconstruction_page(RunFiles(run)).next_steps)
    assert shlex.split(look) == ["chimerax", str(run.map)]
    assert shlex.split(sharpen)[:5] == ["relion_postprocess", "--i", str(run.map_half1), "--i2", str(run.map_half2)]


def test_viewing_directions_are_shown_where_the_particles_are_still_there(runs, tmp_path):
    run = reconstruct_run(tmp_path / "run")
    assert "Viewing directions" not in titles_of(reconstruction_page(RunFiles(run)))
    run.config.write_text(json.dumps({"job": "reconstruct", "particles": str(runs["predict"].particles)}))
    assert "Viewing directions" in titles_of(reconstruction_page(RunFiles(run)))


def test_every_curve_of_the_fsc_file_is_shown(tmp_path):
    run = reconstruct_run(tmp_path / "run")
    assert len(fsc_picture(RunFiles(run)).figure.axes[0].lines) >= 1
    run.fsc.unlink()
    assert fsc_picture(RunFiles(run)) is None


def test_a_job_without_a_page_shows_its_map_and_its_figures(runs):
    page = other_page(RunFiles(runs["other"]))
    assert titles_of(page) == ["The map"] and "21.0" in " ".join(page.facts.values())
