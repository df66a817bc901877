"""When a run of either method has converged, and what is said where it has not."""

from dataclasses import replace

import pytest
import torch

from cryoforum_core.ab_initio.convergence import EndToEndAssessment, HybridAssessment, max_projection_error_deg
from cryoforum_core.ab_initio.stages.search import SearchOutcome
from cryoforum_core.model.network import NetworkConfig, OrientationNetwork

BOX, PIXEL = 16, 6.0
SEARCH = SearchOutcome(torch.zeros(4, 4, 4), True, 5.0, 0.1, [{}], None, None, "undetermined")
CONVERGED = HybridAssessment(SEARCH, 0.9, 0.95, 14.0, 9.5, 200.0, "d2")


def _search(**changed):
    return {"search": replace(SEARCH, **changed)}


@pytest.mark.parametrize("changed, says", [
    (_search(found_structure=False), "had not seen fit its map no better than the map's spherical average"),
    ({"resolution_radius_px": 9.0}, "only to 22.2 A, hardly beyond their common start (25 A)"),
    ({"explained_fraction": 0.3}, "only 30% of the expected power"),
    ({"explained_fraction": -0.2}, "only 0% of the expected power"),
    ({"sampled_fraction": 0.4}, "40% of Fourier space"),
    ({"last_recovered_fraction": 0.58}, "still moved 58% of the particles"),
    (_search(symmetry_score=0.0), "does not have the symmetry d2"),
    (_search(starts=[{}, {}, {}], agreement_deg=30.0), "differ by 30 degrees or more"),
    ({"expected_error_deg": 37.3} | _search(starts=[{}, {}], agreement_deg=81.0), "No second random start found this map"),
    ({"expected_error_deg": 37.3}, "median expected error 37 degrees"),
    ({"explained_fraction": float("nan")}, "Run again with more --seeds"),
    ({"explained_fraction": float("nan")} | _search(starts=[{}, {}], agreement_deg=94.0), "Nothing confirms the map: no second start found it"),
])
def test_each_problem_of_a_hybrid_run_has_its_reason(changed, says):
    converged, reason = replace(CONVERGED, **changed).convergence()
    assert not converged and says in reason


@pytest.mark.parametrize("changed", [
    {}, {"last_recovered_fraction": 0.05}, _search(symmetry_score=0.9),
    {"expected_error_deg": 5.0} | _search(starts=[{}, {}], agreement_deg=90.0),
    {"expected_error_deg": 25.0} | _search(starts=[{}, {}], agreement_deg=5.0),
    {"explained_fraction": float("nan")} | _search(starts=[{}, {}], agreement_deg=7.0),
])
def test_a_hybrid_run_without_problems_converges(changed):
    converged, reason = replace(CONVERGED, **changed).convergence()
    assert converged and "agree to 14.3 A, beyond the 25 A of their common start" in reason


def test_every_reason_against_the_map_is_given():
    assessment = replace(CONVERGED, sampled_fraction=0.1, explained_fraction=0.1)
    assert "wrong map" in assessment.convergence()[1] and "too few sides" in assessment.convergence()[1]


@pytest.mark.parametrize("loss, of_noise, deviations, rotation_error_deg, projection_error_deg, shells, converged, says", [
    (0.12, 0.10, 50.0, 9.0, 30.0, 7.0, True, "95 %"),
    (0.40, 0.10, 50.0, 9.0, 30.0, 7.0, False, "25 %"),
    (0.30, 0.10, None, None, None, 7.0, False, "50 %"),
    (0.12, 0.10, 1.0, 9.0, 30.0, 7.0, False, "no better than they explain noise"),
    (0.12, 0.10, 50.0, 60.0, 30.0, 7.0, False, "disagree by 60 degrees"),
    (0.12, 0.10, 50.0, 5.0, 130.0, 7.0, False, "off by 130 degrees"),
    (0.12, 0.10, 50.0, 9.0, None, 7.0, True, "95 %"),
    (0.12, 0.10, 50.0, 9.0, 30.0, 2.0, False, "only to 2.0 Fourier shells"),
    (0.12, 0.10, None, None, None, 7.0, True, "95 %"),
    (0.495, 0.49, 50.0, 9.0, 30.0, 7.0, False, "no orientation-dependent signal"),
])
def test_held_out_images_say_whether_end_to_end_converged(loss, of_noise, deviations, rotation_error_deg,
                                                         projection_error_deg, shells, converged, says):
    found, reason = EndToEndAssessment(loss, 0.5, of_noise, deviations, rotation_error_deg, projection_error_deg,
                                       shells).convergence()
    assert found is converged and says in reason


@pytest.mark.parametrize("encoder, projection_error_deg, converged", [
    ("polar", 12.0, True), ("polar", 18.0, False), ("compact", 30.0, True), ("compact", 70.0, False)])
def test_an_equivariant_encoder_must_find_projections(encoder, projection_error_deg, converged):
    limit = max_projection_error_deg(OrientationNetwork(NetworkConfig(BOX, PIXEL, encoder, width=4)).is_equivariant)
    assert EndToEndAssessment(0.12, 0.5, 0.10, 50.0, 0.0, projection_error_deg, 7.0, limit).convergence()[0] is converged
