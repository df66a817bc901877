"""Molecules that half a turn lays nearly on themselves: the two orientations of each image are told apart."""

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.ab_initio import hybrid
from cryoforum_core.ab_initio.half_maps import HalfMapPair, HalfSetRefinement, PoseTable
from cryoforum_core.ab_initio.near_symmetry import NearHalfTurn, near_half_turn, told_apart
from cryoforum_core.ab_initio.search_stage import low_noise_spectrum
from cryoforum_core.published_benchmarks.published import MODEL, NEAR_SYMMETRY
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.geometry.pose_errors import align_frame, rotation_errors_deg
from cryoforum_core.geometry.rotations import angular_distance_deg, quaternion_to_matrix, random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.imaging.volume_frame import move_volume
from cryoforum_core.particles.preparation import ImagePreparation
from cryoforum_core.matching.likelihood import MatchingImages, predicted
from cryoforum_core.mrc import read_map, write_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.particles.simulate import DEFAULT_MODEL, load_molecule
from cryoforum_core.saved_state import load_state

N, BOX, RADIUS_PX = 600, 32, 14.0
HALF_TURN = torch.nn.functional.normalize(torch.tensor(NEAR_SYMMETRY), dim=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("near_symmetry")


@pytest.fixture(scope="module")
def adenylate_kinase(folder):
    """Two chains that differ little, 102 A box, SNR 3."""
    return cf.simulate(cf.SimulateConfig(out=folder / "kinase", model=MODEL, n_particles=N, box_size_px=BOX,
                                         pixel_size_angstrom=102.4 / BOX, snr=3.0, shift_rms_px=1.0, seed=4))


def _both_ways(simulated):
    """Half sets at the true poses, every second image the other way round, and their maps: which are turned, too."""
    particles = load_particles(simulated.truth, require_poses=True)
    images = ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))
    refinement = HalfSetRefinement(images, 1 + np.arange(N) % 2, symmetry_group("c1"), 0.45, 4.0)
    noise = low_noise_spectrum(images, np.arange(N))
    refinement.set_noise(noise)
    quaternion, displacement_px = particles.poses.quaternion, -particles.poses.shift_angstrom / particles.pixel_size_angstrom
    turned = torch.arange(N) % 4 > 1
    turn = NearHalfTurn(HALF_TURN, torch.zeros(3), 1.0)
    other = turn.other(quaternion, displacement_px)
    refinement.poses = PoseTable.of(*(torch.where(turned[:, None], x, y)
                                      for x, y in zip(other, (quaternion, displacement_px), strict=True)))
    return refinement, refinement.reconstruct(noise, RADIUS_PX), turn, turned


def test_images_of_a_nearly_symmetric_molecule_are_told_apart(adenylate_kinase):
    refinement, pair, turn, turned = _both_ways(adenylate_kinase)
    found = told_apart(refinement, pair, turn, RADIUS_PX, seed=0)
    right = float((found == turned).float().mean())
    assert max(right, 1 - right) > 0.95  # which of both ways is "right" is nobody's choice


def test_a_symmetric_molecule_has_nothing_to_tell(folder, adenylate_kinase):
    volume, pixel_size_angstrom = read_map(adenylate_kinase.map)
    volume = torch.from_numpy(volume)
    symmetric = folder / "symmetric.mrc"
    write_map(symmetric, (0.5 * (volume + move_volume(volume, HALF_TURN, torch.zeros(3)))).numpy(), pixel_size_angstrom)
    simulated = cf.simulate(cf.SimulateConfig(out=folder / "symmetric", model=symmetric, n_particles=N, box_size_px=BOX,
                                              snr=3.0, shift_rms_px=1.0, seed=4))
    refinement, pair, turn, _ = _both_ways(simulated)
    assert told_apart(refinement, pair, turn, RADIUS_PX, seed=0) is None


def test_the_half_maps_of_ab_initio_show_each_image_the_right_way_round(folder, adenylate_kinase, monkeypatch):
    """And so the orientations of a molecule that the half turn does not lay on itself, not modulo the turn."""
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hybrid._HybridRun, "_network", stop)
    with pytest.raises(KeyboardInterrupt):
        jobs.ab_initio(AbInitioConfig(out=folder / "run", particles=adenylate_kinase.particles, search_steps=100, seeds=1,
                                      device="cpu"))
    kept = load_state(folder / "run/stages/half_maps.pt")
    near = kept["rounds"][-1]["near_half_turn"]
    assert near["is_told_apart"] and near["agreement"] > 0.7
    truth = load_particles(adenylate_kinase.truth, require_poses=True).poses.quaternion.double()
    found, one = kept["quaternion"][:, 0].double(), symmetry_group("c1").double()
    error_deg = rotation_errors_deg(align_frame(found, truth, one, allow_mirror=True).apply(found), truth, one)
    assert (error_deg < 10).double().mean() > 0.95


def _pair(volume, resolution_radius_px):
    fsc = (torch.arange(BOX // 2 + 1) < resolution_radius_px).float()
    return HalfMapPair((volume, volume), (volume, volume), fsc, torch.ones(BOX // 2 + 1), 1.0)


def test_the_half_turn_is_found_and_the_other_pose_shows_the_same(adenylate_kinase):
    """The axis displaced from the middle."""
    volume = torch.from_numpy(read_map(adenylate_kinase.map)[0])
    offset_px = torch.tensor([0.6, 1.1, -0.7])
    moved = move_volume(volume, torch.tensor([0.0, 0.0, 0.0, 1.0]), offset_px)
    found = near_half_turn(_pair(moved, 12.0), BOX)
    assert found.agreement > 0.7
    assert float(angular_distance_deg(found.rotation, HALF_TURN)) < 1.0
    # the axis through the displaced middle
    assert torch.allclose(found.translation_px, offset_px - quaternion_to_matrix(HALF_TURN) @ offset_px, atol=0.3)
    images = MatchingImages.from_transforms(torch.zeros(20, BOX, BOX // 2 + 1, dtype=torch.complex64),
                                            torch.ones(20, BOX, BOX // 2 + 1), torch.ones(BOX // 2 + 1), 8.0)
    poses = random_quaternions(20, torch.Generator().manual_seed(1)), torch.zeros(20, 2)
    transform = FourierVolume.from_real(moved, max_radius_px=9)
    own, other = predicted(images, transform, *poses), predicted(images, transform, *found.other(*poses))
    assert float((own.conj() * other).real.sum() / (own.norm() * other.norm())) > 0.97


def test_a_molecule_without_such_a_turn_has_none():
    assert near_half_turn(_pair(load_molecule(DEFAULT_MODEL, BOX, None).volume, 12.0), BOX) is None
