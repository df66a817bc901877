import csv

import numpy as np
import pytest
import torch

from cryoforum_core.errors import InputError
from cryoforum_core.evaluation.evaluation import compare_poses, join_rows, read_two_maps, write_evaluation
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import (
    compose,
    inverse,
    mirror_hand,
    quaternion_to_matrix,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.volume_frame import mirror_volume, move_volume, rotate_volume
from cryoforum_core.mrc import write_map
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.run_directory import RunDirectory

N = 400
C1 = symmetry_group("c1")


def table(poses, numbers, junk=None, id_column="rlnParticleId", stack="stack.mrcs"):
    euler = poses.euler_deg().double().numpy()
    shift = poses.shift_angstrom.double().numpy()
    columns = {"rlnImageName": [f"{i:06d}@{stack}" for i in numbers], "rlnAngleRot": euler[:, 0],
               "rlnAngleTilt": euler[:, 1], "rlnAnglePsi": euler[:, 2], "rlnOriginXAngst": shift[:, 0],
               "rlnOriginYAngst": shift[:, 1]}
    if id_column:
        columns[id_column] = np.asarray(numbers)
    if junk is not None:
        columns["rlnCryoforumJunkKind"] = junk
    return ParticleTable.from_columns(columns)


@pytest.fixture
def true():
    generator = torch.Generator().manual_seed(0)
    return Poses(random_quaternions(N, generator), 5 * torch.randn(N, 2, generator=generator))


def rotated(poses, angle_deg):
    axis = torch.nn.functional.normalize(torch.randn(len(poses), 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    noise = rotation_vector_to_quaternion(axis * torch.deg2rad(angle_deg)[:, None])
    return Poses(compose(noise, poses.quaternion), poses.shift_angstrom + torch.tensor([3.0, 4.0]))


def test_particles_are_joined_by_id_in_any_order(true):
    angle_deg = torch.linspace(0.1, 20, N)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    estimated = table(rotated(true, angle_deg)[order], (order + 1).tolist())
    errors = compare_poses(estimated, table(true, range(1, N + 1)), C1)
    assert torch.allclose(errors.error_deg, angle_deg[order], atol=0.02)
    assert torch.allclose(errors.shift_error_angstrom, torch.full((N,), 5.0), atol=1e-3)
    summary = errors.summary()
    assert summary["median_error_deg"] == pytest.approx(10, abs=0.2)
    assert summary["fraction_below_5deg"] == pytest.approx(0.25, abs=0.01)
    assert summary["median_shift_error_angstrom"] == pytest.approx(5.0, abs=1e-3)


def test_particles_without_ids_are_joined_by_image_name_without_directories(true):
    estimated = table(true[10:20], range(11, 21), id_column=None, stack="/far/away/stack.mrcs")
    particle, rows = join_rows(estimated, table(true, range(1, N + 1)))
    assert rows.tolist() == list(range(10, 20))
    assert particle[0] == "11@stack.mrcs"


def test_missing_and_repeated_particles_are_refused(true):
    known = table(true[:100], range(1, 101))
    with pytest.raises(InputError, match="300 of 400 particles"):
        compare_poses(table(true, range(1, N + 1)), known, C1)
    with pytest.raises(InputError, match="must be unique"):
        compare_poses(table(true[:2], [7, 7]), known, C1)


def test_junk_is_evaluated_separately(true):
    junk = np.array(["none"] * 300 + ["noise"] * 100)
    angle_deg = torch.cat([torch.full((300,), 2.0), torch.full((100,), 90.0)])
    summary = compare_poses(table(rotated(true, angle_deg), range(1, N + 1)), table(true, range(1, N + 1), junk),
                            C1).summary()
    assert summary["mean_error_deg"] == pytest.approx(2.0, abs=0.01) and summary["n_compared"] == 300
    assert summary["with_junk"]["mean_error_deg"] == pytest.approx(24.0, abs=0.05)
    assert summary["with_junk"]["n_compared"] == N
    with pytest.raises(InputError, match="must not be junk"):
        compare_poses(table(true[300:], range(301, N + 1)), table(true, range(1, N + 1), junk), C1)


def test_symmetry_equivalent_poses_have_no_error(true):
    group = symmetry_group("d2")
    mates = Poses(compose(true.quaternion, group[torch.arange(N) % 4]), true.shift_angstrom)
    known = table(true, range(1, N + 1))
    assert compare_poses(table(mates, range(1, N + 1)), known, group).error_deg.max() < 0.1
    assert compare_poses(table(mates, range(1, N + 1)), known, C1).error_deg.mean() > 90


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_map_in_another_frame_is_aligned_before_the_fsc(tmp_path, true, is_mirrored):
    axis = torch.arange(32) - 16
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    centres = torch.randn(10, 3, generator=torch.Generator().manual_seed(1)) * 3.5
    volume = sum(torch.exp(-((x - c[0])**2 + (y - c[1])**2 + (z - c[2])**2) / 3) for c in centres)
    rotation = random_quaternions(1, torch.Generator().manual_seed(9))[0]
    # another frame: the map and its poses rotated (and mirrored)
    other_map, quaternion = rotate_volume(volume, rotation), compose(true.quaternion, rotation)
    if is_mirrored:
        other_map, quaternion = mirror_volume(other_map), mirror_hand(quaternion)
    write_map(tmp_path / "estimated.mrc", other_map.numpy(), 3.0)
    write_map(tmp_path / "known.mrc", volume.numpy(), 3.0)
    maps = read_two_maps(tmp_path / "estimated.mrc", tmp_path / "known.mrc")
    estimated = table(Poses(quaternion, true.shift_angstrom), range(1, N + 1))
    run = RunDirectory(tmp_path)
    known = table(true, range(1, N + 1))
    unaligned = write_evaluation(run, compare_poses(estimated, known, C1), maps)
    aligned = write_evaluation(run, compare_poses(estimated, known, C1, align=True, allow_mirror=True), maps)
    assert aligned["median_error_deg"] < 0.1 and aligned["is_mirrored"] is is_mirrored
    assert aligned["resolution_at_fsc_0.5_angstrom"] < 7.5 < 12 < unaligned["resolution_at_fsc_0.5_angstrom"]
    if not is_mirrored:
        expected = inverse(rotation)
        assert abs(float((torch.tensor(aligned["frame_quaternion"]) * expected).sum())) > 0.9999
    with open(run.fsc) as file:
        assert [float(row["fsc"]) for row in csv.DictReader(file)][1] > 0.99
    with open(tmp_path / "errors.csv") as file:
        assert len(list(csv.DictReader(file))) == N


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_rotated_and_shifted_map_is_aligned_by_its_poses(tmp_path, true, is_mirrored):
    axis, pixel_size = torch.arange(32) - 16, 3.0
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    centres = torch.randn(10, 3, generator=torch.Generator().manual_seed(1)) * 3
    volume = sum(torch.exp(-((x - c[0])**2 + (y - c[1])**2 + (z - c[2])**2) / 5) for c in centres)
    rotation, shift_px = random_quaternions(1, torch.Generator().manual_seed(9))[0], torch.tensor([2.3, -1.6, 3.1])
    other_map, quaternion = move_volume(volume, rotation, shift_px), compose(true.quaternion, rotation)
    # origins have the opposite sign; mirroring in z leaves x and y unchanged
    origin = true.shift_angstrom + (quaternion_to_matrix(quaternion) @ (pixel_size * shift_px))[:, :2]
    if is_mirrored:
        other_map, quaternion = mirror_volume(other_map), mirror_hand(quaternion)
    write_map(tmp_path / "estimated.mrc", other_map.numpy(), pixel_size)
    write_map(tmp_path / "known.mrc", volume.numpy(), pixel_size)
    maps = read_two_maps(tmp_path / "estimated.mrc", tmp_path / "known.mrc")
    errors = compare_poses(table(Poses(quaternion, origin), range(1, N + 1)), table(true, range(1, N + 1)), C1,
                           align=True, allow_mirror=True)
    run = RunDirectory(tmp_path)
    summary = write_evaluation(run, errors, maps)
    assert errors.shift_error_angstrom.max() < 0.02 and summary["is_mirrored"] is is_mirrored
    assert torch.tensor(summary["frame_translation_angstrom"]).norm() == pytest.approx(3 * float(shift_px.norm()), 0.01)
    with open(run.fsc) as file:
        assert min(float(row["fsc"]) for row in list(csv.DictReader(file))[:9]) > 0.98


def test_maps_of_different_boxes_are_refused(tmp_path):
    write_map(tmp_path / "a.mrc", np.zeros((16,) * 3), 3.0)
    write_map(tmp_path / "b.mrc", np.zeros((18,) * 3), 3.0)
    with pytest.raises(InputError, match="same box and pixel size"):
        read_two_maps(tmp_path / "a.mrc", tmp_path / "b.mrc")
    with pytest.raises(InputError) as caught:
        read_two_maps(tmp_path / "absent.mrc", tmp_path / "gone.mrc")
    assert len(caught.value.problems) == 2


def test_coverage_of_the_bounds_excludes_junk(true):
    angle_deg, junk = torch.linspace(0.1, 20, N), ["none", "noise"] * (N // 2)
    known = table(true, range(1, N + 1), junk)
    estimated = table(rotated(true, angle_deg), range(1, N + 1))
    assert "error_bound_held" not in compare_poses(estimated, known, C1).summary()
    bound = np.where(np.arange(N) % 2, 0.0, 10.0)  # the bounds of junk are too small
    estimated = estimated.with_columns({"rlnCryoforumErrorBound": bound, "rlnCryoforumShiftErrorBound": np.full(N, 4.9)})
    summary = compare_poses(estimated, known, C1).summary()
    assert abs(summary["error_bound_held"] - 0.5) < 0.02 and summary["shift_error_bound_held"] == 0
