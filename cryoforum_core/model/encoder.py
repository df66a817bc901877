"""Encoders: particle images to features. Cryo-forum's, CryoPoseNet's, and ours (``compact``), for any even box >= 16.

Each is a ``nn.Module`` with ``out_features``; the images come with their CTFs, because ``compact`` undoes the CTF's
sign where that was not done before.
"""

import math

import torch
from torch import Tensor, nn

from ..imaging.fourier import fft_image, frequency_grid, ifft_image, radius_px

MIN_BOX_SIZE_PX = 16
DENSE_FEATURES = 512
# pooling, activation and channels of the first block
DEFAULTS = {
    "cryoforum": ("gem", "prelu", 32),
    "cryoposenet": ("flatten", "relu", 32),
    "compact": ("flatten", "relu", 24),
}

# half widths of Cryo-forum's square low-pass masks, as fractions of the box (63, 57, 47, 33 and 10 px of 128)
_SQUARE_MASKS = (63 / 128, 57 / 128, 47 / 128, 33 / 128, 10 / 128)


class GeneralizedMean(nn.Module):
    """``mean(x^p)^(1/p)`` over the pixels (GeM, Radenovic et al. 2018): (n, C, h, w) to (n, C)."""

    def __init__(self, power: float):
        super().__init__()
        self.power = power

    def forward(self, maps: Tensor) -> Tensor:
        # in float32: a sixth power leaves the range of half precision
        return maps.float().clamp_min(1e-6).pow(self.power).mean((-2, -1)).pow(1 / self.power)


def _activation(name: str, channels: int) -> nn.Module:
    # one slope for each channel: Cryo-forum's slopes for each pixel tie the network to one image size
    return nn.PReLU(channels) if name == "prelu" else {"relu": nn.ReLU, "silu": nn.SiLU}[name]()


def _pooling(name: str, channels: int, size_px: int, power: float) -> tuple[nn.Module, int]:
    """The layer that ends the convolutions, and its number of features."""
    if name == "flatten":
        return nn.Flatten(), channels * size_px ** 2
    layers = {"gem": GeneralizedMean(power), "average": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
              "max": nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())}
    return layers[name], channels


def _convolution(channels_in: int, channels_out: int, kernel: int, activation: str, stride: int = 1) -> list[nn.Module]:
    """Convolution, batch normalisation, activation; 'same' padding."""
    return [nn.Conv2d(channels_in, channels_out, kernel, stride, (kernel - 1) // 2, bias=False),
            nn.BatchNorm2d(channels_out), _activation(activation, channels_out)]


def _dense(features_in: int, features_out: int, activation: str, dropout: float) -> list[nn.Module]:
    layers = [nn.Linear(features_in, features_out, bias=False), nn.BatchNorm1d(features_out),
              _activation(activation, features_out)]
    return layers + ([nn.Dropout(dropout)] if dropout else [])


class SquareLowPass(nn.Module):
    """Cryo-forum's front layer: the image, and ``n`` copies without the frequencies outside a square."""

    def __init__(self, box_size_px: int, n: int):
        super().__init__()
        fractions = torch.nn.functional.interpolate(torch.tensor(_SQUARE_MASKS)[None, None], size=n, mode="linear",
                                                    align_corners=n > 1)[0, 0] if n else torch.zeros(0)
        ky, kx = frequency_grid(box_size_px)
        largest = torch.maximum(ky.abs(), kx.abs())
        self.register_buffer("masks", (largest <= fractions[:, None, None] * box_size_px).float(), persistent=False)
        self.n_channels = 1 + n

    def forward(self, images: Tensor, ctf: Tensor) -> Tensor:
        if not len(self.masks):
            return images[:, None]
        return torch.cat([images[:, None], ifft_image(fft_image(images)[:, None] * self.masks)], dim=1)


class CryoForumEncoder(nn.Module):
    """The VGG-like network of Cryo-forum (Chung 2023, arXiv 2307.09847): filter channels, six blocks of convolutions
    with batch normalisation and PReLU, each halving the image, generalised-mean pooling, dropout."""

    def __init__(self, box_size_px: int, filter_channels: int, pooling: str, activation: str, width: int,
                 dropout: float):
        super().__init__()
        self.front = SquareLowPass(box_size_px, filter_channels)
        channels, size, layers = self.front.n_channels, box_size_px, []
        for block, kernels in enumerate(((7,), (5,), (3, 3), (3, 3), (3, 3), (3, 3))):
            for kernel in kernels:
                layers += _convolution(channels, width * 2 ** block, kernel, activation)
                channels = width * 2 ** block
            if size > 2:  # small boxes are used up before the last block
                layers.append(nn.MaxPool2d(2))
                size //= 2
        pool, self.out_features = _pooling(pooling, channels, size, power=6.0)
        self.layers = nn.Sequential(*layers, pool, nn.Dropout(dropout))

    def forward(self, images: Tensor, ctf: Tensor) -> Tensor:
        """Images (n, B, B) and CTFs (n, B, B // 2 + 1) to features (n, F)."""
        return self.layers(self.front(images, ctf).contiguous(memory_format=torch.channels_last))


class CryoPoseNetEncoder(nn.Module):
    """The network of CryoPoseNet (Nashed et al. 2021, arXiv 2107.02958): three blocks of two 3x3 convolutions and a
    max-pool with 32, 64 and 128 filters, then two dense layers of 512."""

    def __init__(self, box_size_px: int, pooling: str, activation: str, width: int, dropout: float):
        super().__init__()
        channels, size, layers = 1, box_size_px, []
        for block in range(3):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width * 2 ** block, 3, padding=1),
                           _activation(activation, width * 2 ** block)]
                channels = width * 2 ** block
            layers.append(nn.MaxPool2d(2))
            size //= 2
        pool, n_features = _pooling(pooling, channels, size, power=3.0)
        for n_in in (n_features, 512):
            pool = nn.Sequential(pool, nn.Linear(n_in, 512), _activation(activation, 512), nn.Dropout(dropout))
        self.layers, self.out_features = nn.Sequential(*layers, pool), 512

    def forward(self, images: Tensor, ctf: Tensor) -> Tensor:
        """Images (n, B, B); the CTFs are not used."""
        return self.layers(images[:, None].contiguous(memory_format=torch.channels_last))


class MatchedLowPass(nn.Module):
    """The image with the sign of its CTF undone, and ``n`` low-pass copies of it: (n, 1 + n, B, B).

    So the particle looks alike at every defocus (nothing is left to do where the phases are flipped already). Edges
    are soft in Fourier space and leave no ringing; cut-off frequencies are spaced evenly in their logarithm from 0.7
    to 0.12 of the Nyquist frequency.
    """

    def __init__(self, box_size_px: int, n: int):
        super().__init__()
        ends = torch.log10(torch.tensor([0.7, 0.12])).tolist()
        cut_off_px = 0.5 * box_size_px * torch.logspace(*ends, n)[:, None, None]
        radius = radius_px(box_size_px)[None]
        masks = torch.sigmoid((cut_off_px - radius) / (0.08 * cut_off_px + 0.3))
        self.register_buffer("masks", torch.cat([torch.ones_like(radius), masks]), persistent=False)
        self.n_channels = 1 + n

    def forward(self, images: Tensor, ctf: Tensor) -> Tensor:
        upright = fft_image(images) * torch.where(ctf < 0, -1.0, 1.0)
        return ifft_image(upright[:, None] * self.masks)


class CompactEncoder(nn.Module):
    """Ours: strided 4x4 convolutions down to a 4x4 map that is flattened (where a feature lies says how the particle is
    turned), then two dense layers. Most weights are where they cost least; see ``docs/decisions.md``, Encoder."""

    def __init__(self, box_size_px: int, filter_channels: int, pooling: str, activation: str, width: int,
                 dropout: float):
        super().__init__()
        self.front = MatchedLowPass(box_size_px, filter_channels)
        channels, size, layers = self.front.n_channels, box_size_px, []
        n_blocks = max(1, round(math.log2(box_size_px / 4)))
        for block in range(n_blocks):
            # boxes above 32 px pay for their extra blocks at the front, where the image is large: fewer channels
            channels_out = max(8, int(width * 2.0 ** (block - max(0, n_blocks - 3))))
            layers += [nn.Conv2d(channels, channels_out, 6 if block == 0 else 4, 2, 2 if block == 0 else 1, bias=False),
                       nn.BatchNorm2d(channels_out), _activation(activation, channels_out)]
            channels, size = channels_out, size // 2
        pool, n_features = _pooling(pooling, channels, size, power=3.0)
        dense = _dense(n_features, DENSE_FEATURES, activation, dropout)
        dense += _dense(DENSE_FEATURES, DENSE_FEATURES, activation, dropout)
        self.layers, self.out_features = nn.Sequential(*layers, pool, *dense), DENSE_FEATURES

    def forward(self, images: Tensor, ctf: Tensor) -> Tensor:
        """Images (n, B, B) and CTFs (n, B, B // 2 + 1) to features (n, F)."""
        return self.layers(self.front(images, ctf).contiguous(memory_format=torch.channels_last))


def make_encoder(name: str, box_size_px: int, filter_channels: int, pooling: str, activation: str, width: int | None,
                 dropout: float) -> nn.Module:
    """The encoder called ``name``; "auto" and None stand for what its paper (or our measurement) chose."""
    if name not in DEFAULTS:
        raise ValueError(f"The encoder must be one of {', '.join(DEFAULTS)}; got {name!r}.")
    default_pooling, default_activation, default_width = DEFAULTS[name]
    pooling = default_pooling if pooling == "auto" else pooling
    activation = default_activation if activation == "auto" else activation
    width = default_width if width is None else width
    if name == "cryoposenet":
        return CryoPoseNetEncoder(box_size_px, pooling, activation, width, dropout)
    encoder = CryoForumEncoder if name == "cryoforum" else CompactEncoder
    return encoder(box_size_px, filter_channels, pooling, activation, width, dropout)
