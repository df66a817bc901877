"""Whether the point group is imposed on a map found in c1, or from the start."""

import pytest
import torch

from cryoforum_core.ab_initio.random_starts import SearchResult
from cryoforum_core.ab_initio.symmetry_choice import FROM_THE_START, IMPOSED, SymmetryChoice, choose, suffices, symmetrised
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.imaging.symmetry_frame import symmetry_score


def result(evidence: float, explained: float = 0.9, structure: float = 5.0) -> SearchResult:
    """400 held-out images whose log-evidence scatters by 1 nat, the same for all results."""
    scatter = torch.randn(400, generator=torch.Generator().manual_seed(0))
    own = 0.5 * torch.randn(400, generator=torch.Generator().manual_seed(round(1000 * evidence)))
    values = evidence + scatter + own - own.mean() - scatter.mean()
    return SearchResult(0, torch.zeros(4, 4, 4), evidence, structure, 0.1, explained, torch.zeros(400, 4), values)


@pytest.mark.parametrize("found, score, is_enough", [
    (result(9.0), 0.85, True), (result(9.0), 0.6, False), (result(9.0, explained=0.3), 0.85, False),
    (result(9.0, structure=0.2), 0.85, False)])
def test_a_map_found_in_c1_is_enough_if_images_confirm_it_and_it_clearly_has_the_symmetry(found, score, is_enough):
    assert suffices(found, score) is is_enough


@pytest.mark.parametrize("in_c1, imposed, symmetric, used", [
    (9.0, None, 12.0, FROM_THE_START),
    (9.0, 11.0, 12.0, FROM_THE_START),
    (9.0, None, 8.0, IMPOSED),  # a wrong group: c1 explains the images better
    (9.0, None, 9.05, IMPOSED),  # within the standard error
    (9.0, 13.0, 12.0, IMPOSED),
])
def test_held_out_images_choose(in_c1, imposed, symmetric, used):
    choice = choose(0.3, result(in_c1), None if imposed is None else result(imposed), result(symmetric))
    assert choice.used == used and choice.is_from_the_start is (used == FROM_THE_START)
    assert choice.gain == pytest.approx(symmetric - max(in_c1, imposed or 0.0), abs=1e-4)
    # of the differences: what all maps have in common cancels
    assert choice.gain_error < 0.05
    assert used in choice.sentence() and f"{choice.gain:+.2f}" in choice.sentence()
    assert choice.summary()["sentence"] == choice.sentence()


def test_without_searches_under_the_group_the_evidence_is_that_of_c1():
    sentence = SymmetryChoice(IMPOSED, 0.81, 0.92).sentence()
    assert sentence == ("The symmetry was searched in c1, then imposed: the map found in c1 correlates by 0.81 with its "
                        "symmetrised copy and explains 92% of the fine details of held-out images.")


def test_what_the_background_hides_is_not_called_unexplained():
    choice = choose(0.16, result(9.0, explained=float("nan")), None, result(12.0))
    assert choice.summary()["c1_explained_fraction"] is None and "an unknown part of the fine details" in choice.sentence()


def test_a_symmetrised_map_has_the_symmetry():
    group = symmetry_group("d3")
    axis = torch.arange(32) - 16.0
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    blob = torch.exp(-((x - 6)**2 + (y - 3)**2 + (z - 2)**2) / 4)
    assert symmetry_score(FourierVolume.from_real(blob), group) < 0.2
    assert symmetry_score(FourierVolume.from_real(symmetrised(blob, group)), group) > 0.95
