"""Pseudo-symmetric molecules (C2): which of its two orientations each image shows."""

import pytest
import torch

from cryoforum_core import jobs
from cryoforum_core.ab_initio import hybrid
from cryoforum_core.ab_initio.half_map_pair import HalfMapPair
from cryoforum_core.ab_initio.pseudo_symmetry import find_pseudo_twofold
from cryoforum_core.ab_initio.stages import half_maps
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.geometry.pose_errors import align_frame, rotation_errors_deg
from cryoforum_core.geometry.rotations import angular_distance_deg, quaternion_to_matrix, random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.imaging.volume_frame import move_volume
from cryoforum_core.matching.likelihood import predicted
from cryoforum_core.matching.whitened_images import WhitenedImages
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.simulate import DEFAULT_MODEL, load_molecule
from cryoforum_core.published_benchmarks.published import NEAR_SYMMETRY
from cryoforum_core.saved_state import load_state

from .hybrid_runs import resumed, stop

N, BOX, RADIUS_PX = 600, 32, 14.0
TWOFOLD = torch.nn.functional.normalize(torch.tensor(NEAR_SYMMETRY), dim=0)


def test_half_maps_show_each_image_the_right_way_round_also_after_a_stop(tmp_path, adenylate_kinase, monkeypatch):
    """And so the orientations of a molecule without the symmetry, not modulo the rotation by 180 degrees.

    Stopped while the pseudo-symmetry is resolved, and resumed when all rounds before it are done.
    """
    config = AbInitioConfig(out=tmp_path / "run", particles=adenylate_kinase.particles, search_steps=100, seeds=1,
                            device="cpu")
    with monkeypatch.context() as patched:
        patched.setattr(half_maps, "is_other_way_round", stop)
        with pytest.raises(KeyboardInterrupt):
            jobs.ab_initio(config)
    n_rounds = len(load_state(tmp_path / "run/stages/rounds.pt")["rounds"])
    monkeypatch.setattr(hybrid, "train_network", stop)
    with pytest.raises(KeyboardInterrupt):
        jobs.ab_initio(resumed(config))
    kept = load_state(tmp_path / "run/stages/half_maps.pt")
    assert len(kept["rounds"]) == n_rounds + half_maps.ROUNDS_AFTER_RESOLVING
    near = kept["rounds"][-1]["near_half_turn"]
    assert near["is_told_apart"] and near["agreement"] > 0.7
    truth = load_particles(adenylate_kinase.truth, require_poses=True).poses.quaternion.double()
    found, one = kept["quaternion"][:, 0].double(), symmetry_group("c1").double()
    error_deg = rotation_errors_deg(align_frame(found, truth, one, allow_mirror=True).apply(found), truth, one)
    assert (error_deg < 10).double().mean() > 0.95


def _pair(volume, resolution_radius_px):
    fsc = (torch.arange(BOX // 2 + 1) < resolution_radius_px).float()
    return HalfMapPair((volume, volume), (volume, volume), fsc, torch.ones(BOX // 2 + 1), 1.0)


def test_the_twofold_axis_is_found_and_the_other_pose_shows_the_same(adenylate_kinase):
    """The axis displaced from the middle."""
    volume = torch.from_numpy(read_map(adenylate_kinase.map)[0])
    offset_px = torch.tensor([0.6, 1.1, -0.7])
    moved = move_volume(volume, torch.tensor([0.0, 0.0, 0.0, 1.0]), offset_px)
    found = find_pseudo_twofold(_pair(moved, 12.0), BOX)
    assert found.agreement > 0.7
    assert float(angular_distance_deg(found.rotation, TWOFOLD)) < 1.0
    # the axis through the displaced middle
    assert torch.allclose(found.translation_px, offset_px - quaternion_to_matrix(TWOFOLD) @ offset_px, atol=0.3)
    images = WhitenedImages.from_transforms(torch.zeros(20, BOX, BOX // 2 + 1, dtype=torch.complex64),
                                            torch.ones(20, BOX, BOX // 2 + 1), torch.ones(BOX // 2 + 1), 8.0)
    poses = random_quaternions(20, torch.Generator().manual_seed(1)), torch.zeros(20, 2)
    transform = FourierVolume.from_real(moved, max_radius_px=9)
    own, other = predicted(images, transform, *poses), predicted(images, transform, *found.other(*poses))
    assert float((own.conj() * other).real.sum() / (own.norm() * other.norm())) > 0.97


def test_other_molecules_have_no_pseudo_symmetry():
    assert find_pseudo_twofold(_pair(load_molecule(DEFAULT_MODEL, BOX, None).volume, 12.0), BOX) is None
