"""The configurations: what a value may be, and what follows from it."""

import json

import pytest
from pydantic import ValidationError

from cryoforum_core import config

JOBS = [kind for kind in vars(config).values()
        if isinstance(kind, type) and issubclass(kind, config.JobConfig) and kind is not config.JobConfig]


@pytest.mark.parametrize("kind", JOBS)
def test_every_option_is_described(kind):
    """The descriptions are the help of the command line."""
    assert not [name for name, field in kind.model_fields.items() if name != "job" and not field.description]


def test_each_job_has_a_name_of_its_own():
    names = [kind.model_fields["job"].default for kind in JOBS]
    assert len(names) >= 10 and len(set(names)) == len(names)


def test_a_configuration_cannot_be_changed(tmp_path):
    simulation = config.SimulateConfig(out=tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        simulation.snr = 2.0


def test_unknown_options_are_refused(tmp_path):
    with pytest.raises(ValidationError, match="n_particle"):
        config.SimulateConfig(out=tmp_path, n_particle=10)


@pytest.mark.parametrize("option, value", [("snr", 0.0), ("n_particles", 0), ("junk_fraction", 1.0), ("junk_kinds", ("dust",)),
                                           ("amplitude_contrast", 1.5), ("ctf", "wide")])
def test_values_beyond_their_limits_are_refused(tmp_path, option, value):
    with pytest.raises(ValidationError, match=option):
        config.SimulateConfig(out=tmp_path, **{option: value})


def test_smallest_defocus_must_not_be_above_the_largest(tmp_path):
    with pytest.raises(ValidationError, match="smallest defocus"):
        config.SimulateConfig(out=tmp_path, defocus_min_angstrom=20000, defocus_max_angstrom=10000)


def test_configuration_survives_its_file(tmp_path):
    """config.json of a run."""
    before = config.SimulateConfig(out=tmp_path, snr=0.5, junk_kinds=("noise", "blank"), seed=4)
    text = before.model_dump_json()
    assert config.SimulateConfig.model_validate_json(text) == before
    assert json.loads(text)["junk_kinds"] == ["noise", "blank"]
