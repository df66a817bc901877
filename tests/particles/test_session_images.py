import mrcfile
import numpy as np
import pytest
import torch

from cryoforum_core.config import SimulateConfig
from cryoforum_core.imaging.fourier import fft_image, radius_px
from cryoforum_core.jobs import simulate
from cryoforum_core.particles.session_images import SessionBackground, in_ice, normalised, real_scale, without_domain
from cryoforum_core.particles.simulate import DEFAULT_OTHER_MODEL, ImageMaker, load_molecule
from cryoforum_core.particles.simulation_plan import plan_simulation
from cryoforum_core.particles.table import ParticleTable

# a box of 245 A, as the spectra were measured in: they depend on it, since the noise grows with the area
BOX, PIXEL = 96, 2.56
# docs/decisions/0061-like-session.md: resolution range in A, signal over noise of beta-galactosidase in real micrographs
SIGNAL_OVER_NOISE = {(246, 61): 0.9, (61, 41): 0.45, (41, 27): 0.34, (27, 19): 0.26, (19, 13): 0.12, (13, 9): 0.055,
                     (9, 6): 0.034}
# the same, power of the noise over that from 9 to 6 A
NOISE = {(246, 122): 2.3, (122, 61): 1.7, (61, 19): 1.45, (19, 13): 1.16, (13, 9): 1.0}
FACTOR = 1.5


def simulated(path, **options):
    """Images (n, B, B) and truth of a set of beta-galactosidase."""
    set_of = {"model": DEFAULT_OTHER_MODEL, "box_size_px": BOX, "pixel_size_angstrom": PIXEL, "device": "cpu"}
    run = simulate(SimulateConfig(out=path, like="session", **set_of | options))
    return torch.from_numpy(mrcfile.read(run.path / "particles.mrcs").astype(np.float32)), ParticleTable.read(run.truth)


def power(images, low_angstrom, high_angstrom, box=BOX, pixel=PIXEL):
    """Mean power of images (n, B, B) between two resolutions."""
    frequency = radius_px(box) / (box * pixel)
    band = (frequency >= 1 / low_angstrom) & (frequency < 1 / high_angstrom)
    return float((fft_image(images).abs().square().mean(0) / box**2)[band].mean())


@pytest.fixture(scope="module")
def typical(tmp_path_factory):
    """Clean images of a default session, and noise images of micrographs of a typical noise level, (n, B, B) each."""
    config = SimulateConfig(out=tmp_path_factory.mktemp("session"), like="session", n_particles=120, junk_fraction=0.0,
                            seed=3, session={"noise_spread": 0.0})
    molecule = load_molecule(DEFAULT_OTHER_MODEL, BOX, PIXEL, config.session.ice_density)
    plan = plan_simulation(config, BOX, PIXEL)
    minor = without_domain(molecule.volume, plan.session.domain_direction, config.session.domain)
    maker = ImageMaker(molecule, plan, ctf=config.ctf, minor=minor)
    maker.scale = real_scale(molecule.volume, PIXEL)
    rows = np.arange(len(plan))
    clean = maker.clean(rows)
    background = SessionBackground(plan.session, plan.junk_kind, PIXEL, float(clean.std()), config.session.gradient, True)
    return clean, background.added_to(torch.zeros_like(clean), rows, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("band", SIGNAL_OVER_NOISE)
def test_signal_over_noise_is_that_of_real_micrographs(typical, band):
    clean, noise = (power(images, *band) for images in typical)
    assert 1 / FACTOR < clean / noise / SIGNAL_OVER_NOISE[band] < FACTOR


@pytest.mark.parametrize("band", NOISE)
def test_noise_has_the_spectrum_of_real_micrographs(typical, band):
    _, noise = typical
    assert 1 / FACTOR < power(noise, *band) / power(noise, 9, 6) / NOISE[band] < FACTOR


def test_signal_depends_neither_on_box_nor_on_pixel_size():
    """Per area: a map of twice the pixel size, in another box, has the same power at the same frequency. The noise of
    variance 1 that it is scaled to has a tenth more of its own at low resolution there."""
    def signal(box, pixel):
        volume = load_molecule(DEFAULT_OTHER_MODEL, box, pixel, 0.65).volume
        image = real_scale(volume, pixel) * volume.sum(0)
        return box**2 * power(image[None], 60, 20, box, pixel) * pixel**2

    assert signal(48, 5.12) == pytest.approx(signal(BOX, PIXEL), rel=0.15)
    assert signal(64, 5.12) == pytest.approx(signal(48, 5.12), rel=0.1)


def test_ice_takes_contrast_at_low_resolution_only():
    volume = load_molecule(DEFAULT_OTHER_MODEL, 64, 4.0).volume
    image, seen = volume.sum(0)[None], in_ice(volume, 4.0, 0.65).sum(0)[None]
    assert power(seen, 260, 120, 64, 4.0) / power(image, 260, 120, 64, 4.0) == pytest.approx(0.35**2, rel=0.1)
    assert power(seen, 9, 8, 64, 4.0) / power(image, 9, 8, 64, 4.0) > 0.85


def test_a_domain_is_the_end_of_the_molecule_along_a_direction():
    volume = load_molecule(DEFAULT_OTHER_MODEL, 48, 5.5).volume
    left = without_domain(volume, torch.tensor([1.0, 0.0, 0.0]), 0.2)
    dense = volume > 0.15 * volume.max()
    assert float(left[dense].sum() / volume[dense].sum()) == pytest.approx(0.8, abs=0.02)
    along_x = (volume - left).abs().sum((0, 1))
    start = int((along_x > 0.05 * along_x.max()).nonzero()[0])
    assert start > 24 and torch.allclose(left[..., :start - 6], volume[..., :start - 6], atol=1e-2 * float(volume.max()))


def test_background_is_normalised():
    images = 7 + 3 * torch.randn(20, 64, 64, generator=torch.Generator().manual_seed(0))
    images[:, 16:48, 16:48] += 100
    corners = normalised(images)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert abs(float(corners.mean())) < 0.3 and float(corners.std()) == pytest.approx(1, abs=0.25)
    assert float(normalised(images)[:, 20:40, 20:40].mean()) > 25


def test_contrast_follows_noise_level_and_the_particles_own(tmp_path):
    """The amplitude of each image against that of the same image without noise, by RELION's column and the noise level."""
    options = {"n_particles": 200, "seed": 5, "junk_fraction": 0.0, "box_size_px": 48, "pixel_size_angstrom": 5.5}
    same = {"neighbours": 0.0, "minor_state": 0.0, "gradient": 0.0, "noise_colour": 0.0, "b_factor_max": 0.0}
    noisy, truth = simulated(tmp_path / "noisy", snr=2.0, session=same, **options)
    clean, _ = simulated(tmp_path / "clean", snr=float("inf"), session=same, **options)
    amplitude = ((noisy * clean).sum((1, 2)) / clean.square().sum((1, 2))).numpy()
    # the clean images have the particles' contrast, but noise of level 1 for all
    assert np.corrcoef(amplitude, 1 / truth.floats("rlnCryoforumNoiseLevel"))[0, 1] > 0.9
    strength = clean.std((1, 2)).numpy()
    assert np.corrcoef(strength, truth.floats("rlnCtfScalefactor"))[0, 1] > 0.5
    assert truth.floats("rlnCtfScalefactor").std() == pytest.approx(0.15, rel=0.2)


def test_ice_and_carbon_are_seen_and_empty_ice_is_not(tmp_path):
    images, truth = simulated(tmp_path / "run", n_particles=120, junk_fraction=0.75, seed=4, box_size_px=48,
                              pixel_size_angstrom=5.5, junk_kinds=("noise", "ice", "carbon-edge"),
                              session={"neighbours": 0.0, "gradient": 0.0})
    kind = truth.strings("rlnCryoforumJunkKind")
    low = torch.nn.functional.avg_pool2d(images[:, None], 8)[:, 0].numpy()

    def contrast(name):
        return np.median(np.ptp(low[kind == name], axis=(1, 2)))

    # of white noise in blocks of 64 pixels: 36 blocks range over 4.2 / 8 standard deviations
    assert contrast("noise") < 1.0
    assert contrast("ice") > 2 * contrast("noise") and contrast("carbon-edge") > 1.5 * contrast("noise")


def test_a_neighbour_reaches_in_at_the_rim(tmp_path):
    """Images of the same seed with and without neighbours differ near the rim, not in the centre."""
    options = {"n_particles": 60, "seed": 6, "junk_fraction": 0.0, "snr": float("inf"), "ctf": "none", "box_size_px": 48,
               "pixel_size_angstrom": 5.5}
    same = {"gradient": 0.0, "minor_state": 0.0, "contrast_spread": 0.0, "b_factor_max": 0.0}
    without, _ = simulated(tmp_path / "without", session=same | {"neighbours": 0.0}, **options)
    with_them, truth = simulated(tmp_path / "with", session=same | {"neighbours": 1.0}, **options)
    # the scale follows the variance of the images, neighbours included
    centre, rim = slice(18, 30), torch.ones(48, 48, dtype=torch.bool)
    rim[6:-6, 6:-6] = False
    factor = float(with_them[:, centre, centre].std() / without[:, centre, centre].std())
    difference = (with_them - factor * without).abs()
    assert (truth.integers("rlnCryoforumNeighbour") == 1).all()
    assert float(difference[:, rim].mean()) > 5 * float(difference[:, centre, centre].mean())
