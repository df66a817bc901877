import numpy as np

from cryoforum_core.geometry.even_directions import even_directions
from cryoforum_core.geometry.rotations import quaternion_to_matrix
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.junk.view_cones import N_CONES, protected_best, quotas, shares, view_cones

IDENTITY = np.eye(3)[None]


def test_each_axis_lies_in_its_own_cone():
    assert view_cones(even_directions(N_CONES), IDENTITY).tolist() == list(range(N_CONES))


def test_equivalent_viewing_directions_share_a_cone():
    group = quaternion_to_matrix(symmetry_group("d2")).double().numpy()
    directions = np.random.default_rng(0).normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cone = view_cones(directions, group)
    assert len(set(cone)) <= N_CONES / 2
    for matrix in group:
        assert (view_cones(directions @ matrix, group) == cone).all()


def test_many_directions_are_taken_in_parts():
    directions = np.tile(even_directions(N_CONES), (200, 1))
    assert (view_cones(directions, IDENTITY) == np.tile(np.arange(N_CONES), 200)).all()


def test_a_rare_viewing_direction_of_poor_quality_keeps_its_share():
    """20 particles of view 0 are all worse than the 80 of view 1; half of all are kept, so half of each view."""
    cone = np.repeat([0, 1], [20, 80])
    quality, is_junk = np.arange(100.0), np.zeros(100, dtype=bool)
    kept = protected_best(quality, cone, is_junk, 50)
    assert quotas(cone, is_junk, 50)[:2].tolist() == [10, 40]
    assert np.flatnonzero(kept).tolist() == [*range(10, 20), *range(60, 100)]


def test_junk_has_no_share():
    cone, quality = np.repeat([0, 1], [20, 80]), np.arange(100.0)
    is_junk = cone == 0
    kept = protected_best(quality, cone, is_junk, 50)
    assert kept.sum() == 50 and not kept[is_junk].any()


def test_shares_are_percent_of_the_set_and_of_the_cone():
    cone = np.array([0, 0, 0, 1])
    found = shares(cone, is_kept=np.array([True, False, False, True]), is_junk=np.array([False, True, False, False]))
    assert found["before"][:2] == [75.0, 25.0] and found["after"][:2] == [50.0, 50.0]
    assert found["junk"][:2] == [33.333, 0.0] and sum(found["before"]) == 100
