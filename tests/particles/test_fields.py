"""What single columns of a particles' table say, in every form in which RELION and others write them."""

import logging

import numpy as np
import pytest
import torch

from cryoforum_core.errors import InputError
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.particles.fields import (
    MAX_LISTED,
    listed,
    origin_columns,
    particle_id_column,
    particle_pixel_sizes_angstrom,
    pose_columns,
    read_ctf,
    read_half_set,
    read_particle_id,
    read_pixel_size_angstrom,
    read_poses,
)
from cryoforum_core.particles.table import ParticleTable

N = 3
CTF = {"rlnDefocusU": np.full(N, 9000.0), "rlnDefocusV": np.full(N, 8000.0), "rlnDefocusAngle": np.full(N, 30.0),
       "rlnVoltage": np.full(N, 300.0), "rlnSphericalAberration": np.full(N, 2.7), "rlnAmplitudeContrast": np.full(N, 0.1)}
NO_HEADERS = np.array([])


def table(columns, optics=None) -> ParticleTable:
    return ParticleTable.from_columns({"rlnImageName": [f"{i}@a.mrcs" for i in range(1, N + 1)], **columns}, optics)


@pytest.mark.parametrize("columns, expected", [
    ({"rlnImagePixelSize": np.full(N, 1.5)}, 1.5),
    ({"rlnDetectorPixelSize": np.full(N, 5.0), "rlnMagnification": np.full(N, 25000.0)}, 2.0),  # micrometres
    ({"rlnPixelSize": np.full(N, 0.9)}, 0.9)])
def test_every_way_to_state_the_pixel_size_is_read(columns, expected):
    assert read_pixel_size_angstrom(table(columns), NO_HEADERS) == pytest.approx(expected)


def test_headers_state_the_pixel_size_where_the_table_does_not_and_unset_ones_are_passed_over():
    assert read_pixel_size_angstrom(table({}), np.array([0.0, 1.0, 2.5])) == 2.5
    with pytest.raises(InputError, match="--pixel-size-angstrom"):
        read_pixel_size_angstrom(table({}), np.array([0.0, 1.0]))
    assert read_pixel_size_angstrom(table({}), np.array([0.0]), given=3.0) == 3.0


def test_a_pixel_size_that_is_given_overrides_the_file_with_a_warning_about_headers(caplog):
    with caplog.at_level(logging.WARNING, logger="cryoforum"):
        assert read_pixel_size_angstrom(table({"rlnPixelSize": np.full(N, 0.9)}), np.array([2.5]), given=1.2) == 1.2
    assert "1.2 A; headers of stacks say 2.5 A" in caplog.text


def test_of_several_pixel_sizes_the_largest_is_the_sets(caplog):
    several = table({"rlnPixelSize": np.array([1.0, 1.0, 1.2])})
    assert read_pixel_size_angstrom(several, np.array([1.0, 1.2])) == 1.2 and not caplog.text
    assert particle_pixel_sizes_angstrom(several, 1.2).tolist() == [1.0, 1.0, 1.2]
    # given by the user: the file's do not count
    assert particle_pixel_sizes_angstrom(several, 3.0).tolist() == [3.0] * N
    # rounding of the same number
    rounded = table({"rlnPixelSize": [1.06, 1.060001, 1.06]})
    assert particle_pixel_sizes_angstrom(rounded, 1.060001).tolist() == [1.060001] * N


@pytest.mark.parametrize("columns, headers, says", [
    ({"rlnPixelSize": np.array([1.0, 1.0, -1.0])}, NO_HEADERS, "above 0"),
    ({}, np.array([1.3, 1.4]), "or the table must state each; found 1.3, 1.4")])
def test_pixel_sizes_that_are_none_or_differ_in_headers_alone_are_refused(columns, headers, says):
    with pytest.raises(InputError, match=says):
        read_pixel_size_angstrom(table(columns), headers)


def test_ctf_has_every_column_and_a_missing_phase_shift_is_none():
    ctf = read_ctf(table(CTF), required=True)
    assert ctf.defocus_v_angstrom.tolist() == [8000.0] * N and ctf.phase_shift_deg.tolist() == [0.0] * N
    assert read_ctf(table(CTF | {"rlnPhaseShift": np.full(N, 90.0)}), True).phase_shift_deg.tolist() == [90.0] * N


def test_missing_ctf_columns_are_named_where_a_ctf_is_needed():
    without = {name: values for name, values in CTF.items() if name not in ("rlnVoltage", "rlnDefocusV")}
    assert read_ctf(table(without), required=False) is None
    with pytest.raises(InputError, match="lacks rlnDefocusV, rlnVoltage"):
        read_ctf(table(without), required=True)


@pytest.mark.parametrize("name, value, says", [
    ("rlnVoltage", 300_000.0, "20 to 2000 .kV."), ("rlnDefocusU", np.nan, "particle 2, and 1 such"),
    ("rlnAmplitudeContrast", 10.0, "a ratio")])
def test_ctf_values_in_a_wrong_unit_are_named(name, value, says):
    values = CTF[name].copy()
    values[1] = value
    with pytest.raises(InputError, match=says):
        read_ctf(table(CTF | {name: values}), required=True)


def test_defocus_in_micrometres_is_noticed():
    with pytest.raises(InputError, match="looks like micrometres"):
        read_ctf(table(CTF | {"rlnDefocusU": np.full(N, 0.9)}), required=True)


@pytest.mark.parametrize("is_relion_31", [False, True])
def test_poses_that_are_written_as_columns_are_read_back(is_relion_31):
    """Origins in pixels in RELION 3.0, in Angstrom in 3.1."""
    poses = Poses(random_quaternions(N, torch.Generator().manual_seed(0)),
                  torch.tensor([[3.0, -1.0], [0.0, 2.0], [5.0, 5.0]]))
    optics = {"rlnOpticsGroup": [1], "rlnVoltage": [300.0]} if is_relion_31 else None
    before = table({"rlnOpticsGroup": [1] * N} if is_relion_31 else {}, optics)
    columns = pose_columns(before, poses, 2.0)
    assert ("rlnOriginXAngst" in columns) == is_relion_31 and ("rlnOriginX" in columns) != is_relion_31
    again = read_poses(before.with_columns(columns), 2.0, required=True)
    assert (again.quaternion * poses.quaternion).sum(1).abs().min() > 1 - 1e-5
    torch.testing.assert_close(again.shift_angstrom, poses.shift_angstrom)


def test_all_origin_columns_that_a_table_has_are_kept_in_step():
    both = table({"rlnOriginX": np.zeros(N), "rlnOriginXAngst": np.zeros(N)})
    columns = origin_columns(both, np.array([[4.0, 6.0]] * N), 2.0)
    assert columns["rlnOriginX"].tolist() == [2.0] * N and columns["rlnOriginXAngst"].tolist() == [4.0] * N


def test_angles_without_origins_are_centred_and_missing_angles_are_no_poses():
    angles = {name: np.full(N, 10.0) for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")}
    assert read_poses(table(angles), 2.0, required=True).shift_angstrom.tolist() == [[0.0, 0.0]] * N
    angles.pop("rlnAnglePsi")
    assert read_poses(table(angles), 2.0, required=False) is None
    with pytest.raises(InputError, match="lacks rlnAnglePsi"):
        read_poses(table(angles), 2.0, required=True)


def test_poses_that_are_not_finite_are_counted():
    angles = {name: np.array([0.0, np.nan, np.inf]) for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")}
    with pytest.raises(InputError, match="2 particles .* the first is particle 2"):
        read_poses(table(angles), 2.0, required=True)


def test_half_sets_are_1_and_2():
    assert read_half_set(table({})) is None
    assert read_half_set(table({"rlnRandomSubset": [1, 2, 1]})).tolist() == [1, 2, 1]
    with pytest.raises(InputError, match=r"also has \[0, 3\]"):
        read_half_set(table({"rlnRandomSubset": [1, 0, 3]}))


def test_ids_are_our_own_before_those_of_scipion_before_the_row():
    ours, scipion = {"rlnParticleId": [7, 3, 9]}, {"rlnImageId": [4, 5, 6]}
    assert read_particle_id(table({**scipion, **ours})).tolist() == [7, 3, 9]
    assert read_particle_id(table(scipion)).tolist() == [4, 5, 6] and particle_id_column(table(scipion)) == "rlnImageId"
    assert read_particle_id(table({})).tolist() == [1, 2, 3] and particle_id_column(table({})) is None
    with pytest.raises(InputError, match="repeats 7"):
        read_particle_id(table({"rlnParticleId": [7, 3, 7]}))


def test_long_lists_are_cut_and_counted():
    assert listed(["a", "b"]) == "a; b"
    assert listed([str(i) for i in range(MAX_LISTED + 5)]).endswith("; 9 and 5 more")
