"""Simulated images like a data set's own: the estimated signal and noise are those that went in."""

import pytest
import torch

from cryoforum_core.errors import InputError
from cryoforum_core.imaging.ctf import CTFParameters, ctf_2d
from cryoforum_core.imaging.fourier import fft_image, ifft_image, shell_average, shell_index, shift_phase
from cryoforum_core.training.loop import step_generator
from cryoforum_core.training.simulated_projections import ImageModel, ProjectionStream, TrainingBatch, estimate_image_model

BOX, PIXEL_SIZE = 24, 6.0


def ctf_parameters(n: int) -> CTFParameters:
    ones = torch.ones(n)
    return CTFParameters(torch.linspace(6000, 12000, n), torch.linspace(6000, 12000, n) - 200, 30 * ones, 0 * ones,
                         300 * ones, 2.7 * ones, 0.1 * ones)


def flipped(parameters: CTFParameters) -> torch.Tensor:
    return ctf_2d(parameters, BOX, PIXEL_SIZE).abs()


@pytest.fixture
def stream(volume):
    """Makes streams of given noise and scale."""
    def make(spectrum: torch.Tensor, scale: float = 1.0, **options) -> ProjectionStream:
        model = ImageModel(spectrum, scale, snr=0.5)
        options = {"shift_rms_angstrom": 5.0, "jitter": False, **options}
        return ProjectionStream(volume, ctf_parameters(40), flipped, BOX, PIXEL_SIZE, model, **options)

    return make


def coloured(variance: float) -> torch.Tensor:
    shells = torch.arange(BOX // 2 + 1)
    return BOX ** 2 * variance * (0.5 + 2.0 * torch.exp(-shells / 4.0))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_estimates_are_those_that_went_in(volume, stream, scale):
    spectrum = coloured(0.8)
    batch = stream(spectrum, scale).batch(800, torch.Generator().manual_seed(0))
    found = estimate_image_model(batch.images, batch.ctf, volume, 0.42 * BOX)
    assert found.signal_scale == pytest.approx(scale, rel=0.06)
    assert torch.allclose(found.noise_spectrum[2:], spectrum[2:], rtol=0.15)
    clean = stream(0 * spectrum, scale).batch(800, torch.Generator().manual_seed(0)).images
    noise = stream(spectrum, 0.0).batch(800, torch.Generator().manual_seed(0)).images
    assert found.snr == pytest.approx(float(clean.var() / noise.var()), rel=0.25)


def test_images_without_signal_are_refused(volume):
    noise = torch.randn(400, BOX, BOX, generator=torch.Generator().manual_seed(0))
    noise[:, 8:16, 8:16] *= 0.5  # less power within the circle than outside
    with pytest.raises(InputError, match="show the particle"):
        estimate_image_model(noise, flipped(ctf_parameters(400)), volume, 0.42 * BOX)


def test_an_image_is_the_projection_at_its_labels(volume, stream):
    source = stream(torch.zeros(BOX // 2 + 1), 0.7)
    batch = source.batch(6, torch.Generator().manual_seed(1))
    displacement_px = -batch.shift_angstrom / PIXEL_SIZE
    expected = ifft_image(0.7 * volume.project(batch.quaternion) * batch.ctf * shift_phase(displacement_px, BOX))
    assert torch.allclose(batch.images, expected, atol=1e-5)
    assert batch.shift_angstrom.std() == pytest.approx(5.0, rel=0.5)


def test_noise_has_the_spectrum_and_the_amplitude_asked_for(stream):
    spectrum = coloured(1.0)
    for amplitude in (1.0, 0.1):
        images = stream(spectrum, 0.0).batch(400, torch.Generator().manual_seed(2), noise=amplitude).images
        found = shell_average(fft_image(images).abs().square().mean(0), BOX)
        assert torch.allclose(found, amplitude ** 2 * spectrum, rtol=0.15)


def test_a_batch_is_a_function_of_its_generator(stream):
    source = stream(coloured(1.0), jitter=True)
    first, again = (source.batch(5, step_generator(3, 7, 1)) for _ in range(2))
    other = source.batch(5, step_generator(3, 8, 1))
    assert torch.equal(first.images, again.images) and torch.equal(first.quaternion, again.quaternion)
    assert not torch.equal(first.images, other.images)


def test_jitter_varies_contrast_and_noise_and_can_be_left_out(volume, stream):
    source = stream(torch.zeros(BOX // 2 + 1), jitter=True)
    generator = torch.Generator().manual_seed(5)
    batch = source.batch(200, generator)
    plain = ifft_image(volume.project(batch.quaternion) * batch.ctf
                       * shift_phase(-batch.shift_angstrom / PIXEL_SIZE, BOX))
    contrast = (batch.images * plain).sum((1, 2)) / plain.square().sum((1, 2))
    assert contrast.log().std() == pytest.approx(0.2, rel=0.2)
    assert not source.without_jitter().jitter and source.jitter


def test_the_mask_is_applied_last(stream):
    mask = torch.zeros(BOX, BOX)
    mask[10:14, 10:14] = 1
    images = stream(coloured(1.0), mask=mask).batch(3, torch.Generator().manual_seed(0)).images
    assert images[:, mask == 0].abs().max() == 0 and images[:, mask == 1].abs().min() > 0


def test_batches_are_joined(stream):
    source = stream(coloured(1.0))
    first, second = (source.batch(n, torch.Generator().manual_seed(n)) for n in (2, 3))
    joined = TrainingBatch.concatenate(first, second).to("cpu")
    assert len(joined) == 5 and torch.equal(joined.images[2:], second.images)
    assert torch.equal(joined.ctf[:2], first.ctf)


def test_shells_of_the_noise_amplitude():
    model = ImageModel(coloured(1.0), 1.0, 1.0)
    expected = (coloured(1.0)[shell_index(BOX)] / BOX ** 2).sqrt()
    assert torch.allclose(model.noise_amplitude(), expected)
