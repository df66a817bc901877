"""The whole network: encoder and head, rebuilt from a handful of settings."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .encoder import MIN_BOX_SIZE_PX, make_encoder
from .orientation_head import OrientationHead, PoseEstimate


@dataclass(frozen=True)
class NetworkConfig:
    """What rebuilds a network. ``box_size_px`` and ``pixel_size_angstrom`` are those of the images it sees."""

    box_size_px: int
    pixel_size_angstrom: float
    encoder: str = "compact"
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
        self.to(memory_format=torch.channels_last)  # 1.6 times faster on a CPU

    @property
    def box_size_angstrom(self) -> float:
        return self.head.box_size_angstrom

    def forward(self, images: Tensor, ctf: Tensor) -> PoseEstimate:
        """Images (n, B, B) and CTFs (n, B, B // 2 + 1), as ``particles.preprocess`` makes them, to poses."""
        return self.head(self.encoder(images, ctf))
