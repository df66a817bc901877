"""The default encoder, equivariant to in-plane rotation and mirroring of the image.

Rotating a projection in its plane multiplies its pose on the left by a known rotation, and so does mirroring it (the
particle seen from behind). A plain network has to learn all of this from examples; here it is built in, and what is left to
learn are viewing directions. Images are sampled on circles about the particle's centre; convolutions along the circles, with
all radii as channels, and with every filter used once as it is and once mirrored (group convolutions over O(2), Cohen &
Welling 2016, arXiv 1602.07576), end in features of 2 K copies: the image rotated by each of K angles, and its mirror image
likewise. Measured against a plain network in ``docs/decisions/0020-polar-encoder.md``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..geometry.rotations import left_multiplication, quaternion_to_matrix, rotation_of_view
from ..imaging.fourier import crop_image_ft, fft_image, ifft_image, radius_px, shift_phase
from .filters import MatchedLowPass, activation_layer

# in-plane rotations by 22.5 degrees, between which the head interpolates; a power of 2, which strides lead to
N_ANGLES = 16
# circles reach this part of the box from the centre; the images' mask ends little beyond
RADIUS_OF_BOX = 0.42
# where a particle lies shows at low frequencies already
CENTRING_BOX_PX = 16
# shifts in this part of the box, a large one: outputs of order one
SHIFT_UNIT_OF_BOX = 0.25


@dataclass(frozen=True)
class EquivariantFeatures:
    """Features of V rotated and mirrored copies of n images; ``OrientationHead`` joins them."""

    values: Float[Tensor, "n v f"]
    pose_matrices: Float[Tensor, "v 4 4"]
    """matrices L: a copy of an image with the pose q has the pose L q"""
    shift_matrices: Float[Tensor, "v 2 2"]
    """from the shift of a copy to that of the image"""
    centre_of_box: Float[Tensor, "n 2"]
    """the shift, as a part of the box, that was undone before"""


class CircularConvolution(nn.Module):
    """Convolution along the circles, batch normalisation and activation: (n, m C, T) to (n, 2 C', T / stride).

    The first half of the channels are the image's, the second its mirror image's, which is kept at the angles of the
    image: there every filter stands the other way round. ``is_first``: the input is the image itself, m = 1, else m = 2.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, is_first: bool, activation: str):
        super().__init__()
        if (kernel - stride) % 2:
            raise ValueError(f"A kernel must reach as far to both sides; {kernel} with stride {stride} does not.")
        self.stride, self.reach = stride, (kernel - stride) // 2
        n_in = 1 if is_first else 2
        bound = (n_in * channels_in * kernel) ** -0.5  # as torch's own convolutions
        self.weight = nn.Parameter(torch.empty(channels_out, n_in, channels_in, kernel).uniform_(-bound, bound))
        self.normalise, self.activate = nn.BatchNorm1d(channels_out), activation_layer(activation, channels_out)

    def forward(self, values: Float[Tensor, "n c t"]) -> Float[Tensor, "n c_out t_out"]:
        weight = torch.stack([self.weight, self.weight.flip(-1, 1)])  # mirrored, and the two halves exchanged
        weight = weight.flatten(2, 3).flatten(0, 1)
        if self.reach:
            values = functional.pad(values, (self.reach, self.reach), mode="circular")
        values = functional.conv1d(values, weight, stride=self.stride)
        # both halves in one normalisation: they are images of the same kind
        n, n_out, n_angles = values.shape
        return self.activate(self.normalise(values.reshape(2 * n, n_out // 2, n_angles))).reshape(n, n_out, n_angles)


class CircleNetwork(nn.Module):
    """Images (n, C, B, B) to features (n, 2 K, F) of their K rotations and those of their mirror images."""

    def __init__(self, channels_in: int, box_size_px: int, width: int, channels_out: list[int], activation: str):
        """``width``: channels of the strided layers that lead from the samples, about two per pixel of the box, to the K
        angles; ``channels_out`` of those that follow, which see most of a circle, and of the last, dense one."""
        super().__init__()
        reach_px, strides = RADIUS_OF_BOX * box_size_px, _strides(box_size_px)
        n_circles = math.ceil(reach_px)
        circles = _circles(box_size_px, n_circles, N_ANGLES * math.prod(strides), reach_px)
        self.register_buffer("circles", circles, persistent=False)
        sizes = [(width, 2 * stride if i or stride > 2 else 6, stride) for i, stride in enumerate(strides)]
        sizes += [(n, 7, 1) for n in channels_out[:-1]] + [(channels_out[-1], 1, 1)]
        layers, channels = [], channels_in * n_circles
        for i, (n_out, kernel, stride) in enumerate(sizes):
            layers.append(CircularConvolution(channels, n_out, kernel, stride, i == 0, activation))
            channels = n_out
        self.layers, self.out_features = nn.Sequential(*layers), channels
        pose_matrices, shift_matrices = _copies()
        self.register_buffer("pose_matrices", pose_matrices, persistent=False)
        self.register_buffer("shift_matrices", shift_matrices, persistent=False)

    def forward(self, images: Float[Tensor, "n c b b"]) -> Float[Tensor, "n v f"]:
        n = len(images)
        sampled = functional.grid_sample(images, self.circles.expand(n, -1, -1, -1), "bicubic", align_corners=False)
        features = self.layers(sampled.flatten(1, 2))
        return features.reshape(n, 2, self.out_features, -1).transpose(2, 3).flatten(1, 2)


def _strides(box_size_px: int) -> list[int]:
    n_halvings = max(1, round(math.log2(2 * box_size_px / N_ANGLES)))
    return [2] if n_halvings == 1 else [4] + [2] * (n_halvings - 2)


def _circles(box_size_px: int, n_circles: int, n_samples: int, reach_px: float) -> Tensor:
    """Where images are sampled (1, circles, samples, 2), as ``grid_sample`` has it: x, y, the box from -1 to 1.

    The samples lie beside angle 0, not on it: so mirroring them takes neighbours that a stride joins to such neighbours.
    """
    radius = (torch.arange(n_circles) + 0.5) * (reach_px / n_circles)
    angle = (torch.arange(n_samples) + 0.5) * (2 * math.pi / n_samples)
    x, y = radius[:, None] * torch.cos(angle), radius[:, None] * torch.sin(angle)
    return (torch.stack([x, y], dim=-1)[None] + box_size_px // 2 + 0.5) * (2 / box_size_px) - 1


def _copies() -> tuple[Tensor, Tensor]:
    """Of the rotated and mirrored copies: matrices (2 K, 4, 4) of their poses, and (2 K, 2, 2) of their shifts turned back.

    Copy k is the image turned so that what was at the angle a_k comes to 0; copy K + k the same of the image with y and -y
    exchanged, in which it was at -a_k. That is the image with x and -x exchanged, which shows the particle turned by 180
    degrees about y, turned by 180 degrees.
    """
    poses, shifts = [], []
    for is_mirrored in (False, True):
        for k in range(N_ANGLES):
            angle = (k + 0.5) * (2 * math.pi / N_ANGLES)
            rotation = rotation_of_view(torch.tensor(angle + math.pi if is_mirrored else -angle), is_mirrored)
            poses.append(left_multiplication(rotation))
            shifts.append(quaternion_to_matrix(rotation)[:2, :2].T)
    return torch.stack(poses), torch.stack(shifts)


class PolarEncoder(nn.Module):
    """Finds the particle's centre in a coarse copy of the image, then analyses circles about it."""

    def __init__(self, box_size_px: int, filter_channels: int, activation: str, width: int, dropout: float):
        super().__init__()
        self.box_size_px = box_size_px
        self.front = MatchedLowPass(box_size_px, filter_channels)
        # the Nyquist frequency has no counterpart on the other side: an image with it would change when it is rotated
        self.register_buffer("inside", (radius_px(box_size_px) < box_size_px / 2).float(), persistent=False)
        channels = [width * 3 // 2, 2 * width, 2 * width, 2 * width]
        self.circles = CircleNetwork(self.front.n_channels, box_size_px, width, channels, activation)
        self.dropout, self.out_features = nn.Dropout(dropout), self.circles.out_features

        self.coarse_box_size_px = min(CENTRING_BOX_PX, box_size_px)
        coarse = self.coarse_box_size_px
        radius = radius_px(coarse)
        masks = torch.stack([(radius < coarse / 2).float(), torch.exp(-0.5 * (radius / (coarse / 8)) ** 2)])
        self.register_buffer("coarse_masks", masks, persistent=False)
        self.centring = CircleNetwork(len(masks), coarse, 32, [48, 48], activation)
        self.centre = nn.Linear(self.centring.out_features, 2)
        # no shift at first: images must not be shifted at random
        nn.init.zeros_(self.centre.weight), nn.init.zeros_(self.centre.bias)

    def forward(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"]) -> EquivariantFeatures:
        """Features of 2 ``N_ANGLES`` copies."""
        images_ft = fft_image(images) * torch.where(ctf < 0, -self.inside, self.inside)
        centre_of_box = self._centre(images_ft)
        # detached: the centre has a loss of its own, from which it is trained faster than through the pose
        centred_ft = images_ft * shift_phase(centre_of_box.detach() * self.box_size_px, self.box_size_px)
        features = self.dropout(self.circles(self.front.filtered(centred_ft)))
        return EquivariantFeatures(features, self.circles.pose_matrices, self.circles.shift_matrices, centre_of_box)

    def _centre(self, images_ft: Tensor) -> Tensor:
        """The shift (n, 2), as a part of the box and with the sign of rlnOriginX/Y, from low frequencies alone."""
        coarse_ft = crop_image_ft(images_ft, self.coarse_box_size_px)
        features = self.centring(ifft_image(coarse_ft[:, None] * self.coarse_masks))
        with torch.autocast(images_ft.device.type, enabled=False):
            shifts = self.centre(features.float())
            return SHIFT_UNIT_OF_BOX * (self.centring.shift_matrices @ shifts[..., None])[..., 0].mean(1)

    @torch.no_grad()
    def scale_input(self, factor: float | Float[Tensor, ""]) -> None:
        """Adapts the first layers to images of ``factor`` times less contrast."""
        for network in (self.circles, self.centring):
            network.layers[0].weight *= factor
