"""Images on another grid, without distortion: compared with the analytic picture on that grid."""

import pytest
import torch

from cryoforum_core.imaging.fourier import crop_image, fft_image, shell_average
from cryoforum_core.imaging.image_resampling import NO_MAGNIFICATION, resample_images

DISTORTIONS = [NO_MAGNIFICATION, (1.03, 0.0, 0.0, 0.97), (1.01, 0.012, -0.004, 0.985)]


def picture(box, pixel, magnification=NO_MAGNIFICATION):
    """Blobs of 4 A, (1, B, B), as recorded with a magnification matrix M: at x lies what belongs at M'^-1 x."""
    generator = torch.Generator().manual_seed(1)
    centre = (torch.rand(40, 2, generator=generator).double() - 0.5) * 80
    weight = torch.randn(40, generator=generator).double()
    axis = (torch.arange(box).double() - box // 2) * pixel
    recorded = torch.stack([axis.expand(box, box), axis[:, None].expand(box, box)], -1)
    place = recorded @ torch.linalg.inv(torch.tensor(magnification).double().reshape(2, 2))
    distance2 = (place[..., None, :] - centre).square().sum(-1)
    return (weight * torch.exp(-0.5 * distance2 / 16)).sum(-1)[None].float() + 3.0


@pytest.mark.parametrize("magnification", DISTORTIONS)
@pytest.mark.parametrize("box, pixel, new_box, new_pixel", [
    (128, 1.2, 128, 1.2), (160, 1.0, 128, 1.2), (150, 1.06, 120, 1.31)])
def test_error_is_a_ten_thousandth(magnification, box, pixel, new_box, new_pixel):
    """1.4e-5 of the picture's standard deviation was measured."""
    expected = picture(new_box, new_pixel)
    found = resample_images(picture(box, pixel, magnification), pixel, new_pixel, new_box, magnification)
    assert found.shape == expected.shape and (found - expected).std() < 1e-4 * expected.std()


@pytest.mark.parametrize("magnification", DISTORTIONS[1:])
def test_distortion_matters_and_its_transpose_is_another(magnification):
    m00, m01, m10, m11 = magnification
    recorded, expected = picture(128, 1.2, magnification), picture(128, 1.2)
    assert (recorded - expected).std() > 0.05 * expected.std()
    transposed = resample_images(recorded, 1.2, 1.2, 128, (m00, m10, m01, m11))
    assert m01 == m10 or (transposed - expected).std() > 0.02 * expected.std()


def test_binning_is_fourier_cropping():
    """Where the new pixel divides the box evenly, both programs' way and this one are the same."""
    images = picture(96, 1.5)
    torch.testing.assert_close(resample_images(images, 1.5, 2.25, 64), crop_image(images, 64), atol=1e-4, rtol=0)


def test_noise_stays_white_to_the_edges_and_to_the_nyquist_limit():
    """The determinant of M, 0.995, scales its power; 64 images scatter by some per cent in the innermost shells."""
    noise = torch.randn(64, 96, 96, generator=torch.Generator().manual_seed(0))
    found = resample_images(noise, 1.2, 1.2, 96, DISTORTIONS[2])
    power = shell_average(fft_image(found).abs().square().mean(0), 96)[5:] / 96**2
    assert 0.9 < power.min() and power.max() < 1.1
    assert found[:, :3].std() == pytest.approx(found[:, 40:56].std().item(), rel=0.03)


def test_grey_values_are_kept_and_one_broken_image_breaks_no_other():
    images = torch.ones(3, 64, 64) * torch.tensor([2.0, float("nan"), -5.0])[:, None, None]
    found = resample_images(images, 1.0, 1.3, 48, DISTORTIONS[2])
    torch.testing.assert_close(found[[0, 2]], images[[0, 2], :48, :48])
    assert found[1].isnan().all()
