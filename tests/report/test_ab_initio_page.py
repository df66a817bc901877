"""The page of ab-initio: converged runs, runs that did not converge, and the next steps."""

import html
import json
import re
import shlex

import numpy as np
import pytest

from cryoforum_core.cli import parse
from cryoforum_core.report.ab_initio_page import ab_initio_page
from cryoforum_core.report.report import write_report
from cryoforum_core.report.run_files import RunFiles

from .example_runs import N, ab_initio_run


def page_of(run):
    return ab_initio_page(RunFiles(run))


def words(page):
    return " ".join(page.assessment.sentences)


def titles(page):
    return [picture.title for picture in page.pictures]


def test_converged_run_is_good_and_shows_map_searches_and_rounds(runs):
    page = page_of(runs["ab-initio"])
    assert page.assessment.level == "good" and "14.2 Å" in words(page)
    assert page.facts["particles"] == str(N) and page.facts["hand"] == "undetermined"
    assert {"The map", "Fourier shell correlation", "Expected error", "Viewing directions"} <= set(titles(page))
    assert [table.title for table in page.tables] == ["Searches from random starts", "Refinement of the half maps", "Stages"]
    assert page.tables[1].rows == (("1", "24.0 Å", "-"), ("2", "14.2 Å", "3.10°"))
    assert page.tables[0].rows[0][-1] == "chosen" and page.tables[0].rows[2][-1] == "10.0"


def test_search_table_leaves_out_empty_columns(tmp_path):
    table = page_of(ab_initio_run(tmp_path / "run", seeds=[{"seed": 7, "score": 2.5, "structure": 1.25,
                                                            "angle_to_best_deg": 0.0, "chosen": True}])).tables[0]
    assert table.header == ("start", "log-evidence per image, relative to noise alone (nats)",
                            "log-evidence gain over the spherically averaged map (nats)",
                            "median angle to the poses of the chosen start (degrees)")
    assert table.rows == (("7", "2.50", "1.25", "chosen"),)


def test_page_says_how_the_symmetry_was_imposed_and_on_what_evidence(tmp_path):
    starts = [{"seed": 0, "score": 1.0, "angle_to_best_deg": None, "chosen": False},
              {"seed": 1, "score": 2.0, "angle_to_best_deg": 0.0, "chosen": True, "symmetry_from_the_start": True}]
    sentence = "The symmetry was imposed from the start: the evidence is 1.00 nats higher."
    page = page_of(ab_initio_run(tmp_path / "run", symmetry="o", seeds=starts, symmetry_choice={"sentence": sentence}))
    assert f"Symmetry: {sentence}" in page.notes
    assert page.tables[0].header[1] == "symmetry" and [row[1] for row in page.tables[0].rows] == ["from the start", "none"]
    assert page.tables[0].rows[1][-1] == "-"


def test_end_to_end_run_shows_training_curves_and_no_searches(runs):
    page = page_of(runs["end-to-end"])
    assert "Loss" in titles(page) and "Match score" not in titles(page) and not page.tables


def test_run_that_did_not_converge_failed_with_its_reason_and_another_attempt(tmp_path):
    run = ab_initio_run(tmp_path / "run", converged=False, symmetry="d2", seeds=[])
    page = page_of(run)
    assert page.assessment.level == "poor" and "two best searches differ by 61 degrees." in words(page)
    again, without_symmetry = (step.command for step in page.next_steps)
    assert "--seeds 6" in again and "--symmetry d2" in again and "--symmetry c1" in without_symmetry
    assert "Searches from random starts" not in [table.title for table in page.tables]


def test_after_four_failed_starts_a_longer_search_is_the_next_step(tmp_path):
    starts = [{"seed": i, "score": 1.0, "structure": 0.5, "angle_to_best_deg": 90.0, "chosen": i == 0} for i in range(4)]
    run = ab_initio_run(tmp_path / "run", converged=False, seeds=starts)
    assert "--search-steps 800" in page_of(run).next_steps[0].command


def test_failed_end_to_end_run_suggests_hybrid_search_or_longer_training(tmp_path):
    page = page_of(ab_initio_run(tmp_path / "run", "end-to-end", converged=False))
    search, longer = (step.command for step in page.next_steps)
    assert "--method" not in search and "--method end-to-end" in longer and "--epochs 30" in longer


@pytest.mark.parametrize("change, said", [
    ({"resolution_angstrom": 40.0}, "too low to distinguish"), ({"seeds_agreement_deg": 50.0}, "nearest: 50.0°"),
    ({"seeds_agreement_deg": None}, None)])
def test_weak_maps_need_a_check(tmp_path, change, said):
    page = page_of(ab_initio_run(tmp_path / "run", **change))
    assert page.assessment.level == ("good" if said is None else "caution")
    assert said is None or said in words(page)


def test_uncertain_orientations_are_mentioned(tmp_path):
    run = ab_initio_run(tmp_path / "run")
    with np.load(run.orientation_posterior) as arrays:
        arrays = dict(arrays)
    np.savez(run.orientation_posterior, **(arrays | {"expected_error_deg": 30 + arrays["expected_error_deg"]}))
    assert "have an expected error above" in words(page_of(run))


def test_nyquist_limit_is_mentioned(tmp_path):
    assert "Nyquist limit" in words(page_of(ab_initio_run(tmp_path / "a", resolution_angstrom=12.1)))
    assert "Nyquist limit" not in words(page_of(ab_initio_run(tmp_path / "b", resolution_angstrom=16.0)))


def test_note_says_whether_the_network_can_be_used(tmp_path):
    for error, said in ((12.0, "can predict the orientations of further"), (120.0, "poorly trained")):
        notes = page_of(ab_initio_run(tmp_path / f"{error}", validation_median_error_deg=error)).notes
        assert said in notes[-1]


def test_known_hand_needs_no_mirroring(tmp_path):
    known = page_of(ab_initio_run(tmp_path / "a", hand="as in the reference"))
    unknown = page_of(ab_initio_run(tmp_path / "b"))
    assert "mirror image" in " ".join(unknown.notes)
    assert any("--invert_hand" in step.command for step in unknown.next_steps)
    assert not any("--invert_hand" in step.command for step in known.next_steps)
    assert "Hand: as in the reference." in known.notes


def test_pseudo_symmetry_is_noted_with_its_consequence(tmp_path):
    def notes(name, **summary):
        return " ".join(page_of(ab_initio_run(tmp_path / name, **summary)).notes)

    assert "Pseudo-symmetry" not in notes("none")
    resolved = notes("resolved", near_half_turn={"agreement": 0.84, "is_told_apart": True})
    assert "FSC 0.84" in resolved and "images resolve it" in resolved and "--symmetry" not in resolved
    assert "--symmetry" in notes("unresolved", near_half_turn={"agreement": 0.98, "is_told_apart": False})


@pytest.mark.parametrize("method", ["hybrid", "end-to-end"])
def test_wrong_hand_is_corrected_first_and_with_its_orientations(tmp_path, method):
    """Local searches from orientations of the opposite hand fail; a run with the mirrored map as hand reference does not."""
    run = ab_initio_run(tmp_path / "run", method, symmetry="c2")
    options = {"contrast": "dark", "frequency_marching": True, "skip": ["refinement"]}
    run.config.write_text(json.dumps(json.loads(run.config.read_text()) | options))
    steps = page_of(run).next_steps
    places = {word: next(i for i, step in enumerate(steps) if word in step.command)
              for word in ("--invert_hand", "--hand-reference", "cryoforum select", "relion_refine_mpi")}
    assert list(places.values()) == sorted(places.values())
    again = steps[places["--hand-reference"]]
    assert "do not fit the mirrored map" in again.what
    given = parse(shlex.split(again.command.replace("\\\n", ""))[1:])
    assert given.hand_reference == run.path / "map_mirrored.mrc"
    assert given.symmetry == "c2" and given.contrast == "dark"
    # the end-to-end method has no hand reference
    assert given.method == "hybrid" and given.seeds == (3 if method == "hybrid" else 2)
    # ... and hybrid no frequency marching, which earlier versions accepted silently
    assert not given.frequency_marching and len(given.skip) == (method == "hybrid")


def test_suggested_commands_are_accepted_by_the_command_line(runs, tmp_path):
    for run in (runs["ab-initio"], ab_initio_run(tmp_path / "run", converged=False),
                ab_initio_run(tmp_path / "end_to_end", "end-to-end", converged=False)):
        own = [shlex.split(step.command.replace("\\\n", "")) for step in page_of(run).next_steps]
        parsed = [parse(line[1:]) for line in own if line[0] == "cryoforum"]
        assert parsed and {config.job for config in parsed} <= {"select", "reconstruct", "ab-initio"}


def test_tables_and_notes_are_on_the_page(runs, tmp_path):
    write_report(runs["ab-initio"], tmp_path / "report.html")
    text = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    rows = re.findall(r'<tr class="marked"><td>(.*?)</td>', text)
    assert rows == ["0"] and "<td>half maps</td>" in text and "Hand: projections cannot distinguish" in text


def test_run_with_few_files_and_figures_still_has_a_page(tmp_path):
    run = ab_initio_run(tmp_path / "run")
    for path in (run.map, run.fsc, run.orientation_posterior, run.particles):
        path.unlink()
    summary = {name: value for name, value in run.read_summary().items()
               if name in ("job", "seconds", "converged", "resolution_angstrom", "n_particles", "method")}
    run.summary.write_text(json.dumps(summary))
    assert page_of(run).assessment.level == "good" and not page_of(run).pictures


def test_live_page_redirects_to_the_report(tmp_path):
    run = ab_initio_run(tmp_path / "run")
    write_report(run, run.report)
    assert not run.live.exists()
    run.live.write_text("running")
    write_report(run, run.report)
    assert "url=report.html" in run.live.read_text()
