import subprocess

import mrcfile
import numpy as np
import pytest
import torch

from cryoforum_core.catalogue import SESSION_JUNK_KINDS
from cryoforum_core.config import JUNK_KINDS, SimulateConfig
from cryoforum_core.errors import InputError
from cryoforum_core.geometry.rotations import quaternion_to_matrix
from cryoforum_core.imaging.fourier import fft_image, ifft_image, radius_px, shell_average, shift_phase
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.simulate import Molecule, load_molecule, noise_images, simulate
from cryoforum_core.particles.simulation_plan import plan_simulation
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.run_directory import RunDirectory

BOX, PIXEL = 48, 4.0


@pytest.fixture(scope="module")
def molecule():
    """An asymmetric heap of blobs within a third of the box."""
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    centres = torch.randn(12, 3, generator=torch.Generator().manual_seed(4)) * 4.5
    centres -= centres.mean(dim=0)
    return Molecule(sum(torch.exp(-((x - c[0])**2 + (y - c[1])**2 + (z - c[2])**2) / 6) for c in centres), PIXEL)


@pytest.fixture(scope="module")
def other():
    volume = torch.zeros(BOX, BOX, BOX)
    volume[18:30, 22:26, 14:34] = 1000.0  # in other units
    return Molecule(volume, PIXEL)


def run_simulation(path, molecule, other=None, **options):
    config = SimulateConfig(out=path, **options)
    run = RunDirectory(path)
    run.prepare(config)
    return run, simulate(config, run, molecule, other)


def images_of(run):
    return mrcfile.read(run.path / "particles.mrcs")


def kinds_of(run):
    return ParticleTable.read(run.truth).strings("rlnCryoforumJunkKind")


# amplitude contrast 1 and no defocus or aberration: a CTF of 1 everywhere
NO_CTF = {"spherical_aberration_mm": 0.0, "amplitude_contrast": 1.0, "defocus_min_angstrom": 0.0,
          "defocus_max_angstrom": 0.0, "astigmatism_angstrom": 0.0}


@pytest.mark.parametrize("ctf", [{}, NO_CTF], ids=["ctf", "no-ctf"])
def test_clean_images_are_those_of_relion_project(tmp_path, molecule, ctf):
    """Same map, poses, shifts and CTFs: every image correlates with RELION's to 0.999, and has its scale."""
    run, _ = run_simulation(tmp_path / "run", molecule, n_particles=40, snr=float("inf"), seed=3, **ctf)
    ours = images_of(run)
    command = ["relion_project", "--i", "map.mrc", "--o", "relion", "--ang", "truth.star", "--angpix", str(PIXEL),
               "--pad", "2"] + ([] if ctf else ["--ctf"])
    subprocess.run(command, cwd=run.path, check=True, capture_output=True)
    theirs = mrcfile.read(run.path / "relion.mrcs")
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, theirs, strict=True)]
    assert min(correlation) > 0.999
    scale = (ours * theirs).sum() / (theirs * theirs).sum()
    assert scale == pytest.approx(1.0, abs=0.01)


def test_shift_of_the_wrong_sign_is_not_relions(tmp_path, molecule):
    run, _ = run_simulation(tmp_path / "run", molecule, n_particles=20, snr=float("inf"), shift_rms_px=3.0)
    truth = ParticleTable.read(run.truth)
    wrong = {name: -truth.floats(name) for name in ("rlnOriginXAngst", "rlnOriginYAngst")}
    truth.with_columns(wrong).write(run.path / "wrong.star")
    subprocess.run(["relion_project", "--i", "map.mrc", "--o", "relion", "--ang", "wrong.star", "--angpix", str(PIXEL),
                    "--ctf"], cwd=run.path, check=True, capture_output=True)
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1]
                   for a, b in zip(images_of(run), mrcfile.read(run.path / "relion.mrcs"), strict=True)]
    assert np.median(correlation) < 0.9


@pytest.mark.parametrize("noise", ["white", "coloured"])
def test_signal_and_noise_have_the_stated_variances(tmp_path, molecule, noise):
    options = {"n_particles": 300, "seed": 5, "snr": 0.4, "noise": noise}
    noisy, summary = run_simulation(tmp_path / "noisy", molecule, **options)
    clean, _ = run_simulation(tmp_path / "clean", molecule, **options | {"snr": float("inf")})
    clean_images = images_of(clean) * np.sqrt(summary["snr"] / images_of(clean).var())
    difference = images_of(noisy) - clean_images
    assert difference.var() == pytest.approx(1.0, rel=0.01)
    assert clean_images.var() / difference.var() == pytest.approx(0.4, rel=0.01)
    assert summary["snr"] == pytest.approx(0.4, rel=0.02)


def test_noise_is_white_unless_it_is_to_be_coloured():
    def shells(is_coloured):
        images = noise_images(200, 32, is_coloured, torch.Generator().manual_seed(0))
        return shell_average(fft_image(images).abs().square().mean(0), 32) / 32**2

    assert (shells(False) - 1).abs().max() < 0.15
    coloured = shells(True)
    assert coloured[1] > 4 * coloured[15] and coloured[15] < 1
    assert radius_px(32).max() > 16  # the shells end at the inscribed circle


def test_files_are_a_complete_particle_set_without_poses(tmp_path, molecule):
    run, summary = run_simulation(tmp_path / "run", molecule, n_particles=130)
    particles = load_particles(run.particles)
    assert particles.poses is None and len(particles) == summary["n_particles"] == 130
    assert (particles.box_size_px, particles.pixel_size_angstrom) == (BOX, PIXEL)
    assert particles.ctf.mean_defocus_angstrom.min() >= 8000 and particles.ctf.mean_defocus_angstrom.max() <= 20000
    assert sorted(set(particles.half_set.tolist())) == [1, 2]
    table = particles.table
    assert table.has("rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnParticleId")
    assert len(set(table.strings("rlnMicrographName").tolist())) == 2
    truth = load_particles(run.truth, require_poses=True)
    assert truth.poses.shift_angstrom.std() == pytest.approx(2.0 * PIXEL, rel=0.2)
    # Scipion takes a set whose first rlnAngleRot is 0 for a 2-D alignment
    assert abs(truth.table.floats("rlnAngleRot")[0]) > 1e-3


def test_images_without_ctf_are_projections(tmp_path, molecule):
    """--ctf none: what a CTF of 1 in RELION's columns gives, and the columns that say so."""
    stated, _ = run_simulation(tmp_path / "stated", molecule, n_particles=10, snr=float("inf"), **NO_CTF)
    none, _ = run_simulation(tmp_path / "none", molecule, n_particles=10, snr=float("inf"), ctf="none")
    assert not load_particles(none.particles).ctf.has_effect and not load_particles(stated.particles).ctf.has_effect
    truth = load_particles(none.truth, require_poses=True)
    volume = FourierVolume.from_real(torch.from_numpy(mrcfile.read(none.map)))
    phase = shift_phase(-truth.poses.shift_angstrom / PIXEL, BOX)
    assert np.allclose(images_of(none), ifft_image(volume.project(truth.poses.quaternion) * phase), atol=1e-3)
    assert np.allclose(images_of(none), images_of(stated), atol=1e-3 * images_of(stated).std())


def test_padded_ctf_is_that_of_a_larger_image_cropped(tmp_path, molecule):
    """Against the formula of the CTF on a grid of twice the box, written in numpy; the periodic one differs."""
    options = {"n_particles": 8, "snr": float("inf"), "defocus_min_angstrom": 15000.0, "defocus_max_angstrom": 25000.0,
               "astigmatism_angstrom": 0.0, "shift_rms_px": 0.0}
    padded, _ = run_simulation(tmp_path / "padded", molecule, ctf="padded", **options)
    box, _ = run_simulation(tmp_path / "box", molecule, ctf="box", **options)
    truth = load_particles(padded.truth, require_poses=True)
    volume = FourierVolume.from_real(torch.from_numpy(mrcfile.read(padded.map)))
    clean = ifft_image(volume.project(truth.poses.quaternion)).numpy().astype(float)
    expected = [through_padded_ctf(image, defocus) for image, defocus in
                zip(clean, truth.ctf.defocus_u_angstrom.double().numpy(), strict=True)]
    ours = images_of(padded)
    assert np.allclose(ours, expected, atol=1e-3 * np.std(ours))
    assert not np.allclose(images_of(box) / images_of(box).std(), expected / np.std(expected), atol=0.01)


def through_padded_ctf(image, defocus_angstrom, voltage=300e3, cs_angstrom=2.7e7, contrast=0.1):
    wavelength = 12.2643247 / np.sqrt(voltage + voltage**2 * 0.978466e-6)
    size, start = 2 * BOX, BOX // 2
    k = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(size, PIXEL)], indexing="ij"))
    chi = np.pi * wavelength * defocus_angstrom * k**2 - np.pi / 2 * cs_angstrom * wavelength**3 * k**4
    ctf = np.sqrt(1 - contrast**2) * np.sin(chi) + contrast * np.cos(chi)
    larger = np.zeros((size, size))
    larger[start:start + BOX, start:start + BOX] = image
    return np.fft.ifft2(np.fft.fft2(larger) * ctf).real[start:start + BOX, start:start + BOX]


def test_images_without_noise_have_none(tmp_path, molecule):
    """snr inf: variance 1 of the signal alone, and nothing where there is no molecule."""
    run, summary = run_simulation(tmp_path / "run", molecule, n_particles=10, snr=float("inf"), ctf="none")
    assert summary["snr"] is None and images_of(run).var() == pytest.approx(1.0, rel=0.05)
    corner = images_of(run)[:, :2, :2]
    assert np.abs(corner).max() < 0.05


def test_seed_decides_everything(tmp_path, molecule):
    images = [images_of(run_simulation(tmp_path / name, molecule, n_particles=20, seed=seed)[0])
              for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert np.array_equal(images[0], images[1])
    assert not np.allclose(images[0], images[2])


def test_map_has_the_scale_of_the_images(tmp_path, molecule):
    run, _ = run_simulation(tmp_path / "run", molecule, n_particles=10, snr=2.0)
    scale = mrcfile.read(run.map) / molecule.volume.numpy().clip(1e-3)
    assert np.allclose(scale[molecule.volume.numpy() > 0.1], scale.max(), rtol=1e-4)


def test_every_kind_of_junk_is_what_it_says(tmp_path, molecule, other):
    run, summary = run_simulation(tmp_path / "run", molecule, other, n_particles=100, junk_fraction=0.5, snr=1e4,
                                  shift_rms_px=0.0, **NO_CTF)
    assert summary["junk"] == dict.fromkeys(JUNK_KINDS, 10) and summary["n_junk"] == 50
    images, kind = images_of(run), kinds_of(run)
    variance = images.var(axis=(1, 2))
    assert kind[0] == "none"
    good = np.median(variance[kind == "none"])
    assert (np.ptp(images[kind == "blank"], axis=(1, 2)) == 0).all() and len(np.unique(images[kind == "blank"])) == 10
    assert (np.abs(variance[kind == "noise"] - 1) < 0.2).all()
    assert (variance[kind == "overlap"] > 1.1 * good).all()
    axis = np.arange(BOX) - BOX // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")

    def centre_px(image):
        positive = image.clip(0)
        return np.hypot((positive * x).sum(), (positive * y).sum()) / positive.sum()

    assert np.median([centre_px(image) for image in images[kind == "none"]]) < 3
    assert min(centre_px(image) for image in images[kind == "off-centre"]) > 0.2 * BOX
    strength = np.median(variance[kind == "other-molecule"]) / good
    assert 0.2 < strength < 5  # not a thousand squared: maps come in many units


def test_what_leaves_the_box_does_not_come_in_at_the_other_side(tmp_path, molecule):
    run, _ = run_simulation(tmp_path / "run", molecule, n_particles=40, junk_fraction=0.9, junk_kinds=("off-centre",),
                            snr=1e6, **NO_CTF)
    table = ParticleTable.read(run.truth)
    rows = np.flatnonzero(table.strings("rlnCryoforumJunkKind") == "off-centre")
    displacement_px = -table.floats("rlnOriginXAngst")[rows] / PIXEL
    far_right = rows[displacement_px > 0.3 * BOX]
    assert len(far_right)
    for image in images_of(run)[far_right]:
        assert np.abs(image[:, :BOX // 8]).max() < 0.05 * image.max()


def test_preferred_viewing_directions_lie_around_one_direction(tmp_path):
    def directions(fraction):
        config = SimulateConfig(out=tmp_path, n_particles=2000, preferred_view_fraction=fraction,
                                preferred_view_width_deg=15.0)
        return quaternion_to_matrix(plan_simulation(config, BOX, PIXEL).poses.quaternion)[:, 2]

    def in_cap(fraction):
        return float((directions(fraction)[:, 2] > np.cos(np.deg2rad(15.0))).double().mean())

    assert in_cap(0.0) < 0.03
    assert in_cap(0.7) == pytest.approx(0.7 + 0.3 * 0.017, abs=0.04)


def test_a_session_is_a_complete_particle_set_with_its_truth(tmp_path, molecule):
    """Two optics groups, micrographs, a map of each state; truth.star has what particles.star must not tell."""
    run, summary = run_simulation(tmp_path / "run", molecule, n_particles=300, like="session", session={"micrographs": 10})
    particles, truth = load_particles(run.particles), ParticleTable.read(run.truth)
    assert particles.poses is None and sorted(set(particles.ctf.voltage_kv.tolist())) == [200.0, 300.0]
    known = {"rlnCryoforumJunkKind", "rlnClassNumber", "rlnCryoforumNeighbour", "rlnCryoforumNoiseLevel", "rlnCtfBfactor",
             "rlnCtfScalefactor"}
    assert known <= set(truth.names) and not known & set(particles.table.names)
    assert len(set(particles.table.strings("rlnMicrographName").tolist())) == summary["n_micrographs"] == 10
    good = truth.strings("rlnCryoforumJunkKind") == "none"
    assert summary["n_junk"] == 30 and set(summary["junk"]) == set(SESSION_JUNK_KINDS)
    assert (truth.integers("rlnClassNumber")[good] == 2).sum() == summary["n_minor_state"] > 50
    assert (truth.integers("rlnCryoforumNeighbour")[good] == 1).sum() == summary["n_with_neighbour"] > 30
    whole, minor = mrcfile.read(run.map), mrcfile.read(run.path / "map_minor_state.mrc")
    # 12 % of the density, and of the soft edges of these blobs somewhat more
    assert minor.sum() == pytest.approx(0.86 * whole.sum(), rel=0.03)


def test_images_of_the_minor_state_are_those_of_its_map(tmp_path, molecule):
    run, _ = run_simulation(tmp_path / "run", molecule, n_particles=60, like="session", snr=float("inf"), ctf="none",
                            junk_fraction=0.0, session={"gradient": 0, "neighbours": 0, "domain": 0.3})
    truth = load_particles(run.truth, require_poses=True)
    phase = shift_phase(-truth.poses.shift_angstrom / PIXEL, BOX)

    def correlation(name):
        volume = FourierVolume.from_real(torch.from_numpy(mrcfile.read(run.path / name)))
        expected = ifft_image(volume.project(truth.poses.quaternion) * phase).numpy()
        return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images_of(run), expected, strict=True)])

    is_minor = truth.table.integers("rlnClassNumber") == 2
    assert 0 < is_minor.sum() < 60
    assert np.array_equal(correlation("map_minor_state.mrc") > correlation("map.mrc"), is_minor)


def test_relion_reads_b_factor_and_contrast_from_the_truth(tmp_path, molecule):
    """Images without noise are RELION's projections with the columns of truth.star: same amplitude and fall-off."""
    run, _ = run_simulation(tmp_path / "run", molecule, n_particles=20, like="session", snr=float("inf"), ctf="box",
                            junk_fraction=0.0, session={"gradient": 0, "neighbours": 0, "minor_state": 0,
                                                        "b_factor_max": 800, "voltages_kv": (300.0,)})
    subprocess.run(["relion_project", "--i", "map.mrc", "--o", "relion", "--ang", "truth.star", "--angpix", str(PIXEL),
                    "--ctf", "--pad", "2"], cwd=run.path, check=True, capture_output=True)
    theirs, ours = mrcfile.read(run.path / "relion.mrcs"), images_of(run)
    assert min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, theirs, strict=True)) > 0.995
    assert (ours * theirs).sum((1, 2)) / (theirs * theirs).sum((1, 2)) == pytest.approx(np.ones(20), abs=0.02)


def test_a_clean_set_tells_nothing_of_a_session(tmp_path, molecule):
    run, summary = run_simulation(tmp_path / "run", molecule, n_particles=20)
    assert not {"rlnClassNumber", "rlnCtfBfactor"} & set(ParticleTable.read(run.truth).names)
    assert "n_micrographs" not in summary and not (run.path / "map_minor_state.mrc").exists()


def write_map(path, size, pixel):
    volume = np.zeros((size,) * 3, dtype=np.float32)
    volume[size // 2 - 3:size // 2 + 3, size // 2 - 2:size // 2 + 2, size // 2 - 4:size // 2 + 4] = 1
    with mrcfile.new(path) as file:
        file.set_data(volume)
        file.voxel_size = pixel
    return path


def test_map_is_cropped_to_pixel_size_and_box(tmp_path):
    path = write_map(tmp_path / "map.mrc", 60, 2.0)
    as_it_is = load_molecule(path, None, None)
    assert (len(as_it_is.volume), as_it_is.pixel_size_angstrom) == (60, 2.0)
    coarse = load_molecule(path, None, 3.0)
    assert (len(coarse.volume), coarse.pixel_size_angstrom) == (40, 3.0)
    # projections keep their grey values, on (40 / 60)^2 as many pixels
    assert float(coarse.volume.sum()) == pytest.approx(float(as_it_is.volume.sum()) * (40 / 60) ** 2, rel=1e-3)
    assert len(load_molecule(path, 32, None).volume) == 32 and len(load_molecule(path, 80, 3.0).volume) == 80
    padded = load_molecule(path, 80, None).volume
    assert torch.equal(padded[10:70, 10:70, 10:70], as_it_is.volume) and padded[0].abs().max() == 0


def test_odd_box_is_refused(tmp_path):
    with pytest.raises(InputError, match="The box must be even.*Use 34"):
        load_molecule(write_map(tmp_path / "map.mrc", 60, 2.0), 33, None)
