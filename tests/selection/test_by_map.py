"""Selection by the map: simulated sets whose answer is known, with true poses and scores as matching makes them."""

import numpy as np
import pytest
import torch

from cryoforum_core.config import ImageInputConfig
from cryoforum_core.errors import InputError
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.reconstruction.map_quality import HalfMapMaker
from cryoforum_core.selection.by_map import MapSelectionSetup, ranked_rows, select_by_map
from cryoforum_core.selection.selection import select

from .conftest import N
from .scored_runs import scores

CPU = torch.device("cpu")


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


def test_too_few_particles_and_particles_of_another_table_are_refused(make_set):
    particles, is_junk = make_set(0.0)
    few = particles.subset(np.arange(100))
    measures = {"match-score": scores(is_junk)["match-score"][:100]}
    with pytest.raises(InputError, match="at least 160 particles.*there are 100"):
        ranked_rows(select(measures), measures, few.particle_id, few)
    measures = scores(is_junk)
    with pytest.raises(InputError, match="must be of the same particles"):
        ranked_rows(select(measures), measures, particles.particle_id + 1, particles)
