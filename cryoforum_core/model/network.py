"""The whole network: encoder and head, rebuilt from a handful of settings."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..geometry.rotations import (
    compose,
    inverse,
    left_multiplication,
    quaternion_to_matrix,
    rotation_of_view,
    smallest_eigenvector,
)
from ..geometry.symmetry import nearest_equivalent
from ..imaging.fourier import fft_image, ifft_image
from .encoder import MIN_BOX_SIZE_PX, make_encoder
from .orientation_head import OrientationHead, PoseEstimate
from .polar import PolarEncoder

# rotations by multiples of 90 degrees, mirrored or not: they need no interpolation
_N_COPIES = 8


@dataclass(frozen=True)
class NetworkConfig:
    """The settings that rebuild a network. ``box_size_px`` and ``pixel_size_angstrom`` are those of the images it sees."""

    box_size_px: int
    pixel_size_angstrom: float
    encoder: str = "polar"
    head: str = "qcqp"
    filter_channels: int = 5
    pooling: str = "auto"
    activation: str = "auto"
    width: int | None = None
    dropout: float = 0.0

    def __post_init__(self):
        if self.box_size_px % 2 or self.box_size_px < MIN_BOX_SIZE_PX:
            raise ValueError(f"The network's box must be even and at least {MIN_BOX_SIZE_PX} px; "
                             f"got {self.box_size_px}.")


class OrientationNetwork(nn.Module):
    """Prepared images and their CTFs to poses with an uncertainty."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config.encoder, config.box_size_px, config.filter_channels, config.pooling,
                                    config.activation, config.width, config.dropout)
        box_size_angstrom = config.box_size_px * config.pixel_size_angstrom
        self.head = OrientationHead(self.encoder.out_features, config.head, box_size_angstrom)
        # weight of the posteriors of all copies of an image together, relative to one; calibrated on held-out images
        self.register_buffer("ensemble_weight", torch.ones(()))
        self.register_load_state_dict_pre_hook(_read_earlier_names)
        self.to(memory_format=torch.channels_last)  # 1.6 times faster on a CPU

    @property
    def box_size_angstrom(self) -> float:
        return self.head.box_size_angstrom

    @property
    def is_equivariant(self) -> bool:
        """Whether the encoder is equivariant to in-plane rotation and mirroring."""
        return isinstance(self.encoder, PolarEncoder)

    def forward(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"]) -> PoseEstimate:
        """Images and CTFs, as ``particles.image_preparation`` makes them, to poses."""
        return self.head(self.encoder(images, ctf))

    def predict(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"],
                group: Float[Tensor, "g 4"] | None = None) -> PoseEstimate:
        """As ``forward``, with a calibrated posterior: see ``ensemble_weight``.

        An encoder that is equivariant to rotation and mirroring is shown the image once. Any other is shown it, its
        rotations by 90, 180 and 270 degrees, and the mirror images of these four: errors 15 to 20 %
        lower for eight times the work.

        The pose q' of a copy is that of the image, q, times a known rotation r on the left (``rotation_of_view``). As
        q' = L q with a matrix L of r, the eight posteriors A' are eight posteriors ``L' A' L`` of the image's pose. Their
        noise is the same, so they do not count as eight: ``ensemble_weight`` is the weight of their mean. For a molecule
        with the symmetry ``group`` the eight may peak at different equivalent poses: they are rotated to that of
        the first.
        """
        if self.is_equivariant:
            seen = self(images, ctf)
            return PoseEstimate(seen.quaternion, seen.bingham * self.ensemble_weight, seen.shift_angstrom)
        bingham, shift_angstrom, first = 0.0, 0.0, None
        for is_mirrored in (False, True):
            if is_mirrored:
                images, ctf = mirror_image(images), ctf_of_view(mirror_image, ctf)
            for quarter in range(4):
                angle = torch.tensor(0.5 * math.pi * quarter, device=images.device)
                rotation = rotation_of_view(angle, is_mirrored)
                seen = self(images, ctf)
                left = left_multiplication(rotation).to(seen.bingham)
                answer = left.T @ seen.bingham @ left
                if group is not None and len(group) > 1:
                    mode = compose(inverse(rotation).to(seen.quaternion), seen.quaternion)
                    first = mode if first is None else first
                    answer = _moved_to_equivalent(answer, mode, first, group)
                bingham = bingham + answer / _N_COPIES
                in_plane = quaternion_to_matrix(rotation)[:2, :2].to(seen.shift_angstrom)
                shift_angstrom = shift_angstrom + seen.shift_angstrom @ in_plane / _N_COPIES
                images, ctf = rotate_90_deg(images), ctf_of_view(rotate_90_deg, ctf)
        bingham = bingham * self.ensemble_weight
        return PoseEstimate(smallest_eigenvector(bingham), bingham, shift_angstrom)


def _read_earlier_names(_: nn.Module, state: dict[str, Tensor], prefix: str, *_others) -> None:
    """Weights as earlier versions wrote them: ``ensemble_weight`` was ``worth_of_views``."""
    if prefix + "worth_of_views" in state:
        state[prefix + "ensemble_weight"] = state.pop(prefix + "worth_of_views")


def rotate_90_deg(images: Float[Tensor, "*batch b b"]) -> Float[Tensor, "*batch b b"]:
    """Images rotated by 90 degrees, +x towards +y, about the pixel B // 2; without interpolation."""
    return images.transpose(-1, -2).flip(-1).roll(1, -1)


def mirror_image(images: Float[Tensor, "*batch b b"]) -> Float[Tensor, "*batch b b"]:
    """Images with x and -x exchanged, about the pixel B // 2."""
    return images.flip(-1).roll(1, -1)


def ctf_of_view(change: Callable[[Tensor], Tensor], ctf: Float[Tensor, "*batch b b//2+1"]
                ) -> Float[Tensor, "*batch b b//2+1"]:
    """The CTFs of rotated or mirrored images: by way of the point-spread functions, which change like
    images."""
    return fft_image(change(ifft_image(torch.complex(ctf, torch.zeros_like(ctf))))).real


def _moved_to_equivalent(bingham: Tensor, mode: Tensor, reference: Tensor, group: Tensor) -> Tensor:
    """Posteriors (n, 4, 4) with modes (n, 4), rotated to the equivalent poses nearest to the references (n, 4)."""
    operation = compose(inverse(mode), nearest_equivalent(mode, reference, group))
    # q -> q g is linear in q: its matrix R carries the posterior A to R A R'
    unit = torch.eye(4, dtype=mode.dtype, device=mode.device)
    right = compose(unit, operation[:, None]).transpose(-1, -2).to(bingham)
    return right @ bingham @ right.transpose(-1, -2)
