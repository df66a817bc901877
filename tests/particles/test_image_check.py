"""Pixels that cannot be right are found, and named by particle."""

import logging

import numpy as np
import pytest
import torch

from cryoforum_core.errors import InputError
from cryoforum_core.mrc import write_stack
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_check import check_images, is_constant, without_constant_images
from cryoforum_core.particles.table import ParticleTable

N, BOX = 6, 8


def spoilt(tmp_path, not_finite=(), constant=()):
    images = np.random.default_rng(0).normal(size=(N, BOX, BOX))
    images[list(constant)] = 3.0
    for row in not_finite:
        images[row, 2, 3] = np.nan if row % 2 else np.inf
    write_stack(tmp_path / "a.mrcs", images, 2.0)
    names = [f"{i + 1}@a.mrcs" for i in range(N)]
    ParticleTable.from_columns({"rlnImageName": names}).write(tmp_path / "in.star")
    return load_particles(tmp_path / "in.star", require_ctf=False)


@pytest.mark.filterwarnings("ignore:Data array contains NaN:RuntimeWarning")
def test_not_finite_images_are_an_error_that_names_them(tmp_path):
    check = check_images(spoilt(tmp_path, not_finite=(1, 4), constant=(2,)), batch_size=4)
    assert check.not_finite.tolist() == [1, 4] and check.constant.tolist() == [2]
    with pytest.raises(InputError, match="particles 2; 5"):
        check.raise_if_unusable()


def test_some_constant_images_are_left_out_of_training(tmp_path, caplog):
    particles = spoilt(tmp_path, constant=(0, 5))
    check = check_images(particles)
    check.raise_if_unusable()
    assert "2 of 6 images" in check.warning()
    with caplog.at_level(logging.WARNING, logger="cryoforum"):
        kept = without_constant_images(particles, check)
    assert kept.particle_id.tolist() == [2, 3, 4, 5] and "left out" in caplog.text


def test_mostly_constant_images_are_an_error(tmp_path):
    with pytest.raises(InputError, match="4 of the 6"):
        check_images(spoilt(tmp_path, constant=(0, 1, 2, 3))).raise_if_unusable()


def test_good_images_raise_nothing_and_a_sample_is_a_sample(tmp_path):
    particles = spoilt(tmp_path)
    check = check_images(particles, n_sample=3, seed=1)
    check.raise_if_unusable()
    assert len(check.rows) == 3 and check.warning() is None
    assert without_constant_images(particles, check) is particles


@pytest.mark.parametrize(("grey", "noise", "expected"), [(0.0, 0.0, True), (1e4, 0.0, True), (-3.0, 1e-9, True),
                                                         (0.0, 1e-9, False), (1e4, 1.0, False)])
def test_constant_is_meant_relative_to_the_grey_level(grey, noise, expected):
    images = grey + noise * torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    assert is_constant(images).tolist() == [expected] * 2
