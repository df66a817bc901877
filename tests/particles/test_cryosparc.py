"""cryoSPARC's tables, read as RELION's."""

import numpy as np
import pytest
import torch

from cryoforum_core.errors import InputError
from cryoforum_core.geometry.rotations import quaternion_to_matrix, relion_euler_to_quaternion
from cryoforum_core.particles.cryosparc import UID_COLUMN, read_cryosparc

REFINED = [("uid", "<u8"), ("blob/path", "S30"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)),
           ("blob/psize_A", "<f4"), ("blob/sign", "<f4"), ("ctf/exp_group_id", "<u4"), ("ctf/accel_kv", "<f4"),
           ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"),
           ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4"), ("alignments3D/split", "<u4"),
           ("alignments3D/shift", "<f4", (2,)), ("alignments3D/pose", "<f4", (3,)), ("alignments3D/psize_A", "<f4"),
           ("alignments3D/class", "<u4"), ("location/micrograph_path", "S30"),
           ("location/micrograph_shape", "<u4", (2,)), ("location/center_x_frac", "<f4"),
           ("location/center_y_frac", "<f4")]
POSES_RAD = np.array([[2.3386633, -0.25595567, -1.2236784], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@pytest.fixture
def records():
    """Four particles of two exposure groups, extracted at 2 A/px, refined in a box of 4 A/px."""
    records = np.zeros(4, dtype=REFINED)
    records["uid"] = [15494748553812943456, 2, 3, 4]
    records["blob/path"] = [b">J19/extract/a.mrc", b">J19/extract/a.mrc", b"J19/extract/b.mrc", b"J19/extract/b.mrc"]
    records["blob/idx"] = [0, 7, 0, 1]
    records["blob/shape"], records["blob/psize_A"], records["alignments3D/psize_A"] = 180, 2.0, 4.0
    records["ctf/exp_group_id"], records["ctf/accel_kv"] = [5, 5, 9, 9], [200.0, 200.0, 300.0, 300.0]
    records["ctf/cs_mm"], records["ctf/amp_contrast"] = 2.7, 0.07
    records["ctf/df1_A"], records["ctf/df2_A"] = 15000.0, 14000.0
    records["ctf/df_angle_rad"], records["ctf/phase_shift_rad"] = np.pi / 6, np.pi / 2
    records["alignments3D/split"], records["alignments3D/class"] = [1, 0, 0, 1], [0, 0, 2, 2]
    records["alignments3D/shift"], records["alignments3D/pose"] = [[1.5, -2.0], [0, 0], [0, 0], [0, 0]], POSES_RAD
    records["location/micrograph_path"], records["location/micrograph_shape"] = b">mics/m1.mrc", [4000, 6000]
    records["location/center_x_frac"], records["location/center_y_frac"] = 0.25, 0.75
    return records


def read(tmp_path, records):
    with (tmp_path / "particles.cs").open("wb") as file:
        np.save(file, records)
    return read_cryosparc(tmp_path / "particles.cs")


def drop(records, prefix):
    return records[[name for name in records.dtype.names if not name.startswith(prefix)]]


def pyem_expmap(rotation_vector):
    """pyem's geom/convert_numba.py, written out: Rodrigues' formula with the cross matrix of -w."""
    theta = np.linalg.norm(rotation_vector)
    x, y, z = rotation_vector / max(theta, 1e-16)
    cross = np.array([[0, z, -y], [-z, 0, x], [y, -x, 0]])
    return np.eye(3) + np.sin(theta) * cross + (1 - np.cos(theta)) * cross @ cross


def test_poses_are_those_of_pyem(tmp_path, records):
    table = read(tmp_path, records)
    euler_deg = np.stack([table.floats(name) for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")], axis=1)
    matrices = quaternion_to_matrix(relion_euler_to_quaternion(torch.from_numpy(euler_deg))).numpy()
    expected = np.stack([pyem_expmap(pose) for pose in POSES_RAD])
    assert np.abs(matrices - expected).max() < 1e-6


def test_shifts_are_pixels_of_the_alignment(tmp_path, records):
    table = read(tmp_path, records)
    assert table.floats("rlnOriginXAngst").tolist() == [6.0, 0.0, 0.0, 0.0]
    assert table.floats("rlnOriginYAngst").tolist() == [-8.0, 0.0, 0.0, 0.0]


def test_images_ids_and_counting_from_one(tmp_path, records):
    table = read(tmp_path, records)
    assert table.strings("rlnImageName").tolist() == ["000001@J19/extract/a.mrc", "000008@J19/extract/a.mrc",
                                                      "000001@J19/extract/b.mrc", "000002@J19/extract/b.mrc"]
    assert table.strings(UID_COLUMN).tolist() == ["15494748553812943456", "2", "3", "4"]
    assert table.integers("rlnRandomSubset").tolist() == [2, 1, 1, 2]
    assert table.integers("rlnClassNumber").tolist() == [1, 1, 3, 3]


def test_ctf_and_optics_groups(tmp_path, records):
    table = read(tmp_path, records)
    assert table.version == "3.1" and len(table.optics) == 2
    assert table.floats("rlnVoltage").tolist() == [200.0, 200.0, 300.0, 300.0]
    assert table.integers("rlnOpticsGroup").tolist() == [1, 1, 2, 2]
    assert table.floats("rlnImagePixelSize").tolist() == [2.0] * 4
    assert table.floats("rlnDefocusU")[0] == 15000.0 and table.floats("rlnDefocusV")[0] == 14000.0
    assert table.floats("rlnDefocusAngle")[0] == pytest.approx(30.0, abs=1e-5)
    assert table.floats("rlnPhaseShift")[0] == pytest.approx(90.0, abs=1e-5)


def test_boxes_of_one_pixel_size_are_groups(tmp_path, records):
    records["ctf/exp_group_id"], records["ctf/accel_kv"] = 5, 300.0
    records["blob/shape"] = np.array([180, 180, 200, 200])[:, None]
    assert read(tmp_path, records).integers("rlnOpticsGroup").tolist() == [1, 1, 2, 2]


def test_aberrations_that_are_not_applied_are_named(tmp_path, records, caplog):
    """Global CTF Refinement's fields; zeros, and the matrix of no magnification, are nothing to warn of."""
    added = [("ctf/tilt_A", "<f4", (2,)), ("ctf/trefoil_A", "<f4", (2,)), ("ctf/tetra_A", "<f4", (4,)),
             ("ctf/anisomag", "<f4", (4,))]
    more = np.zeros(4, dtype=REFINED + added)
    for name in records.dtype.names:
        more[name] = records[name]
    read(tmp_path, more)
    more["ctf/anisomag"] = [1, 0, 0, 1]
    read(tmp_path, more)
    assert not caplog.text
    more["ctf/tilt_A"][2], more["ctf/anisomag"] = [2300.0, 0.0], [0.01, 0.0, 0.0, -0.01]
    read(tmp_path, more)
    assert "NOT used: ctf/tilt_A (beam tilt), ctf/anisomag (anisotropic magnification)" in caplog.text
    assert "trefoil_A" not in caplog.text and "CtfRefine" in caplog.text


def test_coordinates_are_pixels_from_the_upper_left(tmp_path, records):
    table = read(tmp_path, records)
    assert table.strings("rlnMicrographName")[0] == "mics/m1.mrc"
    assert table.floats("rlnCoordinateX")[0] == 1500.0 and table.floats("rlnCoordinateY")[0] == 1000.0


def test_two_dimensional_alignment_gives_psi_only(tmp_path, records):
    dtype = [("alignments2D/pose", "<f4"), ("alignments2D/shift", "<f4", (2,)), ("alignments2D/psize_A", "<f4"),
             *[(name, records.dtype[name]) for name in drop(records, "alignments3D").dtype.names]]
    flat = np.zeros(4, dtype=dtype)
    for name in drop(records, "alignments3D").dtype.names:
        flat[name] = records[name]
    flat["alignments2D/pose"], flat["alignments2D/shift"], flat["alignments2D/psize_A"] = np.pi / 2, 3.0, 2.0
    table = read(tmp_path, flat)
    assert table.floats("rlnAnglePsi")[0] == pytest.approx(90.0, abs=1e-5)
    assert table.floats("rlnOriginXAngst")[0] == 6.0 and not table.has("rlnAngleRot")


def test_unaligned_and_unsplit_sets(tmp_path, records):
    assert not read(tmp_path, drop(records, "alignments3D")).has("rlnAnglePsi")
    records["alignments3D/split"] = 0
    assert not read(tmp_path, records).has("rlnRandomSubset")


def test_the_table_is_written_as_star(tmp_path, records):
    from cryoforum_core.particles.table import ParticleTable

    table = read(tmp_path, records)
    table.write(tmp_path / "out.star")
    again = ParticleTable.read(tmp_path / "out.star")
    assert again.names == table.names and again.strings(UID_COLUMN)[0] == "15494748553812943456"


def test_pickles_and_other_files_are_refused(tmp_path):
    path = tmp_path / "bad.cs"
    with path.open("wb") as file:
        np.save(file, np.array([{"uid": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="of numbers and texts"):
        read_cryosparc(path)
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match="must be a cryoSPARC"):
        read_cryosparc(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="particles with a uid"):
        read_cryosparc(path)
    with pytest.raises(InputError, match="must exist"):
        read_cryosparc(tmp_path / "none.cs")
