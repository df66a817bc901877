"""What both methods of ab initio need: checked before anything is written, and the limits that follow from the options."""

import numpy as np
import pytest
import torch

from cryoforum_core import jobs
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.errors import InputError
from cryoforum_core.particles.dataset import load_particles

from .hybrid_runs import BOX


def test_all_problems_are_reported_before_anything_is_written(folder, data):
    few = folder / "few.star"
    load_particles(data.particles).subset(np.arange(50)).save(few)
    config = AbInitioConfig(out=folder / "bad", particles=few, symmetry="x9", device="cpu")
    with pytest.raises(InputError) as error:
        jobs.ab_initio(config)
    assert "at least 200 particles" in str(error.value) and "x9" in str(error.value)
    assert not (folder / "bad").exists()


def plan_of(data, **options):
    config = AbInitioConfig(out="x", particles=data.particles, device="cpu", **options)
    return plan_ab_initio(config, load_particles(data.particles), torch.device("cpu"))


def test_limits_follow_from_the_box_where_nothing_is_asked_for(data):
    plan = plan_of(data)
    assert plan.max_radius_px == BOX / 2 - 1 and plan.max_displacement_px == BOX / 8
    assert plan.mask_radius_px == pytest.approx(0.45 * BOX)
    assert plan.extent_angstrom == pytest.approx(BOX * plan.particles.pixel_size_angstrom)
    assert plan.symmetry == "c1" and plan.hand_reference is None


def test_limits_that_are_asked_for_are_in_angstrom(data):
    pixel = plan_of(data).particles.pixel_size_angstrom
    plan = plan_of(data, resolution_angstrom=4 * pixel, max_shift_angstrom=3 * pixel, particle_diameter_angstrom=20 * pixel,
                   symmetry="D2")
    assert plan.max_radius_px == pytest.approx(BOX / 4) and plan.max_displacement_px == pytest.approx(3.0)
    assert plan.mask_radius_px == pytest.approx(10.0) and plan.symmetry == "d2" and len(plan.group) == 4
    assert plan_of(data, particle_diameter_angstrom=1000 * pixel).mask_radius_px == pytest.approx(0.48 * BOX)


def test_the_hand_reference_is_read_with_the_particles_field_of_view(data):
    assert plan_of(data, hand_reference=data.map).hand_reference.shape == (BOX,) * 3
    with pytest.raises(InputError, match="none.mrc"):
        plan_of(data, hand_reference="none.mrc")


def test_the_noise_of_micrographs_is_measured_for_the_method_that_weighs_by_it(data):
    """600 images of six micrographs that have the same noise, and hold much signal (SNR 1)."""
    noise = plan_of(data).images.noise
    assert len(noise.groups) == 6 and noise.are_alike
    assert plan_of(data, method="end-to-end").images.noise is None
