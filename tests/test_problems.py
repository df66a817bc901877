"""Problems of an input: all of them are told at once, each of them once."""

import pytest

from cryoforum_core.errors import InputError
from cryoforum_core.problems import Problems


def refuse(*problems):
    raise InputError(problems)


def test_a_block_raises_all_problems_in_order_and_each_once():
    with pytest.raises(InputError) as caught, Problems() as problems:
        assert problems.attempt(refuse, "b", "a") is None
        assert problems.attempt(max, 1, 2) == 2
        problems.append("c")
        problems.extend(["a", "d"])
    assert caught.value.problems == ["b", "a", "c", "d"]


def test_a_block_without_problems_ends_quietly():
    with Problems() as problems:
        problems.extend([])
    problems.raise_if_any()


def test_what_follows_can_ask_for_everything_so_far():
    problems = Problems()
    problems.append("a")
    with pytest.raises(InputError, match="a"):
        problems.raise_if_any()


def test_an_error_of_the_program_is_not_hidden_by_problems():
    with pytest.raises(ZeroDivisionError), Problems() as problems:
        problems.append("a")
        problems.attempt(divmod, 1, 0)
