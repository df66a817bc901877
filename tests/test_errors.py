import pytest

import cryoforum_core as cf
from cryoforum_core.errors import InputError, Interrupted, NotConverged


def test_input_error_keeps_each_problem_and_shows_all():
    error = InputError(problem for problem in ("The first.", "The second."))
    assert error.problems == ["The first.", "The second."]
    assert str(error) == "The first.\nThe second."


def test_one_problem_is_no_list_of_letters():
    assert InputError("The only one.").problems == ["The only one."]


@pytest.mark.parametrize("kind", [InputError, Interrupted, NotConverged])
def test_errors_are_part_of_the_package_and_apart_from_each_other(kind):
    assert getattr(cf, kind.__name__) is kind
    assert not any(issubclass(kind, other) for other in {InputError, Interrupted, NotConverged} - {kind})
