"""Encoders: particle images to features. Those of Chung (2023) and of CryoPoseNet, a small one that trains in minutes on a
CPU (``compact``), and the default (``polar``, in a file of its own), for any even box >= 16.

Each is a ``nn.Module`` with ``out_features`` and ``scale_input``; the images come with their CTFs, because ours undo the
CTF's sign where that was not done before.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..catalogue import ENCODERS, NETWORK_BOX_PX
from .filters import MatchedLowPass, SquareLowPass, activation_layer
from .polar import PolarEncoder

# the smallest that the encoders' strides leave anything of
MIN_BOX_SIZE_PX = NETWORK_BOX_PX.value
# of each dense layer, as in CryoPoseNet
DENSE_FEATURES = 512


class GeneralizedMean(nn.Module):
    """``mean(x^p)^(1/p)`` over the pixels (GeM, Radenovic et al. 2018)."""

    def __init__(self, power: float):
        super().__init__()
        self.power = power

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
        # in float32: a sixth power leaves the range of half precision
        return maps.float().clamp_min(1e-6).pow(self.power).mean((-2, -1)).pow(1 / self.power)


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
            nn.BatchNorm2d(channels_out), activation_layer(activation, channels_out)]


def _dense(features_in: int, features_out: int, activation: str, dropout: float) -> list[nn.Module]:
    layers = [nn.Linear(features_in, features_out, bias=False), nn.BatchNorm1d(features_out),
              activation_layer(activation, features_out)]
    return layers + ([nn.Dropout(dropout)] if dropout else [])


class ConvolutionalEncoder(nn.Module):
    """Base class of the encoders that are not equivariant."""

    @torch.no_grad()
    def scale_input(self, factor: float | Float[Tensor, ""]) -> None:
        """Adapts the first layer to images of ``factor`` times less contrast."""
        # what comes before the first convolution is linear
        next(layer for layer in self.modules() if isinstance(layer, nn.Conv2d)).weight.mul_(factor)


class CryoForumEncoder(ConvolutionalEncoder):
    """The VGG-like network of the published Cryo-forum method (Chung 2023, arXiv 2307.09847): filter channels, six blocks
    of convolutions with batch normalisation and PReLU, each halving the image, generalised-mean pooling, dropout."""

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

    def forward(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"]) -> Float[Tensor, "n f"]:
        return self.layers(self.front(images, ctf).contiguous(memory_format=torch.channels_last))


class CryoPoseNetEncoder(ConvolutionalEncoder):
    """The network of CryoPoseNet (Nashed et al. 2021, arXiv 2107.02958): three blocks of two 3x3 convolutions and a
    max-pool with 32, 64 and 128 filters, then two dense layers of 512."""

    def __init__(self, box_size_px: int, pooling: str, activation: str, width: int, dropout: float):
        super().__init__()
        channels, size, layers = 1, box_size_px, []
        for block in range(3):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width * 2 ** block, 3, padding=1),
                           activation_layer(activation, width * 2 ** block)]
                channels = width * 2 ** block
            layers.append(nn.MaxPool2d(2))
            size //= 2
        pool, n_features = _pooling(pooling, channels, size, power=3.0)
        for n_in in (n_features, 512):
            pool = nn.Sequential(pool, nn.Linear(n_in, 512), activation_layer(activation, 512), nn.Dropout(dropout))
        self.layers, self.out_features = nn.Sequential(*layers, pool), 512

    def forward(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"]) -> Float[Tensor, "n f"]:
        """The CTFs are not used."""
        return self.layers(images[:, None].contiguous(memory_format=torch.channels_last))


class CompactEncoder(ConvolutionalEncoder):
    """A plain one: strided 4x4 convolutions down to a 4x4 map that is flattened (where a feature lies says how the particle
    is turned), then two dense layers. Most weights are where they cost least; see ``docs/decisions/0021-compact.md``."""

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
                       nn.BatchNorm2d(channels_out), activation_layer(activation, channels_out)]
            channels, size = channels_out, size // 2
        pool, n_features = _pooling(pooling, channels, size, power=3.0)
        dense = _dense(n_features, DENSE_FEATURES, activation, dropout)
        dense += _dense(DENSE_FEATURES, DENSE_FEATURES, activation, dropout)
        self.layers, self.out_features = nn.Sequential(*layers, pool, *dense), DENSE_FEATURES

    def forward(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"]) -> Float[Tensor, "n f"]:
        return self.layers(self.front(images, ctf).contiguous(memory_format=torch.channels_last))


def make_encoder(name: str, box_size_px: int, filter_channels: int, pooling: str, activation: str, width: int | None,
                 dropout: float) -> nn.Module:
    """The encoder called ``name``; "auto" and None stand for what its paper (or our measurement) chose."""
    if name not in ENCODERS:
        raise ValueError(f"The encoder must be one of {', '.join(ENCODERS)}; got {name!r}.")
    defaults = ENCODERS[name]
    pooling = defaults.pooling if pooling == "auto" else pooling
    activation = defaults.activation if activation == "auto" else activation
    width = defaults.width if width is None else width
    if name == "polar":
        if pooling is not None:
            raise ValueError(f"The encoder polar has no pooling to choose; got {pooling!r}.")
        return PolarEncoder(box_size_px, filter_channels, activation, width, dropout)
    if name == "cryoposenet":
        return CryoPoseNetEncoder(box_size_px, pooling, activation, width, dropout)
    encoder = CryoForumEncoder if name == "cryoforum" else CompactEncoder
    return encoder(box_size_px, filter_channels, pooling, activation, width, dropout)
