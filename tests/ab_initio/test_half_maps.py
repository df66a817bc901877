"""Half maps: what a round finds and reconstructs, and what it does to noise, joins and outlines."""

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.ab_initio.half_maps import HalfSetRefinement, PoseTable, next_radius_px, pose_change_deg
from cryoforum_core.ab_initio.search_stage import low_noise_spectrum, spherical_average
from cryoforum_core.geometry.rotations import angular_distance_deg, compose, random_quaternions, rotation_vector_to_quaternion
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.fourier import low_pass_volume
from cryoforum_core.imaging.masks import molecule_mask
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.particles.preparation import ImagePreparation
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_state import ImageState

N, BOX = 400, 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return cf.simulate(cf.SimulateConfig(out=tmp_path_factory.mktemp("half") / "set", n_particles=N, box_size_px=BOX,
                                         snr=1.0, shift_rms_px=1.0, seed=4))


@pytest.fixture(scope="module")
def truth(data):
    return load_particles(data.truth).poses


@pytest.fixture
def refinement(data, truth):
    """Half sets at poses that are off by 6 degrees and half a pixel."""
    particles = load_particles(data.particles)
    images = ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))
    refinement = HalfSetRefinement(images, particles.half_set, symmetry_group("c1"), 0.45, 4.0)
    generator = torch.Generator().manual_seed(0)
    off = torch.nn.functional.normalize(torch.randn(N, 3, generator=generator), dim=1) * np.deg2rad(6.0)
    displacement_px = -truth.shift_angstrom / particles.pixel_size_angstrom
    refinement.poses = PoseTable.of(compose(truth.quaternion, rotation_vector_to_quaternion(off)),
                                    displacement_px + 0.5 * torch.randn(N, 2, generator=generator))
    refinement.set_noise(low_noise_spectrum(images, np.arange(N)))
    return refinement


def test_rounds_bring_poses_and_maps_nearer_to_the_truth(refinement, truth, data):
    before = angular_distance_deg(refinement.poses.best()[0], truth.quaternion).median()
    pair = first = refinement.reconstruct(refinement._full_spectrum, 12.0)
    for _ in range(3):
        pair = refinement.local_round(pair.without_solvent(), next_radius_px(pair, 15.0))
    after = angular_distance_deg(refinement.poses.best()[0], truth.quaternion).median()
    assert before == pytest.approx(6.0, abs=0.1) and after < 2.0
    known = torch.from_numpy(read_map(data.map)[0])
    fsc = [fourier_shell_correlation(p.reference[0], known)[6:10].mean() for p in (first, pair)
           if len(p.reference[0]) == BOX]
    assert fsc[-1] > 0.9
    assert pair.resolution_radius_px >= first.resolution_radius_px


def test_a_rival_hypothesis_takes_over_when_the_resolution_tells(refinement, truth):
    """Every fifth particle starts with a wrong pose first and its right one second."""
    pair = refinement.reconstruct(refinement._full_spectrum, 12.0)
    poses, wrong = refinement.poses, torch.arange(0, N, 5)
    poses.quaternion[wrong, 1] = poses.quaternion[wrong, 0]
    poses.quaternion[wrong, 0] = random_quaternions(len(wrong), torch.Generator().manual_seed(3))
    poses.score[wrong, 1] = -1.0
    for _ in range(2):
        pair = refinement.local_round(pair.without_solvent(), next_radius_px(pair, 15.0))
    error = angular_distance_deg(refinement.poses.best()[0], truth.quaternion)[wrong]
    assert (error < 6).float().mean() > 0.95
    assert (refinement.poses.score[wrong, 1] == -torch.inf).all()  # and the wrong one is given up
    torch.testing.assert_close(refinement.poses.weight.sum(1), torch.ones(N))


def test_a_global_round_needs_no_poses(refinement, truth, data):
    refinement.poses = PoseTable.empty(N, torch.device("cpu"))
    known = torch.from_numpy(read_map(data.map)[0])
    # grey values of the images: their background has standard deviation 1
    scaled = refinement.reconstruct(refinement._full_spectrum, 10.0).reference[0].std() / known.std() * known
    pair = refinement.global_round((scaled, scaled), refinement._full_spectrum, 10.0, 15.0, 8.0)
    error = angular_distance_deg(refinement.poses.best()[0], truth.quaternion)
    assert (error < 12).float().mean() > 0.75
    assert pair.sampled_fraction > 0.95


def test_half_maps_of_a_wrong_start_do_not_explain_the_images(refinement, data):
    """Both half sets refined from a map that is none of the molecule's: what they agree in afterwards is of the start."""
    spectrum, first_px = refinement._full_spectrum, 4.0
    pair = refinement.reconstruct(spectrum, 12.0)
    for _ in range(2):
        pair = refinement.local_round(pair.without_solvent(), 12.0)
    right = refinement.explained(pair, first_px)
    assert 0.75 < right < 1.3
    known = torch.from_numpy(read_map(data.map)[0])
    lumps = low_pass_volume(known[:, torch.randperm(BOX, generator=torch.Generator().manual_seed(1))], first_px)
    start = pair.reference[0].std() / lumps.std() * lumps
    wrong = refinement.global_round((start, start), spectrum, 8.0, 15.0, 7.0)
    for _ in range(2):
        wrong = refinement.local_round(wrong, 12.0)
    assert (wrong.fsc[int(first_px) + 1:] > 0.3).any()
    assert refinement.explained(wrong, first_px) < 0.75 * right


def test_a_round_sees_the_noise_that_the_background_had_not(refinement):
    spectrum = refinement._full_spectrum
    refinement.set_noise(spectrum / 4)
    pair = refinement.local_round(refinement.reconstruct(spectrum / 4, 12.0), 12.0)
    # what the maps leave unexplained is the noise, about four times what was said
    ratio = (pair.noise_spectrum / spectrum)[4:11]
    assert ((ratio > 0.7) & (ratio < 1.5)).all()


def test_only_the_lowest_frequencies_are_shared(refinement):
    pair = refinement.reconstruct(refinement._full_spectrum, 12.0)
    fsc = fourier_shell_correlation(*pair.reference)
    assert fsc[1] > 0.999 and fsc[11] < 0.99


def test_the_outline_holds_the_molecule_and_little_else(data):
    known = torch.from_numpy(read_map(data.map)[0])
    mask = molecule_mask(known)
    assert (known * mask).sum() > 0.95 * known.sum() and mask.mean() < 0.3
    assert float(mask.min()) >= 0 and float(mask.max()) <= 1 + 1e-6


def test_a_spherical_average_has_no_direction(data):
    known = torch.from_numpy(read_map(data.map)[0])
    ball = spherical_average(known)
    assert torch.allclose(ball.flip(0).roll(1, 0), ball, atol=1e-3 * float(ball.abs().max()))
    assert torch.allclose(ball.transpose(0, 2), ball, atol=1e-3 * float(ball.abs().max()))
    assert ball.sum() == pytest.approx(float(known.sum()), rel=1e-3)


def test_pose_change_is_the_median_angle():
    quaternion = torch.tensor([[0.0, 0, 0, 1]]).repeat(5, 1)
    turned = compose(quaternion, rotation_vector_to_quaternion(torch.deg2rad(torch.tensor([[3.0, 0, 0]])).repeat(5, 1)))
    assert pose_change_deg(quaternion, turned) == pytest.approx(3.0, abs=1e-3)
