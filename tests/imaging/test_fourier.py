import numpy as np
import torch

from cryoforum_core.imaging import fourier


def test_centre_pixel_has_phase_zero_everywhere():
    image = torch.zeros(16, 16)
    image[8, 8] = 1.0
    torch.testing.assert_close(fourier.fft_image(image), torch.ones(16, 9, dtype=torch.complex64))
    volume = torch.zeros(8, 8, 8)
    volume[4, 4, 4] = 1.0
    torch.testing.assert_close(fourier.fft_volume(volume), torch.ones(8, 8, 5, dtype=torch.complex64))


def test_transforms_invert():
    generator = torch.Generator().manual_seed(0)
    images, volume = torch.randn(3, 16, 16, generator=generator), torch.randn(8, 8, 8, generator=generator)
    torch.testing.assert_close(fourier.ifft_image(fourier.fft_image(images)), images)
    torch.testing.assert_close(fourier.ifft_volume(fourier.fft_volume(volume)), volume)


def test_shift_moves_along_x_and_y():
    image = torch.zeros(1, 16, 16)
    image[0, 8, 8] = 1.0
    moved = fourier.ifft_image(fourier.fft_image(image) * fourier.shift_phase(torch.tensor([[3.0, -2.0]]), 16))
    assert np.unravel_index(int(moved.argmax()), (16, 16)) == (6, 11)


def gaussian(size, sigma, centre=0.0, dimensions=2):
    axis = torch.exp(-0.5 * ((torch.arange(size) - size // 2 - centre) / sigma) ** 2)
    grid = axis[:, None] * axis
    return grid if dimensions == 2 else grid[..., None] * axis


def test_cropping_keeps_grey_values_and_the_centre():
    large, small = gaussian(64, 6.0), gaussian(32, 3.0)
    torch.testing.assert_close(fourier.crop_image(large, 32), small, atol=1e-5, rtol=1e-5)


def test_cropped_map_projects_to_cropped_projection():
    volume = gaussian(32, 4.0, dimensions=3)
    projected = fourier.crop_image(volume.sum(0), 16)
    torch.testing.assert_close(fourier.crop_volume(volume, 16).sum(0), projected, atol=1e-4, rtol=1e-4)


def test_half_plane_holds_each_pair_once():
    index, k = fourier.half_plane_pixels(16, 7.0)
    assert len(set(index.tolist())) == len(index)
    pairs = {tuple(row) for row in k.int().tolist()}
    assert not pairs & {(-x, -y) for x, y in pairs}
    full = sum(0 < x * x + y * y <= 49 for x in range(-8, 8) for y in range(-8, 8))
    assert 2 * len(index) == full


def test_half_plane_indices_name_their_frequencies():
    """The pixel at (kx, ky) of a pure wave exp(2 pi i (kx x + ky y) / B) is the one that is not zero."""
    index, k = fourier.half_plane_pixels(16, 6.0)
    x = torch.arange(16) - 8
    for which in (0, len(index) // 2, len(index) - 1):
        wave = torch.cos(2 * torch.pi / 16 * (k[which, 0] * x[None, :] + k[which, 1] * x[:, None]))
        power = fourier.fft_image(wave).abs().flatten()[index]
        assert int(power.argmax()) == which


def test_shell_average_of_the_radius_is_the_shell():
    average = fourier.shell_average(fourier.radius_px(32), 32)
    torch.testing.assert_close(average, torch.arange(17.0), atol=0.35, rtol=0)


def test_a_map_with_more_voxels_has_the_same_projections_and_comes_back():
    from cryoforum_core.imaging.fourier import crop_volume, low_pass_volume, resize_volume

    small = low_pass_volume(torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0)), 5.0, 0.3)
    large = resize_volume(small, 24)
    assert torch.allclose(crop_volume(large, 16), small, atol=1e-3)
    # grey values of projections are kept: sums over a column, of which there are fewer in the small box
    assert torch.allclose(large.mean() * 24, small.mean() * 16, rtol=1e-3)
    assert torch.equal(resize_volume(small, 16), small)
