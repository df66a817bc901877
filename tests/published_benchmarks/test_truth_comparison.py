"""Frame, hand, centre and pseudo-symmetry are aligned before the comparison, and nothing else."""

import pytest
import torch

from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import compose, mirror_hand, quaternion_to_matrix, random_quaternions
from cryoforum_core.imaging.volume_frame import mirror_volume, move_volume
from cryoforum_core.published_benchmarks.published import NEAR_SYMMETRY
from cryoforum_core.published_benchmarks.truth_comparison import MapAgreement, PoseAlignment, map_agreement

BOX, PIXEL, N = 32, 3.0, 300
HALF_TURN = torch.nn.functional.normalize(torch.tensor(NEAR_SYMMETRY, dtype=torch.float64), dim=0)


@pytest.fixture(scope="module")
def known():
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    centres = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)) * 4
    return sum(torch.exp(-((x - c[0])**2 + (y - c[1])**2 + (z - c[2])**2) / 5) for c in centres)


@pytest.fixture(scope="module")
def truth():
    return Poses(random_quaternions(N, torch.Generator().manual_seed(2)).double(), torch.zeros(N, 2).double())


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_frame_hand_and_centre_are_aligned(known, truth, is_mirrored):
    """A map in another frame, shifted, of either hand, and its poses."""
    rotation = random_quaternions(1, torch.Generator().manual_seed(3))[0].double()
    translation = torch.tensor([1.5, -2.0, 1.0], dtype=torch.float64)
    volume = move_volume(known, rotation, translation)
    quaternion = compose(truth.quaternion, rotation)
    shift_px = (quaternion_to_matrix(quaternion) @ translation)[:, :2]
    if is_mirrored:
        volume, quaternion = mirror_volume(volume), mirror_hand(quaternion)
    found = Poses(quaternion, shift_px * PIXEL)
    alignment = PoseAlignment.of(found, truth, NEAR_SYMMETRY)
    errors = alignment.errors(quaternion, truth.quaternion)
    assert max(errors.values()) < 0.1
    agreement = map_agreement(volume, known, PIXEL, alignment)
    # interpolated twice: without the last shells
    assert agreement.fsc[1:BOX // 3].min() > 0.98 and MapAgreement.of(volume, known).fsc[4:BOX // 3].mean() < 0.5


def test_poses_at_the_pseudo_symmetry_mate_have_no_error_modulo_c2(known, truth):
    other = torch.arange(N) % 3 == 0
    quaternion = torch.where(other[:, None], compose(truth.quaternion, HALF_TURN), truth.quaternion)
    found = Poses(quaternion, truth.shift_angstrom)
    alignment = PoseAlignment.of(found, truth, NEAR_SYMMETRY)
    errors = alignment.errors(quaternion, truth.quaternion)
    assert errors["median_error_modulo_deg"] < 0.1 and errors["mean_error_modulo_deg"] < 0.1
    assert errors["median_error_deg"] < 0.1 and errors["mean_error_deg"] == pytest.approx(180 / 3, abs=1)


def test_map_rotated_by_the_pseudo_symmetry_is_rotated_back(known, truth):
    """All poses at the pseudo-symmetry mate: only the map shows it, not the pose errors."""
    found = Poses(compose(truth.quaternion, HALF_TURN), truth.shift_angstrom)
    volume = move_volume(known, HALF_TURN, torch.zeros(3))
    alignment = PoseAlignment.of(found, truth, NEAR_SYMMETRY)
    assert map_agreement(volume, known, PIXEL, alignment).fsc[1:BOX // 3].min() > 0.98


def test_random_poses_have_large_errors(truth):
    unrelated = Poses(random_quaternions(N, torch.Generator().manual_seed(9)).double(), truth.shift_angstrom)
    errors = PoseAlignment.of(unrelated, truth, NEAR_SYMMETRY).errors(unrelated.quaternion, truth.quaternion)
    assert errors["median_error_modulo_deg"] > 60
