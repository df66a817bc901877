"""Reconstruction from known poses, compared with RELION's."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoforum_core import jobs
from cryoforum_core.config import ReconstructConfig, SimulateConfig
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import compose
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles

BOX = 48


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """1,200 images at SNR 1 with CTF and shifts, and a STAR file with their true poses."""
    folder = tmp_path_factory.mktemp("known")
    return jobs.simulate(SimulateConfig(out=folder / "set", n_particles=1200, box_size_px=BOX, snr=1.0, seed=5))


@pytest.fixture(scope="module")
def ours(known, tmp_path_factory):
    return jobs.reconstruct(ReconstructConfig(out=tmp_path_factory.mktemp("map") / "run", particles=known.truth))


def volume(path):
    return torch.from_numpy(read_map(path)[0])


def test_map_agrees_with_relion_reconstruct(known, ours, tmp_path):
    subprocess.run(["relion_reconstruct", "--i", known.truth.name, "--o", tmp_path / "relion.mrc", "--ctf",
                    "--pad", "2"], cwd=known.path, check=True, capture_output=True)
    fsc = fourier_shell_correlation(volume(ours.map), volume(tmp_path / "relion.mrc"))
    assert fsc[1:int(0.8 * BOX / 2) + 1].min() >= 0.99


def test_map_is_the_molecule_in_its_own_frame_and_the_halves_are_independent(known, ours):
    truth = fourier_shell_correlation(volume(ours.map), volume(known.map))
    halves = fourier_shell_correlation(volume(ours.map_half1), volume(ours.map_half2))
    assert truth[1:12].min() > 0.98
    # of two noisy halves agree less than the whole agrees with the truth
    assert (halves[4:20] < truth[4:20] + 0.02).all()
    summary = ours.read_summary()
    assert summary["half_sets"] == "rlnRandomSubset" and summary["resolution_angstrom"] < 25
    assert np.loadtxt(ours.fsc, delimiter=",", skiprows=1).shape == (BOX // 2 + 1, 3)


def test_wrong_shift_sign_ruins_the_map(known, ours, tmp_path):
    particles = load_particles(known.truth, require_poses=True)
    turned = Poses(particles.poses.quaternion, -particles.poses.shift_angstrom)
    particles.save(tmp_path / "wrong.star", turned)
    wrong = jobs.reconstruct(ReconstructConfig(out=tmp_path / "run", particles=tmp_path / "wrong.star"))
    right = fourier_shell_correlation(volume(ours.map), volume(known.map))[8:16].mean()
    assert fourier_shell_correlation(volume(wrong.map), volume(known.map))[8:16].mean() < right - 0.2


def test_symmetry_is_imposed(known, tmp_path):
    run = jobs.reconstruct(ReconstructConfig(out=tmp_path / "run", particles=known.truth, symmetry="c2"))
    map_ = volume(run.map)
    turned = map_.flip((-1, -2)).roll((1, 1), (-1, -2))
    assert fourier_shell_correlation(map_, turned)[1:18].min() > 0.98


def test_equivalent_poses_give_one_map(known, tmp_path):
    particles = load_particles(known.truth, require_poses=True)
    group = symmetry_group("d2")
    draw = torch.randint(4, (len(particles),), generator=torch.Generator().manual_seed(0))
    particles.save(tmp_path / "turned.star", Poses(compose(particles.poses.quaternion, group[draw]),
                                                   particles.poses.shift_angstrom))
    maps = [volume(jobs.reconstruct(ReconstructConfig(out=tmp_path / name, particles=path, symmetry="d2")).map)
            for name, path in (("a", known.truth), ("b", tmp_path / "turned.star"))]
    assert fourier_shell_correlation(*maps)[1:20].min() > 0.999


def test_weights_leave_bad_particles_out(known, tmp_path):
    table = load_particles(known.truth).table
    weight = np.zeros(len(table))
    weight[:400] = 1.0
    star = Path(known.path) / "weighted.star"
    table.with_columns({"rlnCryoforumFigureOfMerit": weight}).write(star)
    table.subset(np.arange(400)).write(Path(known.path) / "part.star")
    weighted = jobs.reconstruct(ReconstructConfig(out=tmp_path / "weighted", particles=star,
                                                  weight_by="rlnCryoforumFigureOfMerit"))
    part = jobs.reconstruct(ReconstructConfig(out=tmp_path / "part", particles=Path(known.path) / "part.star"))
    assert fourier_shell_correlation(volume(weighted.map), volume(part.map))[1:20].min() > 0.999
