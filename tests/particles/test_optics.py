"""Optics groups with pixel sizes, aberrations and magnifications of their own: the images become one set, as RELION's do."""

import logging
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_core import jobs
from cryoforum_core.config import ImageInputConfig, ReconstructConfig
from cryoforum_core.errors import InputError
from cryoforum_core.geometry.poses import displacement_px
from cryoforum_core.geometry.rotations import angular_distance_deg
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.ctf import ctf_2d
from cryoforum_core.imaging.fourier import fft_image, ifft_image
from cryoforum_core.imaging.noise_spectrum import noise_power_spectrum
from cryoforum_core.imaging.resample import resample_volume
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.matching.matching_model import MatchingModel
from cryoforum_core.mrc import MrcStack, read_map, write_map
from cryoforum_core.particles.dataset import load_particles, read_poses
from cryoforum_core.particles.fields import pose_columns
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.particles.optics import ImageCorrection, ImageGroup, read_correction, read_magnification
from cryoforum_core.particles.star import read_star
from cryoforum_core.particles.table import ParticleTable

from .recorded_images import PIXEL, Microscope, molecule, record

MAGNIFICATION = np.array([[1.02, 0.012], [-0.006, 0.975]])
COMATIC = Microscope(tilt_mrad=(2.5, -1.5), trefoil=120.0)
ALL_AT_ONCE = Microscope(tilt_mrad=(1.5, -1.0), trefoil=120.0, fourfold=500.0, magnification=MAGNIFICATION)
MIXED = [Microscope(tilt_mrad=(1.5, -1.0)), Microscope(pixel=2.6, box=56, trefoil=120.0, voltage_kv=200.0),
         Microscope(pixel=2.3, box=66, fourfold=500.0, magnification=MAGNIFICATION)]
CPU = torch.device("cpu")


def without_aberrations(star):
    """The same particles, with an optics table that says nothing of aberrations and magnification."""
    table = ParticleTable.read(star)
    optics = {name: values for name, values in table.optics.columns.items()
              if not name.startswith(("rlnBeamTilt", "rlnMagMat")) and "Zernike" not in name}
    ParticleTable.from_columns(table.particles.columns, optics).write(star.parent / "ignored.star")
    return star.parent / "ignored.star"


def test_a_plain_set_needs_no_correction(tmp_path):
    """One group whose columns say that there is nothing: the images are those of the stack, bit for bit."""
    particles = load_particles(record(tmp_path, [Microscope()], 4)[0])
    assert particles.correction is None and particles.ctf.even_zernike is None
    with MrcStack(tmp_path / "group1.mrcs") as stack:
        assert torch.equal(particles.images([2, 0]), torch.from_numpy(stack.read(np.array([2, 0]))))


def refined_errors(star, quaternion, n=40):
    """Median errors in degrees and Angstrom after refinement against the true map, from the true poses."""
    particles = load_particles(star)
    box, pixel = particles.box_size_px, particles.pixel_size_angstrom
    images = ImagePreparation(particles, ImageState(contrast="bright", ctf_state="raw"), box, CPU)
    images_ft, ctf = images.transforms(np.arange(n))
    volume = resample_volume(molecule().float(), PIXEL, pixel, box)
    spectrum = noise_power_spectrum(ifft_image(images_ft), 0.47 * box)
    model = MatchingModel.estimate(volume, images_ft, ctf, spectrum, symmetry_group("c1"), box / 2 - 1, 10.0)
    true_px = displacement_px(particles.poses.shift_angstrom[:n], pixel)
    refined = model.refine_from(model.images(images_ft, ctf), quaternion[:n].float()[:, None], true_px[:, None])
    turn = angular_distance_deg(refined.quaternion[:, 0], quaternion[:n].float())
    return turn.median().item(), pixel * (refined.displacement_px[:, 0] - true_px).norm(dim=-1).median().item()


@pytest.mark.parametrize("microscopes, wrong_deg, wrong_angstrom", [
    ([Microscope(tilt_mrad=(4.0, -2.0), trefoil=200.0)], 0.0, 0.6), ([Microscope(magnification=MAGNIFICATION)], 0.4, 0.0),
    (MIXED, 0.0, 0.0)], ids=["coma and trefoil", "magnification", "groups that differ in all"])
def test_matching_finds_the_true_poses_only_with_the_correction(tmp_path, microscopes, wrong_deg, wrong_angstrom):
    """Measured with it: 0.12 to 0.15 degrees and 0.03 to 0.05 A."""
    star, quaternion = record(tmp_path, microscopes, 42, noise=0.5)
    turn_deg, shift_angstrom = refined_errors(star, quaternion)
    assert turn_deg < 0.25 and shift_angstrom < 0.1
    ignored_deg, ignored_angstrom = refined_errors(without_aberrations(star), quaternion)
    assert ignored_deg > max(turn_deg, wrong_deg) and ignored_angstrom > max(shift_angstrom, wrong_angstrom)


def fsc_of_maps(volume, pixel, other, other_pixel):
    return fourier_shell_correlation(volume, resample_volume(other, other_pixel, pixel, len(volume)))


def our_map(star, out):
    run = jobs.reconstruct(ReconstructConfig(out=out, particles=star))
    volume, pixel = read_map(run.map)
    return torch.from_numpy(volume), pixel


def relions_map(star):
    subprocess.run(["relion_reconstruct", "--i", star.name, "--o", "relion.mrc", "--ctf", "--pad", "2"], cwd=star.parent,
                   check=True, capture_output=True)
    volume, pixel = read_map(star.parent / "relion.mrc")
    return torch.from_numpy(volume), pixel


@pytest.mark.parametrize("microscopes", [[ALL_AT_ONCE], MIXED], ids=["one group", "three groups"])
def test_map_agrees_with_the_one_that_relion_makes_of_the_same_groups(tmp_path, microscopes):
    """relion_reconstruct undoes all of it: the FSC of its map with the molecule is 0.998 and more, and shows that the images
    are what RELION understands. Ours with its map, measured: 0.991 and more to nine tenths of the Nyquist limit, the same
    as for images without aberrations; without the correction 0.23 (one group) and 0.94 (three)."""
    # a field of view of 190 A, into which the CTF's delocalised signal fits
    wide = [replace(each, box=each.box + 2 * round(64 / each.pixel / 2)) for each in microscopes]
    star, _ = record(tmp_path, wide, 200)
    relion, relion_pixel = relions_map(star)
    assert fsc_of_maps(relion, relion_pixel, molecule().float(), PIXEL)[1:30].min() > 0.99
    ours, pixel = our_map(star, tmp_path / "ours")
    shells = slice(1, int(0.9 * len(ours) / 2))
    assert fsc_of_maps(ours, pixel, relion, relion_pixel)[shells].min() > 0.98
    ignored, _ = our_map(without_aberrations(star), tmp_path / "ignored")
    assert fsc_of_maps(ignored, pixel, relion, relion_pixel)[shells].min() < 0.96


def test_ctf_with_symmetric_aberrations_is_relion_projects(tmp_path):
    """The projections of a point are CTFs: the largest difference measured is 0.0003."""
    star, _ = record(tmp_path, [Microscope(fourfold=500.0)], 5, shift_rms_angstrom=0.0)
    point = np.zeros((64, 64, 64), np.float32)
    point[32, 32, 32] = 1.0
    write_map(tmp_path / "point.mrc", point, PIXEL)
    subprocess.run(["relion_project", "--i", "point.mrc", "--o", "relion", "--ang", star.name, "--ctf", "--pad", "2"],
                   cwd=tmp_path, check=True, capture_output=True)
    with MrcStack(tmp_path / "relion.mrcs") as stack:
        theirs = fft_image(torch.from_numpy(stack.read(np.arange(5)))).real
    ours = ctf_2d(load_particles(star).ctf, 64, PIXEL)
    # relion_project leaves the corners empty; its interpolation scales the point
    inside = torch.hypot(torch.fft.fftfreq(64, 1 / 64)[:, None], torch.arange(33.0)) < 30
    ours, theirs = ours[:, inside], theirs[:, inside]
    scale = (ours * theirs).sum() / ours.square().sum()
    assert (theirs - scale * ours).abs().max() < 1e-3


def test_groups_keep_their_own_voltage_and_come_to_the_finest_grid_that_all_fill(tmp_path, caplog):
    """The largest pixels, 2.6 A, and the smallest field of view, 64 px of 2 A = 49.2 px of 2.6 A."""
    with caplog.at_level(logging.INFO, logger="cryoforum"):
        particles = load_particles(record(tmp_path, MIXED, 6)[0])
    assert (particles.box_size_px, particles.pixel_size_angstrom) == (48, 2.6)
    assert particles.ctf.voltage_kv.tolist() == [300.0, 200.0, 300.0] * 2
    assert "64 px of 2 A (2 images)" in caplog.text and "48 px of 2.6 A" in caplog.text
    assert "magnification of 2 of 6" in caplog.text and "antisymmetric aberrations of 4 of 6" in caplog.text
    images = particles.images([4, 0, 2])
    assert images.shape == (3, 48, 48)
    part = particles.subset([4, 0])
    assert torch.equal(part.images([0]), images[:1]) and part.box_size_px == 48
    torch.testing.assert_close(particles.batch([2]).images, images[2:])


def test_what_is_written_keeps_the_optics_table_and_each_particles_origins(tmp_path):
    """The origins of distorted images are RELION's again; all else is the text that was read."""
    star, _ = record(tmp_path, MIXED, 9)
    particles = load_particles(star)
    particles.save(tmp_path / "saved.star", particles.poses)
    before, after = ParticleTable.read(star), ParticleTable.read(tmp_path / "saved.star")
    assert {name: values.tolist() for name, values in read_star(star)[0].columns.items()} == {
        name: values.tolist() for name, values in read_star(tmp_path / "saved.star")[0].columns.items()}
    for name in ("rlnOriginXAngst", "rlnOriginYAngst"):
        np.testing.assert_allclose(after.floats(name), before.floats(name), atol=1e-5)
    assert after.strings("rlnImageName").tolist() == before.strings("rlnImageName").tolist()
    recorded = np.stack([before.floats("rlnOriginXAngst"), before.floats("rlnOriginYAngst")], 1)[2]
    np.testing.assert_allclose(MAGNIFICATION.T @ particles.poses.shift_angstrom[2].double().numpy(), recorded, atol=1e-4)


def test_origins_in_pixels_are_those_of_each_particles_own_pixels():
    columns = {"rlnImageName": ["1@a.mrcs", "2@a.mrcs"], "rlnPixelSize": [1.0, 2.0], "rlnOriginX": [3.0, 3.0],
               "rlnOriginY": [0.0, 0.0], "rlnAngleRot": [0, 0], "rlnAngleTilt": [0, 0], "rlnAnglePsi": [0, 0]}
    table = ParticleTable.from_columns(columns)
    poses = read_poses(table)
    assert poses.shift_angstrom[:, 0].tolist() == [3.0, 6.0]
    assert pose_columns(table, poses, 2.0)["rlnOriginX"].tolist() == [3.0, 3.0]
    # a pixel size given by the user is that of all
    assert read_poses(table, 4.0).shift_angstrom[:, 0].tolist() == [12.0, 12.0]


def test_pixel_sizes_within_one_per_cent_are_told_apart(tmp_path):
    particles = load_particles(record(tmp_path, [Microscope(pixel=2.0), Microscope(pixel=2.018)], 4)[0])
    assert particles.pixel_size_angstrom == 2.018 and particles.box_size_px == 62


def test_ctf_state_none_leaves_phases_alone_and_a_given_pixel_size_is_that_of_all(tmp_path):
    star, _ = record(tmp_path, [COMATIC], 2)
    assert load_particles(star, ImageInputConfig(ctf_state="none")).correction is None
    star, _ = record(tmp_path, [Microscope(), Microscope(pixel=2.6)], 4)
    particles = load_particles(star, ImageInputConfig(pixel_size_angstrom=3.0))
    assert particles.correction is None and particles.pixel_size_angstrom == 3.0


def table(**optics):
    return ParticleTable.from_columns({"rlnImageName": ["1@a.mrcs"] * 2, "rlnOpticsGroup": [1, 1]},
                                      {"rlnOpticsGroup": [1]} | {name: [value] for name, value in optics.items()})


def correction(table):
    return read_correction(table, np.full(2, 2.0), np.full(2, 64))


@pytest.mark.parametrize("optics, says", [
    ({"rlnOddZernike": "0.1,0.2"}, "rlnOddZernike must be a list of numbers"),
    ({"rlnOddZernike": "[0.1,x]"}, "rlnOddZernike must be a list of numbers"),
    ({"rlnMagMat00": 0, "rlnMagMat01": 0, "rlnMagMat10": 0, "rlnMagMat11": 0}, "must be within 0.25 of 1, 0, 0, 1"),
    ({"rlnBeamTiltX": "nan"}, "must be finite numbers"), ({"rlnBeamTiltX": 0.3}, "needs rlnVoltage")])
def test_values_that_cannot_be_right_are_named(optics, says):
    with pytest.raises(InputError, match=says):
        correction(table(**optics))


def test_columns_without_effect_are_no_correction():
    assert correction(table(rlnOddZernike="[0,0,0]", rlnBeamTiltX=0, rlnMagMat00=1, rlnMagMat11=1, rlnMagMat01=0)) is None
    assert read_magnification(table(rlnMagMat00=1.1)).tolist() == [[[1.1, 0], [0, 1]]] * 2


def test_columns_that_are_not_used_are_named(caplog):
    with caplog.at_level(logging.WARNING, logger="cryoforum"):
        correction(table(rlnCtfBfactor=0, rlnCtfScalefactor=1))
        assert not caplog.text
        correction(table(rlnCtfBfactor=40, rlnCtfScalefactor=0.5))
    assert "NOT used: rlnCtfBfactor, rlnCtfScalefactor" in caplog.text


def test_the_grid_is_the_largest_pixel_and_the_smallest_field_of_view():
    groups = ImageGroup(1.0, 300), ImageGroup(1.5, 180), ImageGroup(1.2, 240)
    assert groups[1].field_of_view_angstrom == 270
    plan = ImageCorrection.of_groups(groups, np.array([0, 1, 2, 1]))
    assert (plan.pixel_size_angstrom, plan.box_size_px) == (1.5, 180) and plan.is_needed()
    assert plan.subset([3, 0]).group_of_image.tolist() == [1, 0]
    assert not ImageCorrection.of_groups(groups[1:2], np.zeros(2, dtype=int)).is_needed()
