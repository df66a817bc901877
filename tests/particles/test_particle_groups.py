"""Particles by micrograph, and samples that are even over micrographs."""

import numpy as np
import pytest

from cryoforum_core.particles.particle_groups import ParticleGroups
from cryoforum_core.particles.table import ParticleTable


def table_of(**columns):
    n = len(next(iter(columns.values())))
    return ParticleTable.from_columns({"rlnImageName": [f"{i + 1}@a.mrcs" for i in range(n)], **columns})


@pytest.mark.parametrize("columns, names, of_particle", [
    ({"rlnMicrographName": ["b.mrc", "a.mrc", "b.mrc"], "rlnOpticsGroup": [1, 1, 2]}, ("b.mrc", "a.mrc"), [0, 1, 0]),
    ({"rlnOpticsGroup": [2, 2, 1]}, ("optics group 2", "optics group 1"), [0, 0, 1]),
    ({"labNote": ["x", "y", "z"]}, ("all particles",), [0, 0, 0])], ids=["micrographs", "optics groups", "neither"])
def test_groups_are_micrographs_in_the_order_of_the_table_or_optics_groups(columns, names, of_particle):
    groups = ParticleGroups.of(table_of(**columns))
    assert groups.names == names and groups.of_particle.tolist() == of_particle and len(groups) == len(names)


@pytest.mark.parametrize("of_each, in_all, expected", [(64, 10_000, [64, 5, 64, 1]), (3, 10_000, [3, 3, 3, 1]),
                                                       (64, 16, [6, 4, 5, 1]), (64, 3, [1, 1, 1, 0])])
def test_a_sample_takes_as_many_from_each_group_as_there_are(of_each, in_all, expected):
    group = np.repeat(np.arange(4), [200, 5, 90, 1])[np.random.default_rng(0).permutation(296)]
    rows = ParticleGroups(("a", "b", "c", "d"), group).sample(of_each, in_all, seed=1)
    counts = np.bincount(group[rows], minlength=4)
    assert (np.diff(rows) > 0).all() and counts.sum() == sum(expected)
    # which of the groups has one more is by chance of their order
    assert np.abs(counts - expected).max() <= (1 if in_all < 100 else 0)
