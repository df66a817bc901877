"""The options of simulate --like session: limits, the defaults that depend on --like, and the command line."""

import pytest
from pydantic import ValidationError

from cryoforum_core import catalogue
from cryoforum_core.cli import parse
from cryoforum_core.config import SimulateConfig
from cryoforum_core.errors import InputError
from cryoforum_core.session_config import DEFAULTS_LIKE, SessionConfig


def test_defaults_depend_on_the_scenario(tmp_path):
    clean, session = SimulateConfig(out=tmp_path), SimulateConfig(out=tmp_path, like="session")
    assert (clean.snr, clean.ctf, clean.junk_fraction, clean.junk_kinds) == (0.1, "box", 0.0, catalogue.JUNK_KINDS)
    assert (session.snr, session.ctf, session.junk_fraction) == (None, "padded", 0.1)
    assert session.junk_kinds == catalogue.SESSION_JUNK_KINDS and session.preferred_view_fraction == 0.5
    assert set(DEFAULTS_LIKE) == {"clean", "session"}


def test_options_that_are_given_are_kept(tmp_path):
    options = {"snr": 0.3, "ctf": "box", "junk_kinds": ("ice",), "preferred_view_fraction": 0.0}
    given = SimulateConfig(out=tmp_path, like="session", **options)
    assert {name: getattr(given, name) for name in options} == options


@pytest.mark.parametrize("like", DEFAULTS_LIKE)
def test_configuration_survives_its_file(tmp_path, like):
    """config.json of a run, without SNR in a session."""
    before = SimulateConfig(out=tmp_path, like=like)
    assert SimulateConfig.model_validate_json(before.model_dump_json()) == before


@pytest.mark.parametrize("option, value", [
    ("micrographs", 0), ("voltages_kv", ()), ("voltages_kv", (300.0, 3.0)), ("noise_spread", 1.5), ("noise_colour", -1.0),
    ("b_factor_max", -1.0), ("defocus_spread_angstrom", -1.0), ("contrast_spread", 0.9), ("gradient", -1.0),
    ("neighbours", 1.1), ("minor_state", -0.1), ("domain", 0.0), ("domain", 0.6), ("ice_density", 1.0)])
def test_values_beyond_their_limits_are_refused(option, value):
    with pytest.raises(ValidationError, match=option):
        SessionConfig(**{option: value})


def test_flags_of_the_group_become_the_configuration():
    found = parse(["simulate", "--out", "run", "--like", "session", "--session.neighbours", "0", "--session.voltages-kv",
                   "300", "--session.micrographs", "12"])
    assert found == SimulateConfig(out="run", like="session",
                                   session=SessionConfig(neighbours=0.0, voltages_kv=(300.0,), micrographs=12))


@pytest.mark.parametrize("arguments, problem", [
    (["--session.noise-spread", "-1"], "--session.noise-spread must be greater than or equal to 0; it is -1.0."),
    (["--session.voltages-kv", "20"],
     "--session.voltages-kv must be one or more voltages from 50 to 1500 kV; it is (20.0,)."),
    (["--like", "session", "--noise", "coloured"],
     "--like session has noise of its own; give --session.noise-colour instead of --noise."),
    (["--like", "session", "--voltage-kv", "200"],
     "--like session has optics groups; give --session.voltages-kv instead of --voltage-kv."),
    (["--session.gradient", "2"], "Options --session.* need --like session.")])
def test_what_does_not_fit_is_refused_in_a_sentence(arguments, problem):
    with pytest.raises(InputError) as caught:
        parse(["simulate", "--out", "x", *arguments])
    assert caught.value.problems == [problem]
