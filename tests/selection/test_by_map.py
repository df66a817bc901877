"""Selection by the map: simulated sets whose answer is known, with true poses and scores as matching makes them."""

import csv
import json

import numpy as np
import pytest
import torch

from cryoforum_core.cli import main
from cryoforum_core.config import ImageInputConfig, SimulateConfig
from cryoforum_core.errors import InputError
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.jobs import simulate
from cryoforum_core.mrc import write_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.simulate import JUNK_KIND_COLUMN
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.progress import Progress
from cryoforum_core.reconstruction.map_quality import HalfMapMaker
from cryoforum_core.run_directory import RunDirectory
from cryoforum_core.selection.by_map import MapSelectionSetup, ranked_rows, select_by_map
from cryoforum_core.selection.selection import REASON_COLUMN, select

N, BOX, PIXEL = 400, 24, 6.0
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def molecule(tmp_path_factory):
    offset = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(offset, offset, offset, indexing="ij")
    centres = np.random.default_rng(0).uniform(-5, 5, (12, 3))
    volume = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 3) for a, b, c in centres)
    path = tmp_path_factory.mktemp("molecule") / "map.mrc"
    write_map(path, volume, PIXEL)
    return path


@pytest.fixture(scope="module")
def make_set(tmp_path_factory, molecule):
    """Particles with the poses that they were drawn with (junk too), and which of them are junk (N,)."""
    made = {}

    def make(junk_fraction: float, snr: float = 0.3):
        if (junk_fraction, snr) not in made:
            run = simulate(SimulateConfig(
                out=tmp_path_factory.mktemp("set") / "run", model=molecule, n_particles=N, snr=snr, seed=3,
                junk_fraction=junk_fraction, junk_kinds=("noise", "off-centre", "blank")))
            particles = load_particles(run.truth, require_poses=True)
            made[junk_fraction, snr] = particles, particles.table.strings(JUNK_KIND_COLUMN) != "none"
        return made[junk_fraction, snr]

    return make


def scores(is_junk: np.ndarray, centre: float = -7.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"match-score": np.where(is_junk, rng.normal(centre, 1.0, N), rng.normal(0.0, 1.0, N))}


def chosen_by_map(particles, measures, group=None, is_matched=True, seed=0):
    suggested = select(measures, "match-score")
    ranked = ranked_rows(suggested, measures, particles.particle_id, particles)
    images = ImagePreparation.checked(particles, ImageInputConfig(contrast="bright", ctf_state="raw"), CPU)
    maker = HalfMapMaker(particles, images, symmetry_group("c1", torch.float32) if group is None else group, seed)
    return select_by_map(suggested, measures, MapSelectionSetup(ranked, maker, is_matched), seed)


def test_junk_goes_and_the_map_is_better_than_after_random_removal(make_set):
    particles, is_junk = make_set(0.2)
    selection, found = chosen_by_map(particles, scores(is_junk))
    assert is_junk[selection.kept].sum() <= 0.02 * N
    assert (~is_junk[selection.rejected]).sum() <= 0.08 * N
    chosen = found.chosen
    assert chosen.information > found.all.information
    assert chosen.half_map_information > chosen.random_information + 3 * chosen.random_information_deviation
    assert chosen.gain_angstrom > 0
    assert selection.explanation.startswith(f"Keep {100 * chosen.kept_fraction:.0f} %: {chosen.gain_angstrom:.2f} ±")
    assert set(selection.rule) == {f"match-score<{selection.threshold:.4g}"}


def test_a_clean_set_is_left_alone(make_set):
    particles, is_junk = make_set(0.0)
    selection, found = chosen_by_map(particles, scores(is_junk))
    assert len(selection.rejected) == 0 and selection.threshold is None
    assert selection.explanation.startswith("Do not filter: no fraction")
    assert found.summary()["kept_fraction"] == 1 and found.summary()["gain_over_random_angstrom"] == 0


def test_a_measure_that_tells_nothing_rejects_nothing(make_set):
    particles, _ = make_set(0.2)
    selection, found = chosen_by_map(particles, scores(np.zeros(N, dtype=bool)))
    assert len(selection.rejected) == 0
    for level in found.levels[1:]:
        assert abs(level.half_map_information - level.random_information) < 5 * level.random_information_deviation


def test_images_too_noisy_to_tell_are_left_alone_and_the_sentence_says_so(make_set):
    particles, is_junk = make_set(0.2, snr=0.01)
    selection, found = chosen_by_map(particles, scores(is_junk))
    assert len(selection.rejected) == 0 and "so noisy" in selection.explanation
    assert found.discount > 0.6


def test_poses_that_were_not_matched_need_no_discount(make_set):
    particles, is_junk = make_set(0.2)
    _, found = chosen_by_map(particles, scores(is_junk), is_matched=False)
    assert found.discount == 0
    assert all(level.information == pytest.approx(level.half_map_information) for level in found.levels)


def test_levels_hold_what_the_populations_suggest_and_random_sets_lose_information_evenly(make_set):
    particles, is_junk = make_set(0.2)
    measures = scores(is_junk)
    _, found = chosen_by_map(particles, measures)
    counts = [level.n_kept for level in found.levels]
    assert counts == sorted(counts, reverse=True) and counts[0] == N and counts[-1] == N // 2
    assert len(select(measures).kept) in counts
    random = [level.random_information for level in found.levels]
    assert random == sorted(random, reverse=True)
    assert found.all.random_information_deviation == 0


def test_parts_add_up_to_the_whole(make_set):
    particles, _ = make_set(0.0)
    images = ImagePreparation.checked(particles, ImageInputConfig(contrast="bright", ctf_state="raw"), CPU)
    maker = HalfMapMaker(particles, images, symmetry_group("c1", torch.float32), 0)
    with Progress(2 * N, "test") as progress:
        whole = maker.sums(np.arange(N), progress)
        parts = [maker.sums(rows, progress) for rows in np.array_split(np.random.default_rng(0).permutation(N), 3)]
    together = tuple(sum(part[half] for part in parts) for half in (0, 1))
    assert maker.quality(together).fsc == pytest.approx(maker.quality(whole).fsc, abs=1e-4)
    assert maker.quality(whole).information > maker.quality(parts[0]).information > 0


def test_symmetry_counts_an_image_once(make_set):
    """An image at all equivalent poses makes the map better, but there is no more in it than before."""
    particles, _ = make_set(0.0)
    images = ImagePreparation.checked(particles, ImageInputConfig(contrast="bright", ctf_state="raw"), CPU)
    explained = {}
    for name in ("c1", "c4"):
        maker = HalfMapMaker(particles, images, symmetry_group(name, torch.float32), 0)
        with Progress(N, "test") as progress:
            explained[name] = maker.explained_power(maker.quality(maker.sums(np.arange(N), progress)), N)
    # of a molecule without symmetry, the average over four turns keeps less than all of the power
    assert 0.1 * explained["c1"] < explained["c4"] < explained["c1"]


def test_too_few_particles_and_strangers_are_refused(make_set):
    particles, is_junk = make_set(0.0)
    few = particles.subset(np.arange(100))
    measures = {"match-score": scores(is_junk)["match-score"][:100]}
    with pytest.raises(InputError, match="at least 160 particles.*there are 100"):
        ranked_rows(select(measures), measures, few.particle_id, few)
    measures = scores(is_junk)
    with pytest.raises(InputError, match="must be of the same particles"):
        ranked_rows(select(measures), measures, particles.particle_id + 1, particles)


# -- the command

def run_of_predict(path, particles, measures) -> RunDirectory:
    """A run as predict leaves it; ids in an order of their own."""
    path.mkdir()
    run = RunDirectory(path)
    run.config.write_text(json.dumps({"job": "predict", "contrast": "bright", "ctf_state": "raw",
                                      "pixel_size_angstrom": None, "refinement": "adaptive"}))
    particles.save(run.particles)
    order = np.random.default_rng(2).permutation(len(particles))
    score = measures["match-score"]
    np.savez(run.orientation_posterior, particle_id=particles.particle_id[order], match_score=score[order],
             expected_error_deg=np.exp(-score)[order], eigenvalues=np.tile([0.0, 9, 10, 11], (len(particles), 1)))
    run.write_summary({"job": "predict", "symmetry": "c1", "refinement": "adaptive"})
    return run


def command(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_select_auto_writes_the_levels_the_reasons_and_the_page(make_set, tmp_path):
    particles, is_junk = make_set(0.2)
    predicted = run_of_predict(tmp_path / "predict", particles, scores(is_junk))
    assert command("select", "--auto", "--out", tmp_path / "kept", "--run", predicted.path) == 0
    run = RunDirectory(tmp_path / "kept")
    summary = run.read_summary()
    kept, rejected = ParticleTable.read(run.selected), ParticleTable.read(run.rejected)
    assert summary["n_selected"] == len(kept)
    assert summary["n_rejected"] == len(rejected) == sum(summary["reasons"].values())
    assert (rejected.strings(JUNK_KIND_COLUMN) != "none").sum() >= 0.9 * is_junk.sum()
    assert rejected.strings(REASON_COLUMN)[0].startswith("match-score=")
    with open(run.auto_selection, newline="") as file:
        levels = list(csv.DictReader(file))
    chosen, = (level for level in levels if level["chosen"] == "1")
    assert int(chosen["n_kept"]) == len(kept)
    auto = summary["auto"]
    assert auto["kept_fraction"] == pytest.approx(len(kept) / N)
    assert auto["gain_over_random_angstrom"] == pytest.approx(
        auto["resolution_random_angstrom"] - auto["resolution_kept_angstrom"])
    assert auto["gain_over_random_deviation_angstrom"] > 0
    page = run.report.read_text()
    assert "Information in the map" in page and "better than removing as many at random" in page


def test_select_without_auto_needs_no_images(make_set, tmp_path):
    particles, is_junk = make_set(0.2)
    predicted = run_of_predict(tmp_path / "predict", particles, scores(is_junk))
    table = ParticleTable.read(predicted.particles)
    table.with_columns({"rlnImageName": [f"{i + 1:06d}@gone.mrcs" for i in range(N)]}).write(predicted.particles)
    assert command("select", "--out", tmp_path / "kept", "--run", predicted.path) == 0
    assert not RunDirectory(tmp_path / "kept").auto_selection.exists()
    assert "auto" not in RunDirectory(tmp_path / "kept").read_summary()


@pytest.mark.parametrize("missing", ["images", "poses"])
def test_select_auto_refuses_runs_without_images_or_poses(make_set, tmp_path, capsys, missing):
    particles, is_junk = make_set(0.2)
    predicted = run_of_predict(tmp_path / "predict", particles, scores(is_junk))
    table = ParticleTable.read(predicted.particles)
    if missing == "images":
        table.with_columns({"rlnImageName": [f"{i + 1:06d}@gone.mrcs" for i in range(N)]}).write(predicted.particles)
    else:
        columns = {name: table.strings(name) for name in table.names if "Angle" not in name or "Defocus" in name}
        ParticleTable.from_columns(columns, {name: table.strings(name)[:1] for name in (
            "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize")}
            | {"rlnOpticsGroup": ["1"]}).write(predicted.particles)
    assert command("select", "--auto", "--out", tmp_path / "kept", "--run", predicted.path) == 2
    error = capsys.readouterr().err
    assert ("gone.mrcs" if missing == "images" else "rlnAngleRot") in error and "Traceback" not in error
    assert not (tmp_path / "kept").exists()
