"""Rounds of the half maps: poses, maps and noise after a global or a local one."""

from dataclasses import replace

import pytest
import torch

from cryoforum_core.ab_initio.half_map_pair import next_radius_px
from cryoforum_core.ab_initio.rounds import Refinement, global_round, local_round, pose_change_deg, reconstruct
from cryoforum_core.geometry.pose_hypotheses import PoseHypotheses
from cryoforum_core.geometry.poses import displacement_px
from cryoforum_core.geometry.rotations import (
    angular_distance_deg,
    compose,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.imaging.fourier import shift_phase
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.mrc import read_map

from .hybrid_runs import BOX, N_CLEAN


def _rounds(half_sets, refinement, n):
    """Local rounds against maps without solvent."""
    for _ in range(n):
        pair = refinement.pair.without_solvent()
        refinement = local_round(half_sets, replace(refinement, pair=pair), next_radius_px(pair, 15.0))
    return refinement


def test_rounds_bring_poses_and_maps_nearer_to_the_truth(half_sets, poses, truth, clean_data):
    before = angular_distance_deg(poses.best()[0], truth.quaternion).median()
    first = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0)
    last = _rounds(half_sets, first, 3)
    after = angular_distance_deg(last.poses.best()[0], truth.quaternion).median()
    assert before == pytest.approx(6.0, abs=0.1) and after < 2.0
    known = torch.from_numpy(read_map(clean_data.map)[0])
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


def test_a_better_alternative_pose_becomes_the_best_hypothesis(half_sets, poses, truth):
    """Every fifth particle starts with a wrong pose first and its right one second."""
    first = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0)
    started, wrong = poses.copy(), torch.arange(0, N_CLEAN, 5)
    started.quaternion[wrong, 1] = started.quaternion[wrong, 0]
    started.quaternion[wrong, 0] = random_quaternions(len(wrong), torch.Generator().manual_seed(3))
    started.score[wrong, 1] = -1.0
    found = _rounds(half_sets, Refinement(started, first.pair), 2).poses
    error = angular_distance_deg(found.best()[0], truth.quaternion)[wrong]
    assert (error < 6).float().mean() > 0.95
    assert (found.score[wrong, 1] == -torch.inf).all()  # and the wrong one is dropped
    torch.testing.assert_close(found.weight.sum(1), torch.ones(N_CLEAN))


def test_a_global_round_needs_no_poses(half_sets, truth, clean_data):
    known = torch.from_numpy(read_map(clean_data.map)[0])
    spectrum, empty = half_sets.background_spectrum, PoseHypotheses.empty(N_CLEAN, torch.device("cpu"))
    # grey values of the images: their background has standard deviation 1
    scaled = reconstruct(half_sets, empty, spectrum, 10.0).pair.reference[0].std() / known.std() * known
    found = global_round(half_sets, (scaled, scaled), spectrum, 10.0, 15.0, 8.0)
    error = angular_distance_deg(found.poses.best()[0], truth.quaternion)
    assert (error < 12).float().mean() > 0.75
    assert found.pair.sampled_fraction > 0.95


def test_a_round_estimates_the_noise_anew(half_sets, poses):
    spectrum = half_sets.background_spectrum
    pair = local_round(half_sets, reconstruct(half_sets, poses, spectrum / 4, 12.0), 12.0).pair
    # what the maps leave unexplained is the noise, about four times what was said
    ratio = (pair.noise_spectrum / spectrum)[4:11]
    assert ((ratio > 0.7) & (ratio < 1.5)).all()


def test_each_particle_is_matched_with_its_own_contrast(half_sets, poses, truth, clean_data, monkeypatch):
    """Half of the particles have a third of the others' signal; matched with one contrast for all, poses are worse."""
    pixel_size, spectrum = half_sets.images.pixel_size_angstrom, half_sets.background_spectrum
    true_displacement_px = displacement_px(truth.shift_angstrom, pixel_size)
    found = reconstruct(half_sets, PoseHypotheses.of(truth.quaternion, true_displacement_px), spectrum, 14.0).pair
    # with the grey values of the images
    known = torch.from_numpy(read_map(clean_data.map)[0])
    known = known * (known * found.mean_reference).sum() / known.square().sum()
    volume, contrast = FourierVolume.from_real(known), torch.where(torch.arange(N_CLEAN) % 2 == 0, 0.5, 1.5)
    prepared = type(half_sets.images).transforms

    def of_two_contrasts(images, rows):
        transforms, ctf = prepared(images, rows)
        index = torch.from_numpy(rows)
        signal = ctf * volume.project(truth.quaternion[index]) * shift_phase(true_displacement_px[index], BOX)
        return transforms + (contrast[index, None, None] - 1) * signal, ctf

    monkeypatch.setattr(type(half_sets.images), "transforms", of_two_contrasts)
    own = one = Refinement(poses, replace(found, reference=(known, known)))
    for _ in range(3):
        own = replace(local_round(half_sets, own, 14.0), pair=own.pair)
        one = replace(local_round(half_sets, one, 14.0), pair=one.pair, contrast=None)
    torch.testing.assert_close(own.contrast, contrast, atol=0.3, rtol=0)
    error_deg = [angular_distance_deg(each.poses.best()[0], truth.quaternion) for each in (own, one)]
    for some in (contrast < 1, contrast > 1):
        assert error_deg[0][some].median() < 0.95 * error_deg[1][some].median()


def test_particles_of_one_contrast_are_matched_with_it(half_sets, poses):
    assert _rounds(half_sets, reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0), 2).contrast is None


def test_pose_change_is_the_median_angle():
    quaternion = torch.tensor([[0.0, 0, 0, 1]]).repeat(5, 1)
    turned = compose(quaternion, rotation_vector_to_quaternion(torch.deg2rad(torch.tensor([[3.0, 0, 0]])).repeat(5, 1)))
    assert pose_change_deg(quaternion, turned) == pytest.approx(3.0, abs=1e-3)
