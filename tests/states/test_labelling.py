"""The state of each particle of a set."""

import numpy as np
import pytest

from cryoforum_core.states import labelling
from cryoforum_core.states.labelling import find_states

from .conftest import N


@pytest.fixture(scope="module")
def states(two):
    """Of all but the first ten images, which are taken to be junk."""
    rows = np.arange(10, N)
    return find_states(two.posed, rows, two.half[rows], two.model.map_power, two.group, seed=0)


def test_junk_has_no_state(two, states):
    labels = states.labels(N)
    assert (labels.state[:10] == 0).all() and (labels.minor_state_probability[:10] == 0).all()
    assert set(labels.state[10:]) == {1, 2}
    assert np.mean((labels.state[10:] == 2) == two.is_minor[10:]) > 0.95
    assert ((labels.minor_state_probability >= 0.5) == (labels.state == 2)).all()


def test_the_summary_gives_share_and_evidence(two, states):
    summary = states.summary()
    assert summary["minor_state_fraction"] == pytest.approx(two.is_minor[10:].mean(), abs=0.03)
    ratios = [gain / error for gain, error in zip(states.found.gain, states.found.gain_error, strict=True)]
    # of the half that confirms them less
    assert summary["minor_state_gain"] / summary["minor_state_gain_error"] == pytest.approx(min(ratios)) and min(ratios) > 10


def test_a_part_of_a_large_set_shows_the_states_of_all(two, states, monkeypatch):
    monkeypatch.setattr(labelling, "MAX_POSES", N // 2)
    rows = np.arange(N)
    of_part = find_states(two.posed, rows, two.half, two.model.map_power, two.group, seed=0)
    assert of_part.is_found and len(of_part.minor_probability) == N
    assert np.mean((of_part.minor_probability >= 0.5) == two.is_minor) > 0.93


def test_no_labels_without_a_second_state(alike, caplog):
    rows = np.arange(N)
    with caplog.at_level("INFO", logger="cryoforum"):
        states = find_states(alike.posed, rows, alike.half, alike.model.map_power, alike.group, seed=0)
    assert not states.is_found and states.summary()["minor_state_fraction"] is None
    assert "No second state found" in caplog.text
