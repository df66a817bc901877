
import pytest
import torch

from cryoforum_core.imaging.fourier import fft_image, ifft_image, radius_px
from cryoforum_core.model.filters import MatchedLowPass, SquareLowPass, activation_layer

from .images import random_input

BOX = 32


def images(n=3):
    return torch.randn(n, BOX, BOX, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [SquareLowPass, MatchedLowPass])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_image_comes_first_and_copies_lose_high_frequencies(kind, n):
    layer, ctf = kind(BOX, n), torch.ones(3, BOX, BOX // 2 + 1)
    out = layer(images(), ctf)
    assert out.shape == (3, layer.n_channels, BOX, BOX) and layer.n_channels == 1 + n
    assert torch.allclose(out[:, 0], images(), atol=1e-5)
    power = fft_image(out).abs().square()
    high = power[..., radius_px(BOX) > 0.35 * BOX].sum((0, 2))
    assert (high.diff() <= 1e-3).all()
    if n > 1:
        assert high[-1] < 1e-3 * high[0]


def test_matched_copies_do_not_depend_on_the_sign_of_the_ctf():
    layer, ctf = MatchedLowPass(BOX, 2), torch.cos(torch.linspace(0, 20, BOX // 2 + 1)).expand(3, BOX, -1)
    flipped = torch.fft.irfft2(torch.fft.rfft2(images()) * torch.where(ctf < 0, -1.0, 1.0), s=(BOX, BOX))
    again = layer(flipped, ctf)
    # column kx = 0 holds pairs, whose CTFs are alike here: the sign is undone everywhere
    assert torch.allclose(again[:, 0], images(), atol=1e-4)


@pytest.mark.parametrize("name", ["prelu", "relu", "silu"])
def test_activations_keep_what_is_positive_and_shape(name):
    layer = activation_layer(name, 4)
    values = torch.randn(2, 4, 8, 8)
    out = layer(values)
    assert out.shape == values.shape and out[values > 4].numel() == (values > 4).sum()
    assert layer(torch.full((1, 4, 2, 2), 20.0)).allclose(torch.full((1, 4, 2, 2), 20.0))


def test_square_masks_are_those_of_the_paper_at_128_px():
    images, ctf = random_input(1, 128)
    channels = SquareLowPass(128, 5)(images, ctf)
    assert channels.shape == (1, 6, 128, 128) and torch.equal(channels[:, 0], images)
    for channel, half_width in zip(channels[0, 1:], (63, 57, 47, 33, 10), strict=True):
        spectrum = fft_image(channel).abs() > 1e-2
        assert spectrum[:, half_width].any() and not spectrum[:, half_width + 1:].any()
        assert spectrum[half_width].any() and not spectrum[half_width + 1:-half_width].any()


def test_filters_leave_less_and_less_of_an_image():
    images, ctf = random_input(8, 32)
    front = MatchedLowPass(32, 4)
    channels = front(images, torch.ones_like(ctf))
    assert torch.allclose(channels[:, 0], images, atol=1e-5)
    power = channels.var((0, 2, 3))
    assert (power.diff() < 0).all() and power[-1] < 0.1


def test_the_front_undoes_the_sign_of_the_ctf():
    clean, _ = random_input(4, 32)
    ctf = torch.cos(0.5 * radius_px(32)).expand(4, -1, -1)
    images = ifft_image(fft_image(clean) * torch.sign(ctf))
    front = MatchedLowPass(32, 2)
    assert torch.allclose(front(images, ctf), front(clean, ctf.abs()), atol=1e-4)
