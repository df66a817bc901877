"""Two states by classification without alignment, and whether held-out images confirm them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_core.imaging.fourier import low_pass_volume
from cryoforum_core.states.two_states import STATES_RADIUS_PX, find_two_states, probability_of_minor

from .conftest import N


def found_in(mixture):
    posed = mixture.posed(np.arange(N))
    return posed, find_two_states(posed, torch.from_numpy(mixture.half), mixture.model.map_power)


@pytest.fixture(scope="module")
def found(two):
    return found_in(two)


def minor_probability(mixture, posed, states):
    """Of each particle, at the pose at which it is highest, by what the other half found."""
    probability = torch.zeros(N)
    for number, corrections in enumerate(states.halves):
        others = torch.from_numpy(mixture.half != number)
        probability[others] = probability_of_minor(posed[others], corrections).amax(0)
    return probability.numpy()


def test_two_states_are_found_with_their_share(two, found):
    states = found[1]
    assert states.is_found
    assert states.minor_share == pytest.approx(two.is_minor.mean(), abs=0.03)
    assert min(states.gain) > 10 * max(states.gain_error)


def test_particles_are_divided_by_what_the_other_half_found(two, found):
    probability = minor_probability(two, *found)
    assert np.mean((probability >= 0.5) == two.is_minor) > 0.95


def test_the_difference_is_that_of_the_maps(two, found):
    """Of the right size, too: it is not shrunk. Its amplitude in the images is that of the model."""
    true = low_pass_volume(two.lacking - two.images.volume, STATES_RADIUS_PX)
    for half in (None, 0, 1):
        difference = found[1].correction(2, len(true), half) - found[1].correction(1, len(true), half)
        slope = float((difference * true).sum() / true.square().sum())
        correlation = float(torch.corrcoef(torch.stack([difference.flatten(), true.flatten()]))[0, 1])
        assert correlation > 0.8 and 0.7 < slope < 1.2


def test_no_second_state_is_found_where_there_is_none(alike):
    states = found_in(alike)[1]
    assert not states.is_found
    assert max(states.gain) < 0


def test_one_subunit_of_two_may_differ(symmetric):
    """The particles' poses are any of the equivalent ones; the state is found at the right one."""
    posed, states = found_in(symmetric)
    assert states.is_found
    probability = minor_probability(symmetric, posed, states)
    assert np.mean((probability >= 0.5) == symmetric.is_minor) > 0.9


def test_images_that_do_not_vary_show_no_states(two):
    posed = two.posed(np.arange(N))
    explained = replace(posed, data=posed.reference)
    assert find_two_states(explained, torch.from_numpy(two.half), two.model.map_power) is None


def test_too_few_images_show_no_states(two):
    rows = np.arange(150)
    assert find_two_states(two.posed(rows), torch.from_numpy(two.half[rows]), two.model.map_power) is None
