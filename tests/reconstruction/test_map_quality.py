"""What the half maps of parts of a set agree in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.config import ImageInputConfig
from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.mrc import write_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.progress import Progress
from cryoforum_core.reconstruction.map_quality import HalfMapMaker

from ..matching.conftest import blobs

N, BOX, PIXEL = 400, 24, 6.0


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    """400 images with their true poses, SNR 0.3."""
    folder = tmp_path_factory.mktemp("map_quality")
    write_map(folder / "molecule.mrc", blobs(BOX, 12).numpy(), PIXEL)
    run = cf.simulate(cf.SimulateConfig(out=folder / "set", model=folder / "molecule.mrc", n_particles=N, snr=0.3, seed=3))
    return load_particles(run.truth, require_poses=True)


def maker_of(particles, symmetry: str = "c1", seed: int = 0) -> HalfMapMaker:
    images = ImagePreparation.checked(particles, ImageInputConfig(contrast="bright", ctf_state="raw"), torch.device("cpu"))
    return HalfMapMaker(particles, images, symmetry_group(symmetry, torch.float32), seed)


def sums_of(maker: HalfMapMaker, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    with Progress(len(rows), "test") as progress:
        return maker.sums(rows, progress)


def test_sums_of_parts_add_up_to_those_of_the_whole(particles):
    maker = maker_of(particles)
    whole = sums_of(maker, np.arange(N))
    parts = [sums_of(maker, rows) for rows in np.array_split(np.random.default_rng(0).permutation(N), 3)]
    together = tuple(sum(part[half] for part in parts) for half in (0, 1))
    assert maker.quality(together).fsc == pytest.approx(maker.quality(whole).fsc, abs=1e-4)
    assert maker.quality(whole).information > maker.quality(parts[0]).information > 0


def test_symmetry_counts_an_image_once(particles):
    """An image at all equivalent poses makes the map better, but there is no more in it than before."""
    explained = {}
    for name in ("c1", "c4"):
        maker = maker_of(particles, name)
        explained[name] = maker.explained_power(maker.quality(sums_of(maker, np.arange(N))), N)
        assert maker.n_symmetric == int(name[1])
    # of a molecule without symmetry, the average over four rotations keeps less than all of the power
    assert 0.1 * explained["c1"] < explained["c4"] < explained["c1"]


def test_random_poses_carry_hardly_any_information(particles):
    wrong = replace(particles.poses, quaternion=random_quaternions(N, torch.Generator().manual_seed(1)))
    right, of_chance = (maker.quality(sums_of(maker, np.arange(N))) for maker in (
        maker_of(particles), maker_of(replace(particles, poses=wrong))))
    assert of_chance.information < 0.2 * right.information  # measured: 0.12, of the coarse shape that all views share
    assert right.resolution_angstrom < 0.6 * of_chance.resolution_angstrom


def test_the_particles_own_half_sets_are_used(particles):
    """Then the seed, which draws half sets where there are none, changes nothing."""
    own, without = (replace(particles, half_set=halves) for halves in (1 + np.arange(N) // (N // 2), None))
    first, second = (sums_of(maker_of(own, seed=seed), np.arange(N)) for seed in (0, 1))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(*(sums_of(maker_of(without, seed=seed), np.arange(N))[0] for seed in (0, 1)))
