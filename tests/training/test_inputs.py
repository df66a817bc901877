"""What a training is given: read, brought to the particles' grid, and checked before anything is written."""

import dataclasses

import numpy as np
import pytest
import torch

from cryoforum_core.errors import InputError
from cryoforum_core.mrc import read_map, write_map
from cryoforum_core.training.inputs import check_inputs, check_network_box, read_reference
from cryoforum_core.training.supervised import plan_training

from .supervised_runs import KNOWN, config


def test_only_the_half_set_asked_for_is_used(tmp_path, particle_set, molecule):
    particles = particle_set(300, snr=2.0)
    plan = plan_training(config(tmp_path, half_set="2"), particles, state=KNOWN)
    assert plan.n_labelled == 135 and set(particles.half_set[plan.inputs.rows]) == {2}


def test_a_reference_on_another_grid_is_brought_to_the_particles(tmp_path, particle_set, molecule):
    volume, _ = read_map(molecule)
    padded = np.pad(volume, 6)
    write_map(tmp_path / "padded.mrc", padded, 6.0)
    plans = [plan_training(config(tmp_path, reference=path), particle_set(300, snr=2.0), state=KNOWN)
             for path in (molecule, tmp_path / "padded.mrc")]
    assert torch.allclose(plans[0].volume, plans[1].volume, atol=1e-4)


def test_all_problems_of_a_training_are_reported_at_once(tmp_path, particle_set, molecule):
    particles = particle_set(300, snr=2.0)
    settings = config(tmp_path, reference=tmp_path / "none.mrc", symmetry="c1x", network_box_size_px=33,
                      from_checkpoint=tmp_path / "nothing")
    with pytest.raises(InputError) as caught:
        plan_training(settings, particles, state=KNOWN)
    text = str(caught.value)
    assert len(caught.value.problems) >= 4
    assert all(word in text for word in ("none.mrc", "c1x", "--network-box-size-px", "nothing"))


@pytest.mark.parametrize("options, change, says", [
    ({}, {"poses": None}, "--reference"),
    ({"half_set": "1"}, {"half_set": None}, "rlnRandomSubset"),
    ({}, {"ctf": None}, "CTF"),
])
def test_particles_that_lack_something_are_refused(tmp_path, particle_set, options, change, says):
    particles = particle_set(300, snr=2.0)
    particles = dataclasses.replace(particles, **change)
    with pytest.raises(InputError, match=says):
        plan_training(config(tmp_path, **options), particles, state=KNOWN)


def test_too_few_labels_are_refused(tmp_path, particle_set):
    with pytest.raises(InputError, match="at least"):
        plan_training(config(tmp_path), particle_set(300, snr=2.0).subset(np.arange(10)), state=KNOWN)


def test_the_networks_box_is_that_of_the_particles_or_the_one_asked_for(tmp_path, particle_set, molecule):
    particles = particle_set(300, snr=2.0)
    for options, expected in (({}, 24), ({"network_box_size_px": 16}, 16)):
        inputs = check_inputs(config(tmp_path, reference=molecule, **options), particles, torch.device("cpu"))
        assert inputs.settings.box_size_px == inputs.network.box_size_px == expected
        assert inputs.settings.pixel_size_angstrom == pytest.approx(6.0 * 24 / expected)


@pytest.mark.parametrize("wanted_px, box_size_px, says", [
    (33, 64, "must be even"), (14, 64, "at least 16"), (80, 64, "at most that of the particles, 64"),
    (None, 12, "at least 16")])
def test_boxes_that_no_network_can_work_at_are_refused(wanted_px, box_size_px, says):
    with pytest.raises(InputError, match=says):
        check_network_box(wanted_px, box_size_px)
    check_network_box(16, 64)


def test_a_reference_without_contrast_is_refused(tmp_path, particle_set):
    write_map(tmp_path / "flat.mrc", np.full((24, 24, 24), 3.0), 6.0)
    with pytest.raises(InputError, match="one value in all voxels"):
        read_reference(tmp_path / "flat.mrc", particle_set(300, snr=2.0))
