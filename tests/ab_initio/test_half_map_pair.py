"""Rounds of half maps: what one finds and reconstructs, and what it does to noise, shared frequencies and masks."""

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.ab_initio.background import background_spectrum
from cryoforum_core.ab_initio.explained_fraction import explained_fraction
from cryoforum_core.ab_initio.half_map_pair import next_radius_px
from cryoforum_core.ab_initio.half_sets import HalfSets
from cryoforum_core.ab_initio.random_starts import spherical_average
from cryoforum_core.ab_initio.rounds import Refinement, global_round, local_round, pose_change_deg, reconstruct
from cryoforum_core.geometry.pose_hypotheses import PoseHypotheses
from cryoforum_core.geometry.poses import displacement_px
from cryoforum_core.geometry.rotations import (
    angular_distance_deg,
    compose,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.fourier import low_pass_volume
from cryoforum_core.imaging.masks import molecule_mask
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState

N, BOX = 400, 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return cf.simulate(cf.SimulateConfig(out=tmp_path_factory.mktemp("half") / "set", n_particles=N, box_size_px=BOX,
                                         snr=1.0, shift_rms_px=1.0, seed=4))


@pytest.fixture(scope="module")
def truth(data):
    return load_particles(data.truth).poses


@pytest.fixture(scope="module")
def half_sets(data):
    particles = load_particles(data.particles)
    images = ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))
    return HalfSets(images, particles.half_set, symmetry_group("c1"), 0.45, 4.0, background_spectrum(images, np.arange(N)))


@pytest.fixture(scope="module")
def poses(half_sets, truth):
    """Off by 6 degrees and half a pixel."""
    generator = torch.Generator().manual_seed(0)
    off = torch.nn.functional.normalize(torch.randn(N, 3, generator=generator), dim=1) * np.deg2rad(6.0)
    found_px = displacement_px(truth.shift_angstrom, half_sets.images.pixel_size_angstrom)
    return PoseHypotheses.of(compose(truth.quaternion, rotation_vector_to_quaternion(off)),
                             found_px + 0.5 * torch.randn(N, 2, generator=generator))


def _rounds(half_sets, refinement, n):
    """Local rounds against maps without solvent."""
    for _ in range(n):
        pair = refinement.pair.without_solvent()
        refinement = local_round(half_sets, Refinement(refinement.poses, pair), next_radius_px(pair, 15.0))
    return refinement


def test_rounds_bring_poses_and_maps_nearer_to_the_truth(half_sets, poses, truth, data):
    before = angular_distance_deg(poses.best()[0], truth.quaternion).median()
    first = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0)
    last = _rounds(half_sets, first, 3)
    after = angular_distance_deg(last.poses.best()[0], truth.quaternion).median()
    assert before == pytest.approx(6.0, abs=0.1) and after < 2.0
    known = torch.from_numpy(read_map(data.map)[0])
    fsc = [fourier_shell_correlation(p.reference[0], known)[6:10].mean() for p in (first.pair, last.pair)
           if len(p.reference[0]) == BOX]
    assert fsc[-1] > 0.9
    assert last.pair.resolution_radius_px >= first.pair.resolution_radius_px


def test_a_round_leaves_what_it_started_from(half_sets, poses):
    first = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0)
    before = first.poses.copy()
    after = local_round(half_sets, first, 12.0)
    assert torch.equal(first.poses.quaternion, before.quaternion) and torch.equal(first.poses.weight, before.weight)
    assert not torch.equal(after.poses.quaternion, before.quaternion)


def test_an_alternative_pose_takes_over_when_the_resolution_tells(half_sets, poses, truth):
    """Every fifth particle starts with a wrong pose first and its right one second."""
    first = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0)
    started, wrong = poses.copy(), torch.arange(0, N, 5)
    started.quaternion[wrong, 1] = started.quaternion[wrong, 0]
    started.quaternion[wrong, 0] = random_quaternions(len(wrong), torch.Generator().manual_seed(3))
    started.score[wrong, 1] = -1.0
    found = _rounds(half_sets, Refinement(started, first.pair), 2).poses
    error = angular_distance_deg(found.best()[0], truth.quaternion)[wrong]
    assert (error < 6).float().mean() > 0.95
    assert (found.score[wrong, 1] == -torch.inf).all()  # and the wrong one is dropped
    torch.testing.assert_close(found.weight.sum(1), torch.ones(N))


def test_a_global_round_needs_no_poses(half_sets, truth, data):
    known = torch.from_numpy(read_map(data.map)[0])
    spectrum, empty = half_sets.background_spectrum, PoseHypotheses.empty(N, torch.device("cpu"))
    # grey values of the images: their background has standard deviation 1
    scaled = reconstruct(half_sets, empty, spectrum, 10.0).pair.reference[0].std() / known.std() * known
    found = global_round(half_sets, (scaled, scaled), spectrum, 10.0, 15.0, 8.0)
    error = angular_distance_deg(found.poses.best()[0], truth.quaternion)
    assert (error < 12).float().mean() > 0.75
    assert found.pair.sampled_fraction > 0.95


def test_half_maps_of_a_wrong_start_do_not_explain_the_images(half_sets, poses, data):
    """Both half sets refined from a map that is none of the molecule's: what they agree in afterwards is of the start."""
    spectrum, first_px = half_sets.background_spectrum, 4.0
    refined = reconstruct(half_sets, poses, spectrum, 12.0)
    for _ in range(2):
        refined = local_round(half_sets, Refinement(refined.poses, refined.pair.without_solvent()), 12.0)
    right = explained_fraction(half_sets, refined, first_px)
    assert 0.75 < right < 1.3
    known = torch.from_numpy(read_map(data.map)[0])
    lumps = low_pass_volume(known[:, torch.randperm(BOX, generator=torch.Generator().manual_seed(1))], first_px)
    start = refined.pair.reference[0].std() / lumps.std() * lumps
    wrong = global_round(half_sets, (start, start), spectrum, 8.0, 15.0, 7.0)
    for _ in range(2):
        wrong = local_round(half_sets, wrong, 12.0)
    assert (wrong.pair.fsc[int(first_px) + 1:] > 0.3).any()
    assert explained_fraction(half_sets, wrong, first_px) < 0.75 * right


def test_a_round_sees_the_noise_that_the_background_had_not(half_sets, poses):
    spectrum = half_sets.background_spectrum
    pair = local_round(half_sets, reconstruct(half_sets, poses, spectrum / 4, 12.0), 12.0).pair
    # what the maps leave unexplained is the noise, about four times what was said
    ratio = (pair.noise_spectrum / spectrum)[4:11]
    assert ((ratio > 0.7) & (ratio < 1.5)).all()


def test_only_the_lowest_frequencies_are_shared(half_sets, poses):
    pair = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0).pair
    fsc = fourier_shell_correlation(*pair.reference)
    assert fsc[1] > 0.999 and fsc[11] < 0.99


def test_the_solvent_mask_holds_the_molecule_and_little_else(data):
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
