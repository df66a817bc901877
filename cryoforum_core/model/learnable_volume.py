"""The map that an auto-encoder learns: voxels in real space, sliced in Fourier space (CryoPoseNet's decoder).

Nashed et al. 2021 (arXiv 2107.02958), algorithm 1: the map starts from uniform random numbers, is transformed once for
a batch, and each image is a central slice of that transform. Slices are those of ``imaging.projection``; gradients reach
the voxels and the poses through its trilinear interpolation.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..imaging.fourier import ifft_image, shift_phase
from ..imaging.masks import soft_sphere
from ..imaging.projection import FourierVolume


class LearnableVolume(nn.Module):
    """A map (b, b, b) whose voxels are parameters: ``unit`` times the parameters, inside a soft sphere.

    With a ``unit`` of the density's own size the parameters are of order one, whatever the grey values of the images,
    and one learning rate serves every data set.
    """

    def __init__(self, initial: Float[Tensor, "b b b"], mask_radius_px: float, unit: float = 1.0):
        """initial: map [z, y, x]; ``mask_radius_px``: there is no density outside."""
        super().__init__()
        self.voxels = nn.Parameter(initial / unit)
        self.register_buffer("unit", torch.as_tensor(unit, dtype=initial.dtype))
        edge_px = 0.05 * len(initial)
        self.register_buffer("mask", soft_sphere(len(initial), mask_radius_px, edge_px).to(initial), persistent=False)

    @classmethod
    def random(cls, box_size_px: int, mask_radius_px: float, generator: torch.Generator) -> "LearnableVolume":
        """Voxels uniform in [0, 1): a ball with noise in it, no more."""
        return cls(torch.rand(box_size_px, box_size_px, box_size_px, generator=generator), mask_radius_px)

    def map(self) -> Float[Tensor, "b b b"]:
        """The map [z, y, x]; projections (sums over z) have the images' grey values."""
        return self.voxels * (self.unit * self.mask)

    def transform(self, max_radius_px: float | None = None) -> FourierVolume:
        """The map's padded transform, to be made once for a batch and sliced for each of its images."""
        return FourierVolume.from_real(self.map(), max_radius_px=max_radius_px)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Multiplies the map, not its parameters."""
        self.unit *= factor


def decode(transform: FourierVolume, quaternion: Float[Tensor, "n 4"], displacement_px: Float[Tensor, "n 2"] | None,
           ctf: Float[Tensor, "n b b//2+1"]) -> Float[Tensor, "n b b"]:
    """Images of poses: central slices, moved by ``displacement_px`` along (x, y) where given, times the CTFs, transformed
    back."""
    box_size_px = ctf.shape[-2]
    images_ft = transform.project(quaternion, box_size_px) * ctf
    if displacement_px is not None:
        images_ft = images_ft * shift_phase(displacement_px, box_size_px)
    return ifft_image(images_ft)
