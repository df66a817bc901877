"""Commands and numbers as pages show them."""

import shlex
from pathlib import Path

import pytest

from cryoforum_core.cli import parse
from cryoforum_core.report.page import beside, command, degrees, duration, level_of, percent, significant


def test_a_command_is_accepted_by_the_command_line(tmp_path):
    text = command("predict", particles=tmp_path / "my set.star", model=Path("network"), reference=None, calibrate=False)
    assert "--reference" not in text and "--no-calibrate" in text
    config = parse([*shlex.split(text.replace("\\\n", ""))[1:], "--out", "x"])
    assert config.particles == tmp_path / "my set.star" and config.model == Path.cwd() / "network"
    assert config.calibrate is False


def test_lists_are_options_with_several_values_and_long_commands_take_a_line_per_option():
    text = command("select", reasons=["off-centre", "not-a-particle"], run="r" * 60, out="o" * 60)
    assert "--reasons off-centre not-a-particle" in text and text.count(" \\\n") == 3
    assert "\n" not in command("select", run="r")


@pytest.mark.parametrize("value, text", [(0, "0"), (0.01234, "0.0123"), (1.234, "1.23"), (123.4, "123"), (12345.0, "12,300"),
                                         (-0.5, "-0.500"), (float("nan"), "-"), (float("inf"), "-")])
def test_three_significant_digits(value, text):
    assert significant(value) == text and degrees(value) == text + "°"


@pytest.mark.parametrize("fraction, text", [(0.85, "85 %"), (1.0, "100 %"), (0.0421, "4.2 %"), (0.0, "0 %")])
def test_percent(fraction, text):
    assert percent(fraction) == text


@pytest.mark.parametrize("seconds, text", [(45, "45 s"), (720, "12 min"), (12600, "3.5 h")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_levels_and_values_that_are_no_numbers():
    assert [level_of(value, 3.0, 10.0) for value in (3.0, 3.1, 10.0, 11.0, float("nan"))] == [
        "good", "caution", "caution", "poor", "poor"]


def test_the_next_run_lies_beside_this_one():
    assert beside(Path("/data/run"), "select") == Path("/data/run_select")
