import pytest
import torch

from cryoforum_core.imaging.fourier import fft_image, radius_px
from cryoforum_core.model.filters import MatchedLowPass, SquareLowPass, activation_layer

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
