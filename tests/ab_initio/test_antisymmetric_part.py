"""The antisymmetric part of a pseudo-symmetric map resolves the two orientations of each image, where there is one."""

import numpy as np
import torch

import cryoforum_core as cf
from cryoforum_core.ab_initio.background import background_spectrum
from cryoforum_core.ab_initio.half_sets import HalfSets
from cryoforum_core.ab_initio.pseudo_symmetry import PseudoTwofold, is_other_way_round
from cryoforum_core.ab_initio.rounds import reconstruct
from cryoforum_core.geometry.pose_hypotheses import PoseHypotheses
from cryoforum_core.geometry.poses import displacement_px
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.volume_frame import move_volume
from cryoforum_core.mrc import read_map, write_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.published_benchmarks.published import NEAR_SYMMETRY

N, BOX, RADIUS_PX = 600, 32, 14.0
TWOFOLD = torch.nn.functional.normalize(torch.tensor(NEAR_SYMMETRY), dim=0)


def _both_ways(simulated):
    """Half sets at the true poses, every second image of each the other way round, and their maps; and which images."""
    particles = load_particles(simulated.truth, require_poses=True)
    images = ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))
    half_sets = HalfSets(images, 1 + np.arange(N) % 2, symmetry_group("c1"), 0.45, 4.0,
                         background_spectrum(images, np.arange(N)))
    own = particles.poses.quaternion, displacement_px(particles.poses.shift_angstrom, particles.pixel_size_angstrom)
    is_other = torch.arange(N) % 4 > 1
    twofold = PseudoTwofold(TWOFOLD, torch.zeros(3), 1.0)
    poses = PoseHypotheses.of(*(torch.where(is_other[:, None], x, y) for x, y in zip(twofold.other(*own), own, strict=True)))
    return half_sets, reconstruct(half_sets, poses, half_sets.background_spectrum, RADIUS_PX), twofold, is_other


def test_the_orientations_of_a_pseudo_symmetric_molecule_are_resolved(adenylate_kinase):
    half_sets, refinement, twofold, is_other = _both_ways(adenylate_kinase)
    found = is_other_way_round(half_sets, refinement, twofold, RADIUS_PX, seed=0)
    right = float((found == is_other).float().mean())
    assert max(right, 1 - right) > 0.95  # which of both ways is "right" is nobody's choice


def test_nothing_is_resolved_where_the_symmetry_is_exact(tmp_path, adenylate_kinase):
    volume, pixel_size_angstrom = read_map(adenylate_kinase.map)
    volume = torch.from_numpy(volume)
    symmetric = tmp_path / "symmetric.mrc"
    write_map(symmetric, (0.5 * (volume + move_volume(volume, TWOFOLD, torch.zeros(3)))).numpy(), pixel_size_angstrom)
    simulated = cf.simulate(cf.SimulateConfig(out=tmp_path / "symmetric", model=symmetric, n_particles=N, box_size_px=BOX,
                                              snr=3.0, shift_rms_px=1.0, seed=4))
    half_sets, refinement, twofold, _ = _both_ways(simulated)
    assert is_other_way_round(half_sets, refinement, twofold, RADIUS_PX, seed=0) is None
