"""Centred Fourier transforms of images and maps; cropping, shifts, frequencies and shells on their grids.

An image's transform is ``rfft2`` of the image with its centre (index B // 2) moved to index 0: shape
``(..., B, B // 2 + 1)``, rows ky in FFT order (0, 1, ..., -1), columns kx >= 0, no normalisation. Boxes are even.
"""

import torch
from jaxtyping import Complex, Float, Inexact, Int
from torch import Tensor


def _centre_phase(box_size_px: int, n_dimensions: int, like: Tensor) -> Tensor:
    """(-1)^(k1 + k2 + ...) on the half-complex grid: moves the centre from index 0 to index B // 2."""
    full = 1.0 - 2.0 * (torch.arange(box_size_px, device=like.device) % 2)
    phase = full[:box_size_px // 2 + 1]
    for _ in range(n_dimensions - 1):
        phase = full.reshape(-1, *[1] * phase.ndim) * phase
    return phase.to(like.real.dtype if like.is_complex() else like.dtype)


def fft_image(images: Float[Tensor, "*batch b b"]) -> Complex[Tensor, "*batch b b//2+1"]:
    """Images (..., B, B) to centred transforms (..., B, B // 2 + 1)."""
    return torch.fft.rfft2(images) * _centre_phase(images.shape[-1], 2, images)


def ifft_image(images_ft: Inexact[Tensor, "*batch b b//2+1"]) -> Float[Tensor, "*batch b b"]:
    """Centred transforms (..., B, B // 2 + 1) to images (..., B, B)."""
    box_size_px = images_ft.shape[-2]
    return torch.fft.irfft2(images_ft * _centre_phase(box_size_px, 2, images_ft), s=(box_size_px, box_size_px))


def fft_volume(volume: Float[Tensor, "*batch d d d"]) -> Complex[Tensor, "*batch d d d//2+1"]:
    """Maps (..., D, D, D) [z, y, x] to centred transforms (..., D, D, D // 2 + 1), kz and ky in FFT order."""
    return torch.fft.rfftn(volume, dim=(-3, -2, -1)) * _centre_phase(volume.shape[-1], 3, volume)


def ifft_volume(volume_ft: Inexact[Tensor, "*batch d d d//2+1"]) -> Float[Tensor, "*batch d d d"]:
    """Centred transforms (..., D, D, D // 2 + 1) to maps (..., D, D, D)."""
    size = volume_ft.shape[-2]
    return torch.fft.irfftn(volume_ft * _centre_phase(size, 3, volume_ft), s=(size,) * 3, dim=(-3, -2, -1))


def _crop_rows(box_size_px: int, new_box_size_px: int, device) -> Tensor:
    half = new_box_size_px // 2
    return torch.cat([torch.arange(half, device=device), torch.arange(box_size_px - half, box_size_px, device=device)])


def crop_image_ft(images_ft: Inexact[Tensor, "*batch b b//2+1"], new_box_size_px: int
                  ) -> Inexact[Tensor, "*batch {new_box_size_px} {new_box_size_px}//2+1"]:
    """Centred transforms (..., B, B // 2 + 1) cropped to a smaller box; grey values of the image are kept."""
    box_size_px = images_ft.shape[-2]
    if new_box_size_px == box_size_px:
        return images_ft
    rows = _crop_rows(box_size_px, new_box_size_px, images_ft.device)
    return images_ft[..., rows, :new_box_size_px // 2 + 1] * (new_box_size_px / box_size_px) ** 2


def crop_image(images: Float[Tensor, "*batch b b"], new_box_size_px: int
               ) -> Float[Tensor, "*batch {new_box_size_px} {new_box_size_px}"]:
    """Images (..., B, B) with fewer, larger pixels: (..., b, b), same field of view, grey values kept."""
    if new_box_size_px == images.shape[-1]:
        return images
    return ifft_image(crop_image_ft(fft_image(images), new_box_size_px))


def crop_volume(volume: Float[Tensor, "d d d"], new_box_size_px: int
                ) -> Float[Tensor, "{new_box_size_px} {new_box_size_px} {new_box_size_px}"]:
    """A map (D, D, D) with fewer, larger voxels: (d, d, d), same field of view.

    Values scale so that projections (sums over z) keep the grey values of projections of the original map.
    """
    size = volume.shape[-1]
    if new_box_size_px == size:
        return volume
    rows = _crop_rows(size, new_box_size_px, volume.device)
    cropped = fft_volume(volume)[..., rows, :, :][..., rows, :][..., :new_box_size_px // 2 + 1]
    return ifft_volume(cropped * (new_box_size_px / size) ** 2)


def resize_volume(volume: Float[Tensor, "d d d"], new_box_size_px: int
                  ) -> Float[Tensor, "{new_box_size_px} {new_box_size_px} {new_box_size_px}"]:
    """A map (D, D, D) with fewer or more voxels in the same field of view: (d, d, d), scaled as by ``crop_volume``.

    More voxels add no detail: frequencies from the old Nyquist limit on are zero.
    """
    size = volume.shape[-1]
    if new_box_size_px <= size:
        return crop_volume(volume, new_box_size_px)
    volume_ft = fft_volume(volume)
    padded = volume_ft.new_zeros(new_box_size_px, new_box_size_px, new_box_size_px // 2 + 1)
    half = size // 2
    old = torch.cat([torch.arange(half), torch.arange(half + 1, size)]).to(volume.device)
    new = torch.where(old < half, old, old + new_box_size_px - size)
    padded[new[:, None], new[None, :], :half] = volume_ft[old][:, old][..., :half]
    return ifft_volume(padded * (new_box_size_px / size) ** 2)


def volume_radius_px(size: int, device: torch.device | str = "cpu") -> Float[Tensor, "{size} {size} {size}//2+1"]:
    """Fourier radius of each voxel of a map's half-complex grid, in cycles per box: (D, D, D // 2 + 1)."""
    k = torch.fft.fftfreq(size, 1.0 / size, device=device)
    kx = torch.arange(size // 2 + 1, device=device, dtype=k.dtype)
    return torch.sqrt(k[:, None, None].square() + k[None, :, None].square() + kx.square())


def with_shell_power(volume_ft: Complex[Tensor, "d d d//2+1"], like_ft: Complex[Tensor, "d d d//2+1"]
                     ) -> Complex[Tensor, "d d d//2+1"]:
    """A map's transform (D, D, D // 2 + 1) scaled to the power of another in each shell."""
    shells = volume_radius_px(volume_ft.shape[0], volume_ft.device).round().long()

    def power(transform: Tensor) -> Tensor:
        return torch.bincount(shells.flatten(), transform.abs().square().flatten())

    return volume_ft * (power(like_ft) / power(volume_ft).clamp_min(1e-30)).sqrt()[shells]


def low_pass_volume(volume: Float[Tensor, "d d d"], radius_px: float, width_px: float = 0.7) -> Float[Tensor, "d d d"]:
    """A map (b, b, b) without the frequencies beyond a radius in cycles per box, with a soft edge."""
    radius = volume_radius_px(len(volume), volume.device)
    return ifft_volume(fft_volume(volume) * torch.sigmoid((radius_px - radius) / width_px))


def frequency_grid(box_size_px: int, device: torch.device | str = "cpu"
                   ) -> tuple[Float[Tensor, "{box_size_px} 1"], Float[Tensor, " {box_size_px}//2+1"]]:
    """(ky, kx) of the half-complex grid in cycles per box (integers as float32), shapes (B, 1) and (B // 2 + 1,)."""
    ky = torch.fft.fftfreq(box_size_px, 1.0 / box_size_px, device=device)[:, None]
    kx = torch.arange(box_size_px // 2 + 1, device=device, dtype=ky.dtype)
    return ky, kx


def radius_px(box_size_px: int, device: torch.device | str = "cpu"
              ) -> Float[Tensor, "{box_size_px} {box_size_px}//2+1"]:
    """Fourier radius of each pixel of the half-complex grid, in cycles per box: (B, B // 2 + 1)."""
    ky, kx = frequency_grid(box_size_px, device)
    return torch.hypot(ky, kx.expand(box_size_px, -1))


def shell_index(box_size_px: int, device: torch.device | str = "cpu"
                ) -> Int[Tensor, "{box_size_px} {box_size_px}//2+1"]:
    """Shell of each pixel of the half-complex grid, the rounded radius, at most B // 2: (B, B // 2 + 1) int64."""
    return radius_px(box_size_px, device).round().long().clamp_max(box_size_px // 2)


def half_plane_pixels(box_size_px: int, max_radius_px: float, min_radius_px: float = 0.5,
                      device: torch.device | str = "cpu") -> tuple[Int[Tensor, " m"], Float[Tensor, "m 2"]]:
    """The pixels of a transform that are not each other's Friedel mates, with radius in [min, max].

    Returns flat indices (m,) into a (B, B // 2 + 1) transform and their (kx, ky) in cycles per box (m, 2).
    A sum over them is half of a sum over the full transform.
    """
    ky, kx = frequency_grid(box_size_px, device)
    radius = radius_px(box_size_px, device)
    wanted = (radius >= min_radius_px) & (radius <= max_radius_px) & ((kx > 0) | (ky > 0))
    # the Nyquist row and column have no mate of their own; a real image does not determine their phase
    wanted &= (kx < box_size_px // 2) & (ky > -box_size_px // 2)
    rows, columns = torch.nonzero(wanted, as_tuple=True)
    return rows * (box_size_px // 2 + 1) + columns, torch.stack([kx[columns], ky[rows, 0]], dim=-1)


def shift_phase(shift_px: Float[Tensor, "*batch 2"], box_size_px: int
                ) -> Complex[Tensor, "*batch {box_size_px} {box_size_px}//2+1"]:
    """Factors (..., B, B // 2 + 1) that move the content of an image by ``shift_px`` (..., 2) along (x, y).

    For RELION origins see ``geometry.poses.displacement_px``.
    """
    ky, kx = (k.to(shift_px.dtype) for k in frequency_grid(box_size_px, shift_px.device))
    shift_x, shift_y = (s[..., None, None] for s in shift_px.unbind(-1))
    angle = (-2.0 * torch.pi / box_size_px) * (kx * shift_x + ky * shift_y)
    return torch.polar(torch.ones_like(angle), angle)


def displaced_out_of_box(images_ft: Complex[Tensor, "n b b//2+1"], displacement_px: Float[Tensor, "n 2"]
                         ) -> Complex[Tensor, "n b b//2+1"]:
    """Transforms (n, B, B // 2 + 1) with the content moved by (n, 2) px along (x, y): what leaves the box is gone, and
    does not come in again at the other side as it does by ``shift_phase`` alone."""
    box_size_px = images_ft.shape[-2]
    margin = box_size_px // 2
    padded = torch.nn.functional.pad(ifft_image(images_ft), (margin,) * 4)
    moved = ifft_image(fft_image(padded) * shift_phase(displacement_px, 2 * box_size_px))
    return fft_image(moved[:, margin:-margin, margin:-margin].contiguous())


def shell_average(values: Float[Tensor, "*batch {box_size_px} {box_size_px}//2+1"], box_size_px: int
                  ) -> Float[Tensor, "*batch {box_size_px}//2+1"]:
    """Means over the shells of real values (..., B, B // 2 + 1): (..., B // 2 + 1).

    Pixels outside the inscribed circle count in no shell.
    """
    shells = shell_index(box_size_px, values.device)
    inside = radius_px(box_size_px, values.device) <= box_size_px // 2
    weight = inside.to(values.dtype).reshape(-1)
    flat = (values.reshape(*values.shape[:-2], -1)) * weight
    n_shells = box_size_px // 2 + 1
    sums = torch.zeros(*values.shape[:-2], n_shells, dtype=values.dtype, device=values.device)
    sums.index_add_(-1, shells.reshape(-1), flat)
    counts = torch.zeros(n_shells, dtype=values.dtype, device=values.device)
    counts.index_add_(0, shells.reshape(-1), weight)
    return sums / counts
