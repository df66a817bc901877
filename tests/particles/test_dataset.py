"""A set of particles as a whole: what is read, and that every problem is reported at once."""

import logging

import numpy as np
import pytest
import torch

from cryoforum_core.config import ImageInputConfig
from cryoforum_core.errors import InputError
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.imaging.ctf import ctf_2d
from cryoforum_core.mrc import write_stack
from cryoforum_core.particles.dataset import load_particles, read_poses, read_table
from cryoforum_core.particles.table import ParticleTable

N, BOX, PIXEL = 6, 8, 2.5


def columns_30(n=N):
    return {"rlnImageName": [f"{i + 1:06d}@a.mrcs" for i in range(n)],
            "rlnDefocusU": np.linspace(10000.0, 20000.0, n), "rlnDefocusV": np.linspace(9000.0, 19000.0, n),
            "rlnDefocusAngle": np.full(n, 30.0), "rlnVoltage": np.full(n, 300.0),
            "rlnSphericalAberration": np.full(n, 2.7), "rlnAmplitudeContrast": np.full(n, 0.1),
            "rlnDetectorPixelSize": np.full(n, 5.0), "rlnMagnification": np.full(n, 5e4 / PIXEL),
            "rlnAngleRot": np.linspace(-170.0, 170.0, n), "rlnAngleTilt": np.linspace(5.0, 175.0, n),
            "rlnAnglePsi": np.linspace(0.0, 90.0, n), "rlnOriginX": np.linspace(-2.0, 2.0, n),
            "rlnOriginY": np.ones(n), "rlnRandomSubset": 1 + np.arange(n) % 2}


def pictures(n=N, box=BOX):
    return np.random.default_rng(0).normal(size=(n, box, box))


@pytest.fixture
def directory(tmp_path):
    write_stack(tmp_path / "a.mrcs", pictures(), PIXEL)
    return tmp_path


def write_table(directory, changes=None, without=(), optics=None, n=N):
    columns = {name: values for name, values in {**columns_30(n), **(changes or {})}.items() if name not in without}
    ParticleTable.from_columns(columns, optics).write(directory / "in.star")
    return directory / "in.star"


def problems_of(path, **options):
    with pytest.raises(InputError) as caught:
        load_particles(path, **options)
    return caught.value.problems


def test_relion_30(directory):
    particles = load_particles(write_table(directory), require_poses=True)
    assert len(particles) == N and particles.box_size_px == BOX
    assert particles.pixel_size_angstrom == pytest.approx(PIXEL)
    assert particles.ctf.defocus_u_angstrom[1].item() == 12000.0 and particles.ctf.phase_shift_deg[0].item() == 0.0
    # rlnOriginX of RELION 3.0 is in pixels
    assert particles.poses.shift_angstrom[0].tolist() == pytest.approx([-2.0 * PIXEL, PIXEL])
    assert particles.poses.euler_deg()[1].tolist() == pytest.approx([-102.0, 39.0, 18.0], abs=1e-3)
    assert particles.half_set.tolist() == [1, 2] * 3 and particles.particle_id.tolist() == [1, 2, 3, 4, 5, 6]


def test_relion_31(directory):
    origins = {"rlnOriginXAngst": np.full(N, 3.0), "rlnOriginYAngst": np.full(N, -4.0),
               "rlnOpticsGroup": np.ones(N, dtype=int)}
    optics = {"rlnOpticsGroup": [1], "rlnImagePixelSize": [PIXEL], "rlnVoltage": [200.0]}
    path = write_table(directory, origins, ("rlnDetectorPixelSize", "rlnMagnification", "rlnVoltage", "rlnOriginX"),
                       optics)
    particles = load_particles(path)
    assert particles.table.version == "3.1" and particles.pixel_size_angstrom == PIXEL
    assert particles.ctf.voltage_kv.tolist() == [200.0] * N
    assert particles.poses.shift_angstrom[2].tolist() == [3.0, -4.0]


def test_a_batch_holds_the_rows_asked_for(directory):
    particles = load_particles(write_table(directory))
    batch = particles.batch([4, 1]).to("cpu")
    assert torch.equal(batch.images, torch.from_numpy(pictures().astype(np.float32))[[4, 1]])
    assert batch.indices.tolist() == [4, 1] and batch.ctf.defocus_u_angstrom.tolist() == [18000.0, 12000.0]
    assert torch.equal(batch.poses.quaternion, particles.poses.quaternion[[4, 1]]) and len(batch) == 2


def test_a_subset_takes_every_field(directory):
    changes = {"rlnImageId": [11, 12, 13, 14, 15, 16]}
    particles = load_particles(write_table(directory, changes))
    for part in (particles.subset(np.array([3, 0])).subset([0]), particles.subset(np.arange(N) == 3)):
        assert len(part) == 1 and part.particle_id.tolist() == [14] and part.half_set.tolist() == [2]
        assert torch.equal(part.images([0]), particles.images([3]))
        assert part.table.strings("rlnImageName").tolist() == ["000004@a.mrcs"]
        assert part.ctf.defocus_u_angstrom.item() == 16000.0
        assert torch.equal(part.poses.shift_angstrom, particles.poses.shift_angstrom[3:4])


def test_particle_ids(directory):
    both = {"rlnParticleId": [6, 5, 4, 3, 2, 1], "rlnImageId": [11, 12, 13, 14, 15, 16]}
    assert load_particles(write_table(directory, both)).particle_id.tolist() == [6, 5, 4, 3, 2, 1]
    (problem,) = problems_of(write_table(directory, {"rlnImageId": [1, 2, 2, 3, 4, 4]}))
    assert "rlnImageId must be different" in problem and "repeats 2; 4" in problem


def test_poses_are_read_where_they_are_and_demanded_where_they_must_be(directory):
    path = write_table(directory, without=("rlnAngleRot", "rlnAngleTilt", "rlnRandomSubset"))
    particles = load_particles(path)
    assert particles.poses is None and particles.half_set is None and particles.batch([0]).poses is None
    (problem,) = problems_of(path, require_poses=True)
    assert "lacks rlnAngleRot, rlnAngleTilt" in problem


def test_without_ctf(directory):
    path = write_table(directory, without=("rlnDefocusU", "rlnVoltage"))
    assert load_particles(path, require_ctf=False).ctf is None
    without = load_particles(path, ImageInputConfig(ctf_state="none"))
    assert torch.equal(ctf_2d(without.ctf, 16, 3.0), torch.ones(len(without), 16, 9))
    (problem,) = problems_of(path)
    assert "lacks rlnDefocusU, rlnVoltage" in problem


@pytest.mark.parametrize(("changes", "message"), [
    ({"rlnDefocusU": [1e4, "nan", 1e4, 1e4, 1e4, 1e4]}, "rlnDefocusU must be a number.* particle 2, and 1 such"),
    ({"rlnDefocusU": np.full(N, 1.5)}, "looks like micrometres"),
    ({"rlnDefocusV": [1e4, 1e4, 1e7, 1e4, 1e4, 1e4]}, "rlnDefocusV must be a number from -20000 to 200000"),
    ({"rlnVoltage": np.full(N, 300000.0)}, "rlnVoltage must be a number from 20 to 2000"),
    ({"rlnDefocusAngle": ["x"] * N}, "rlnDefocusAngle must contain numbers; particle 1"),
    ({"rlnAngleRot": [0, 0, "inf", 0, 0, 0]}, "Angles and origins must be finite.* particle 3"),
    ({"rlnRandomSubset": [1, 2, 0, 1, 2, 3]}, r"rlnRandomSubset must be 1 or 2; .* \[0, 3\]"),
    ({"rlnMagnification": [2e4, 2e4, 2e4, 1e4, 1e4, -1e4]}, "a number above 0; found -5, 2.5, 5 A"),
    ({"rlnMagnification": np.zeros(N)}, "pixel size must be a number above 0"),
    ({"rlnImageName": ["7@a.mrcs"] * N}, "a.mrcs has 6, and the rows refer to image 7"),
    ({"rlnImageName": ["1@gone.mrcs"] * N}, "1 do not: gone.mrcs"),
    ({"rlnImageName": ["a@a.mrcs"] * N}, "rlnImageName must be a number from 1"),
])
def test_each_problem_is_named(directory, changes, message):
    (problem,) = problems_of(write_table(directory, changes))
    with pytest.raises(InputError, match=message):
        raise InputError(problem)


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 7, 7), "even box; .* has 7 px"), ((1, 8, 6), "square; .* has 6 x 8 px"), ((1, 12, 12), "group its own; found")])
def test_boxes(directory, shape, message):
    write_stack(directory / "b.mrcs", np.ones(shape), PIXEL)
    names = [f"{i + 1}@a.mrcs" for i in range(N - 1)] + ["1@b.mrcs"]
    with pytest.raises(InputError, match=message):
        load_particles(write_table(directory, {"rlnImageName": names}))


def test_a_stack_cut_short_is_named(directory):
    whole = (directory / "a.mrcs").read_bytes()
    (directory / "a.mrcs").write_bytes(whole[:-100])
    (problem,) = problems_of(write_table(directory))
    assert "a.mrcs" in problem


def test_optics_groups_of_different_pixel_size_and_box(directory):
    """Each group has its own: one grid for all. Boxes that differ within a group are a mistake."""
    write_stack(directory / "b.mrcs", pictures(box=16), 2.8)
    optics = {"rlnOpticsGroup": [1, 2], "rlnImagePixelSize": [2.5, 2.8]}
    names = [f"{i % 3 + 1:06d}@{'aaabbb'[i]}.mrcs" for i in range(N)]
    options = ("rlnDetectorPixelSize", "rlnMagnification"), optics
    path = write_table(directory, {"rlnImageName": names, "rlnOpticsGroup": [1, 1, 1, 2, 2, 2]}, *options)
    particles = load_particles(path)
    assert (particles.pixel_size_angstrom, particles.box_size_px) == (2.8, 6)
    assert particles.images([0, 5]).shape == (2, 6, 6)
    (problem,) = problems_of(write_table(directory, {"rlnImageName": names, "rlnOpticsGroup": [1, 1, 2, 2, 2, 2]}, *options))
    assert "or each optics group its own" in problem


def test_pixel_size_from_the_header_or_given(directory):
    path = write_table(directory, without=("rlnDetectorPixelSize", "rlnMagnification"))
    assert load_particles(path).pixel_size_angstrom == pytest.approx(PIXEL)
    assert load_particles(path, ImageInputConfig(pixel_size_angstrom=3.0)).pixel_size_angstrom == 3.0
    write_stack(directory / "a.mrcs", pictures(), 0.0)
    (problem,) = problems_of(path)
    assert "pixel size must be known" in problem and "--pixel-size-angstrom" in problem


def test_stacks_whose_headers_differ_in_pixel_size(directory):
    write_stack(directory / "b.mrcs", pictures(1), 3.1)
    path = write_table(directory, {"rlnImageName": [f"{i + 1}@a.mrcs" for i in range(N - 1)] + ["1@b.mrcs"]})
    (problem,) = problems_of(path)
    assert "the table must state each; found 2.5, 3.1 A in the stacks' headers" in problem
    assert load_particles(path, ImageInputConfig(pixel_size_angstrom=PIXEL)).pixel_size_angstrom == PIXEL


def test_a_header_that_disagrees_is_mentioned(directory, caplog):
    write_stack(directory / "a.mrcs", pictures(), 1.2)
    with caplog.at_level(logging.WARNING, logger="cryoforum"):
        assert load_particles(write_table(directory)).pixel_size_angstrom == pytest.approx(PIXEL)
    assert "taken to be 2.5 A; headers of stacks say 1.2 A" in caplog.text


def test_all_problems_at_once(directory):
    write_stack(directory / "odd.mrcs", np.ones((1, 7, 7)), PIXEL)
    changes = {"rlnImageName": ["9@odd.mrcs"] * N, "rlnImageId": [1] * N, "rlnRandomSubset": [5] * N,
               "rlnDefocusV": ["nan"] * N}
    path = write_table(directory, changes, without=("rlnAnglePsi", "rlnDetectorPixelSize"))
    text = "\n".join(problems_of(path, require_poses=True))
    for part in ("has 1, and the rows refer to image 9", "even box", "rlnImageId must be different", "1 or 2",
                 "rlnDefocusV must be a number", "lacks rlnAnglePsi"):
        assert part in text


def test_an_empty_set(directory):
    (problem,) = problems_of(write_table(directory, {name: [] for name in columns_30()}, n=0))
    assert "must not be empty" in problem


def test_a_cryosparc_file_is_known_by_its_name(directory):
    with (directory / "in.cs").open("wb") as file:
        np.save(file, np.zeros(2, dtype=[("uid", "<u8"), ("ctf/df1_A", "<f4")]))
    assert read_table(directory / "in.cs").floats("rlnDefocusU").tolist() == [0.0, 0.0]
    assert any("rlnImageName" in problem for problem in problems_of(directory / "in.cs"))


def moved(particles):
    generator = torch.Generator().manual_seed(0)
    return Poses.from_relion(torch.rand(len(particles), 3, generator=generator) * torch.tensor([300.0, 170.0, 300.0]),
                             5.0 * torch.randn(len(particles), 2, generator=generator))


@pytest.mark.parametrize("is_relion_31", [False, True])
def test_saved_poses_are_read_back(directory, is_relion_31):
    optics = {"rlnOpticsGroup": [1], "rlnImagePixelSize": [PIXEL]} if is_relion_31 else None
    particles = load_particles(write_table(directory, {"rlnImageId": [7, 8, 9, 10, 11, 12]}, optics=optics))
    poses = moved(particles)
    particles.save(directory / "out.star", poses, {"rlnCryoforumExpectedError": np.arange(N) / 2})
    again = load_particles(directory / "out.star")
    assert torch.allclose(again.poses.shift_angstrom, poses.shift_angstrom, atol=1e-5)
    assert ((again.poses.quaternion * poses.quaternion).sum(1).abs() > 1 - 1e-6).all()
    assert again.particle_id.tolist() == [7, 8, 9, 10, 11, 12]
    assert again.table.floats("rlnCryoforumExpectedError").tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    # RELION 3.0 reads pixels; a column of pixels in a 3.1 file must not keep the old origins
    in_px = again.table.floats("rlnOriginX") * PIXEL
    assert np.abs(in_px - poses.shift_angstrom[:, 0].numpy()).max() < 1e-5
    assert again.table.has("rlnOriginXAngst") == is_relion_31
    assert again.table.names[:len(particles.table.names)] == particles.table.names


def test_saved_particles_without_ids_get_them(directory):
    particles = load_particles(write_table(directory))
    particles.subset([4, 2]).save(directory / "out.star")
    assert load_particles(directory / "out.star").particle_id.tolist() == [5, 3]


def test_poses_of_a_table_whose_images_are_gone(directory):
    path = write_table(directory)
    expected = load_particles(path).poses
    (directory / "a.mrcs").unlink()
    assert torch.equal(read_poses(read_table(path)).shift_angstrom, expected.shift_angstrom)
    doubled = read_poses(read_table(path), pixel_size_angstrom=2 * PIXEL)
    assert torch.allclose(doubled.shift_angstrom, 2 * expected.shift_angstrom)
    with pytest.raises(InputError, match="lacks rlnAnglePsi"):
        read_poses(read_table(write_table(directory, without=("rlnAnglePsi",))))
