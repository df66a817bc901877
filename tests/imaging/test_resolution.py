import math

import pytest
import torch

from cryoforum_core.imaging.fourier import fft_volume, volume_radius_px
from cryoforum_core.imaging.resolution import fourier_shell_correlation, resolution_angstrom

SIZE = 24


def random_map(seed):
    return torch.randn(SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_a_map_agrees_with_itself_at_any_scale_and_contradicts_its_negative():
    volume = random_map(0)
    assert torch.allclose(fourier_shell_correlation(volume, 3 * volume), torch.ones(SIZE // 2 + 1, dtype=torch.float64))
    assert torch.allclose(fourier_shell_correlation(volume, -volume), -torch.ones(SIZE // 2 + 1, dtype=torch.float64))


def test_correlation_is_that_of_each_shell_of_the_whole_transform():
    """The definition, over all voxels of the full transform instead of half of it."""
    first, second = random_map(0), random_map(0) + random_map(1)
    axis = torch.fft.fftfreq(SIZE, 1 / SIZE)
    radius = torch.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis ** 2).round().long()
    a, b = torch.fft.fftn(first.double()), torch.fft.fftn(second.double())
    found = fourier_shell_correlation(first, second)
    for shell in range(1, SIZE // 2):
        inside = radius == shell
        expected = (a[inside] * b[inside].conj()).real.sum() / (a[inside].abs().norm() * b[inside].abs().norm())
        assert found[shell].item() == pytest.approx(expected.item(), abs=1e-6)


def test_maps_that_share_low_frequencies_agree_there_only():
    shared, radius = fft_volume(random_map(0)), volume_radius_px(SIZE)
    first, second = (torch.fft.irfftn(torch.where(radius < 5.5, shared, fft_volume(random_map(seed))), s=(SIZE,) * 3)
                     for seed in (1, 2))
    fsc = fourier_shell_correlation(first, second)
    assert (fsc[1:6] > 0.999).all() and fsc[6:].abs().max() < 0.3


def test_resolution_is_interpolated_between_shells():
    fsc = torch.tensor([1.0, 1.0, 0.9, 0.5, 0.1, 0.0])
    # 0.3 lies half way from shell 3 to shell 4, of a box of 100 px of 2 A
    assert resolution_angstrom(fsc, 100, 2.0, threshold=0.3) == pytest.approx(200 / 3.5)


def test_resolution_ends_at_nyquist_and_at_the_first_crossing():
    assert resolution_angstrom(torch.ones(13), SIZE, 1.5) == 3.0
    returns = torch.tensor([1.0, 0.9, 0.0, 1.0, 1.0])
    assert resolution_angstrom(returns, 10, 1.0) > 10 / 2


def test_shells_without_signal_end_the_resolution():
    """An FSC that is NaN, as of an empty shell, is no agreement."""
    assert resolution_angstrom(torch.tensor([1.0, 1.0, math.nan, 1.0]), 10, 1.0) == pytest.approx(10.0)


def test_fsc_of_noisy_halves_is_the_known_ratio():
    """Signal s and independent noise n of equal variance in both halves: FSC = s / (s + n) = 0.5."""
    generator = torch.Generator().manual_seed(3)
    signal, first, second = torch.randn(3, 32, 32, 32, generator=generator)
    fsc = fourier_shell_correlation(signal + first, signal + second)
    assert abs(fsc[5:].mean() - 0.5) < 0.03
