"""Images whitened by the noise spectrum: what the likelihood sees of them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from ..imaging.fourier import half_plane_pixels, ifft_image, shell_index


@dataclass(frozen=True)
class WhitenedImages:
    """Whitened images on the pixels of half of the Fourier plane, ordered by radius.

    ``data`` (n, m) complex; ``transfer`` (n, m) real, the factor c; ``k`` (m, 2) = (kx, ky) in cycles per box;
    ``radius`` (m,) ascending.
    """

    data: Complex[Tensor, "n m"]
    transfer: Float[Tensor, "n m"]
    k: Float[Tensor, "m 2"]
    radius: Float[Tensor, " m"]
    box_size_px: int

    @classmethod
    def from_transforms(cls, images_ft: Complex[Tensor, "n b b//2+1"], ctf: Float[Tensor, "n b b//2+1"],
                        noise_spectrum: Float[Tensor, " b//2+1"], max_radius_px: float,
                        amplitude: Float[Tensor, " b//2+1"] | None = None) -> "WhitenedImages":
        """From transforms (n, B, B // 2 + 1), CTFs of the same shape and the noise power of each shell.

        ``amplitude`` (B // 2 + 1,): signal amplitude of the images over that of the map, in each shell.
        """
        box_size_px = images_ft.shape[-2]
        index, k = half_plane_pixels(box_size_px, max_radius_px, device=images_ft.device)
        radius = k.norm(dim=-1)
        order = torch.argsort(radius, stable=True)
        index, k, radius = index[order], k[order], radius[order]
        shells = shell_index(box_size_px, images_ft.device).flatten()[index]
        inverse_deviation = noise_spectrum[shells].rsqrt()
        transfer = ctf.flatten(-2)[:, index] * inverse_deviation
        if amplitude is not None:
            transfer = transfer * amplitude[shells]
        return cls(images_ft.flatten(-2)[:, index] * inverse_deviation, transfer, k, radius, box_size_px)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index) -> "WhitenedImages":
        """Some of the images: ``index`` is a slice, indices or a mask."""
        return WhitenedImages(self.data[index], self.transfer[index], self.k, self.radius, self.box_size_px)

    def up_to(self, max_radius_px: float) -> "WhitenedImages":
        """The same images without the pixels beyond ``max_radius_px``."""
        # pixels are sorted by radius
        m = int((self.radius <= max_radius_px).sum())
        return WhitenedImages(self.data[:, :m], self.transfer[:, :m], self.k[:m], self.radius[:m], self.box_size_px)

    def pixels(self, index: Int[Tensor, " p"]) -> "WhitenedImages":
        """The same images on some of their pixels: ``index`` (p,), ascending."""
        return WhitenedImages(self.data[:, index], self.transfer[:, index], self.k[index], self.radius[index],
                              self.box_size_px)

    def with_contrast(self, contrast: Float[Tensor, " n"]) -> "WhitenedImages":
        """The same images, each expected to have ``contrast`` (n,) times the model's signal."""
        return replace(self, transfer=self.transfer * contrast[:, None])

    def displacement_phase(self, displacement_px: Float[Tensor, "*batch 2"]) -> Complex[Tensor, "*batch m"]:
        """Factors (..., m) that displace an image by (..., 2) px along (x, y)."""
        angle = (-2.0 * torch.pi / self.box_size_px) * (displacement_px @ self.k.T)
        return torch.polar(torch.ones_like(angle), angle)


def to_images(values: Complex[Tensor, "n m"], images: WhitenedImages) -> Float[Tensor, "n b b"]:
    """Values (n, m) on the pixels of ``images`` as real images (n, B, B)."""
    box_size_px = images.box_size_px
    full = values.new_zeros(len(values), box_size_px, box_size_px // 2 + 1)
    kx, ky = images.k.long().unbind(-1)
    full[:, ky % box_size_px, kx] = values
    # the column kx = 0 holds both members of each pair
    column = kx == 0
    full[:, (-ky[column]) % box_size_px, 0] = values[:, column].conj()
    return ifft_image(full)
