"""First layers of the encoders, which add low-pass filtered copies of the image; and activations."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from ..imaging.fourier import fft_image, frequency_grid, ifft_image, radius_px

# half widths of the square low-pass masks of Chung (2023), as fractions of the box (63, 57, 47, 33 and 10 px of 128)
_SQUARE_MASKS = (63 / 128, 57 / 128, 47 / 128, 33 / 128, 10 / 128)


def activation_layer(name: str, channels: int) -> nn.Module:
    # one slope for each channel: one for each pixel, as in Chung (2023), would tie the network to one image size
    return nn.PReLU(channels) if name == "prelu" else {"relu": nn.ReLU, "silu": nn.SiLU}[name]()


class SquareLowPass(nn.Module):
    """First layer of Chung (2023): the image, and ``n`` copies without the frequencies outside a square."""

    def __init__(self, box_size_px: int, n: int):
        super().__init__()
        fractions = torch.nn.functional.interpolate(torch.tensor(_SQUARE_MASKS)[None, None], size=n, mode="linear",
                                                    align_corners=n > 1)[0, 0] if n else torch.zeros(0)
        ky, kx = frequency_grid(box_size_px)
        largest = torch.maximum(ky.abs(), kx.abs())
        self.register_buffer("masks", (largest <= fractions[:, None, None] * box_size_px).float(), persistent=False)
        self.n_channels = 1 + n

    def forward(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"]) -> Float[Tensor, "n c b b"]:
        if not len(self.masks):
            return images[:, None]
        return torch.cat([images[:, None], ifft_image(fft_image(images)[:, None] * self.masks)], dim=1)


class MatchedLowPass(nn.Module):
    """The image with the sign of its CTF undone, and ``n`` low-pass copies of it.

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

    def forward(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"]) -> Float[Tensor, "n c b b"]:
        return self.filtered(fft_image(images) * torch.where(ctf < 0, -1.0, 1.0))

    def filtered(self, images_ft: Complex[Tensor, "n b b//2+1"]) -> Float[Tensor, "n c b b"]:
        """The same of transforms that carry no CTF sign."""
        return ifft_image(images_ft[:, None] * self.masks)
