"""How well the map of one half set explains the images of the other."""

import math
from dataclasses import replace

import pytest
import torch

from cryoforum_core.ab_initio.explained_fraction import explained_fraction, signal_is_measurable
from cryoforum_core.ab_initio.rounds import Refinement, global_round, local_round, reconstruct
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.fourier import low_pass_volume
from cryoforum_core.mrc import read_map

from .hybrid_runs import BOX


def test_half_maps_of_a_wrong_start_do_not_explain_the_images(half_sets, poses, clean_data):
    """Both half sets refined from a map that is none of the molecule's: what they agree in afterwards is of the start."""
    spectrum, first_px = half_sets.background_spectrum, 4.0
    refined = reconstruct(half_sets, poses, spectrum, 12.0)
    for _ in range(2):
        refined = local_round(half_sets, Refinement(refined.poses, refined.pair.without_solvent()), 12.0)
    right = explained_fraction(half_sets, refined, first_px)
    assert 0.75 < right < 1.3
    known = torch.from_numpy(read_map(clean_data.map)[0])
    lumps = low_pass_volume(known[:, torch.randperm(BOX, generator=torch.Generator().manual_seed(1))], first_px)
    start = refined.pair.reference[0].std() / lumps.std() * lumps
    wrong = global_round(half_sets, (start, start), spectrum, 8.0, 15.0, 7.0)
    for _ in range(2):
        wrong = local_round(half_sets, wrong, 12.0)
    assert (wrong.pair.fsc[int(first_px) + 1:] > 0.3).any()
    assert explained_fraction(half_sets, wrong, first_px) < 0.75 * right


def test_half_maps_that_agree_in_no_shell_beyond_the_start_say_nothing(half_sets, poses):
    pair = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0).pair
    nowhere = replace(pair, fsc=(torch.arange(len(pair.fsc)) < 4).float())
    assert math.isnan(explained_fraction(half_sets, Refinement(poses, nowhere), 6.0))


@pytest.mark.parametrize("shell_with_less, is_measurable", [(9, False), (1, True), (None, True)])
def test_signal_is_not_measured_against_a_background_that_holds_more_power_than_the_images(shell_with_less, is_measurable):
    """Excess of 0.1 beyond shell 8; neighbours in the background of real apoferritin make shell 9 fall short by 0.2."""
    excess, count = torch.full((16,), 0.1), torch.arange(16.0)
    if shell_with_less is not None:
        excess[shell_with_less] = -0.2
    assert signal_is_measurable(excess, count, 8) is is_measurable


def test_with_a_group_nothing_is_said_where_the_background_hides_the_signal(half_sets, poses):
    """The noise of the background taken as 51 times what it is in one shell; in c1 the figure stays."""
    refined = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0)
    shells = torch.arange(len(half_sets.background_spectrum))
    hidden = replace(half_sets, background_spectrum=half_sets.background_spectrum * (1 + 50.0 * (shells == 7)))
    assert math.isfinite(explained_fraction(hidden, refined, 4.0))
    symmetric = {"group": symmetry_group("c2")}
    assert math.isnan(explained_fraction(replace(hidden, **symmetric), refined, 4.0))
    assert math.isfinite(explained_fraction(replace(half_sets, **symmetric), refined, 4.0))
