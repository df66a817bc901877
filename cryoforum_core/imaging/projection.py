"""The central-slice operator, its adjoint, and reconstruction by insertion.

The transform of the projection of a map along the beam is a slice of the map's transform through the origin: for
RELION's matrix A, ``image_ft(kx, ky) = map_ft(A^T (kx, ky, 0))``. The map's transform is sampled on a grid that is
``padding`` times finer than the box asks for, and interpolated trilinearly; trilinear interpolation multiplies the
map by sinc^2, so the map is divided by it first.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional

from ..geometry.rotations import quaternion_to_matrix
from .fourier import fft_volume, frequency_grid, half_plane_pixels, ifft_volume, radius_px
from .masks import soft_sphere


def gridding_correction(size: int, padding: int, device: torch.device | str = "cpu"
                        ) -> Float[Tensor, "{size} {size} {size}"]:
    """The real-space factor sinc^2 along x, y and z of trilinear interpolation: (D, D, D)."""
    offset = (torch.arange(size, device=device) - size // 2) / (padding * size)
    window = torch.sinc(offset).square()
    return window[:, None, None] * window[None, :, None] * window[None, None, :]


class FourierVolume:
    """The padded transform of a map, ready to be sliced.

    ``data`` has shape (1, C, 2M+1, 2M+1, M+2) for kz, ky in [-M, M] and kx in [0, M+1], in steps of 1/padding cycles
    per box; channels are real and imaginary part and, with ``with_gradient``, those of the derivatives along x, y
    and z. Only radii up to ``max_radius_px`` (cycles per box) can be sampled.
    """

    def __init__(self, data: Float[Tensor, "1 channels z z x"], box_size_px: int, padding: float, max_radius_px: float):
        # channels last: the corners of one sample lie together in memory (2x faster on a CPU with 8 channels)
        self.data = data.contiguous(memory_format=torch.channels_last_3d)
        self.box_size_px, self.padding, self.max_radius_px = box_size_px, padding, max_radius_px

    @classmethod
    def from_real(cls, volume: Float[Tensor, "d d d"], padding: int = 2, max_radius_px: float | None = None,
                  with_gradient: bool = False) -> "FourierVolume":
        """From a map (D, D, D) [z, y, x]; differentiable with respect to it."""
        size = volume.shape[-1]
        max_radius_px = size / 2 if max_radius_px is None else min(max_radius_px, size / 2)
        corrected = volume / gridding_correction(size, padding, volume.device).to(volume.dtype)
        channels = [cls._half_transform(corrected, padding, max_radius_px)]
        if with_gradient:
            # d/dk of sum V exp(-2 pi i k r) is the transform of -2 pi i r V, with r in boxes for k in cycles per box
            offset = (torch.arange(size, device=volume.device, dtype=volume.dtype) - size // 2) / size
            for axis_offset in (offset, offset[:, None], offset[:, None, None]):
                moment = cls._half_transform(corrected * axis_offset, padding, max_radius_px)
                channels.append(-2j * torch.pi * moment)
        data = torch.stack([part for channel in channels for part in (channel.real, channel.imag)])
        return cls(data[None], size, padding, max_radius_px)

    @staticmethod
    def _half_transform(volume: Tensor, padding: int, max_radius_px: float) -> Tensor:
        size, padded_size = volume.shape[-1], padding * volume.shape[-1]
        before = padded_size // 2 - size // 2
        volume_ft = fft_volume(functional.pad(volume, (before, padded_size - size - before) * 3))
        reach = _reach(padding, max_radius_px)
        # the outermost neighbours of a sample may lie beyond the Nyquist limit of the padded grid, where FFT order
        # wraps around; they have almost no weight
        index = torch.arange(-reach, reach + 1, device=volume.device) % volume_ft.shape[-2]
        columns = min(reach + 2, volume_ft.shape[-1])
        cropped = volume_ft[index][:, index][..., :columns]
        missing = reach + 2 - columns
        return torch.complex(functional.pad(cropped.real, (0, missing)), functional.pad(cropped.imag, (0, missing)))

    def to(self, device: torch.device | str) -> "FourierVolume":
        return FourierVolume(self.data.to(device), self.box_size_px, self.padding, self.max_radius_px)

    def magnified(self, factor: float) -> "FourierVolume":
        """The map enlarged by ``factor``: its transform at k is, up to a constant, this one's at ``factor`` k."""
        data = self.data
        if self.has_gradient:
            data = torch.cat([data[:, :2], data[:, 2:] * factor], dim=1)
        return FourierVolume(data, self.box_size_px, self.padding * factor, self.max_radius_px / factor)

    @property
    def has_gradient(self) -> bool:
        return self.data.shape[1] == 8

    def sample(self, points: Float[Tensor, "n m 3"]) -> Complex[Tensor, "n m"]:
        """Complex values (n, m) at ``points`` (n, m, 3) = (kx, ky, kz) in cycles per box."""
        (real, imaginary), sign = self._interpolate(points, 2)
        return torch.complex(real, imaginary * sign)

    def sample_with_gradient(self, points: Float[Tensor, "n m 3"]) -> tuple[
            Complex[Tensor, "n m"], tuple[Complex[Tensor, "n m"], Complex[Tensor, "n m"], Complex[Tensor, "n m"]]]:
        """Values (n, m), and their derivatives along kx, ky and kz per cycle per box, each (n, m)."""
        channels, sign = self._interpolate(points, 8)
        # where the mirrored point was sampled: the value is the conjugate, and the derivative minus the conjugate
        gradient = tuple(torch.complex(channels[i] * sign, channels[i + 1]) for i in (2, 4, 6))
        return torch.complex(channels[0], channels[1] * sign), gradient

    def _interpolate(self, points: Tensor, n_channels: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """The first channels (n, m) each at ``points``, mirrored to kx >= 0, and signs (n, m), -1 where mirrored."""
        sign, grid = _half_space_grid(points, self.padding, self.data.shape)
        # one copy (without memory) of the data for each row: PyTorch's CPU kernel works on rows in parallel
        data = self.data[:, :n_channels].expand(len(grid), -1, -1, -1, -1)
        sampled = functional.grid_sample(data, grid, align_corners=True)
        return tuple(channel.reshape(points.shape[:2]) for channel in sampled.unbind(1)), sign

    def project(self, quaternion: Float[Tensor, "n 4"], box_size_px: int | None = None,
                max_radius_px: float | None = None) -> Complex[Tensor, "n b b//2+1"]:
        """Transforms (N, B, B // 2 + 1) of the projections along the beam, zero beyond ``max_radius_px``.

        ``quaternion``: (N, 4). With a smaller ``box_size_px`` the images are Fourier-cropped, sums kept.
        """
        box_size_px = box_size_px or self.box_size_px
        limit = min(max_radius_px or self.max_radius_px, self.max_radius_px, box_size_px / 2)
        ky, kx = frequency_grid(box_size_px, quaternion.device)
        rows, columns = torch.nonzero(radius_px(box_size_px, quaternion.device) <= limit, as_tuple=True)
        k = torch.stack([kx[columns], ky[rows, 0]], dim=-1).to(quaternion.dtype)
        values = self.sample(slice_points(quaternion, k))
        images = values.new_zeros(len(quaternion), box_size_px, box_size_px // 2 + 1)
        images[:, rows, columns] = values
        return images


def slice_points(quaternion: Float[Tensor, "n 4"], k: Float[Tensor, "m 2"]) -> Float[Tensor, "n m 3"]:
    """Where the pixels ``k`` (m, 2) = (kx, ky) of images with poses (N, 4) lie in the map's transform: (N, m, 3)."""
    matrix = quaternion_to_matrix(quaternion)
    return k @ matrix[:, :2, :]


# memory for the sums that threads make side by side; beyond, fewer threads insert
MAX_INSERTION_BYTES = 4 * 2**30


def _reach(padding: int, max_radius_px: float) -> int:
    return int(padding * max_radius_px) + 1


def _half_space_grid(points: Tensor, padding: float, shape: torch.Size, max_rows: int | None = None
                     ) -> tuple[Tensor, Tensor]:
    """Signs (n, m), -1 where points (n, m, 3) are mirrored to kx >= 0, and coordinates (rows, 1, 1, p, 3) for
    grid_sample, with no more rows than ``max_rows``."""
    sign = torch.where(points[..., 0] < 0, -1.0, 1.0).to(points.dtype)
    scaled = points * (sign * padding)[..., None]
    half_z, last_x = (shape[-3] - 1) / 2, shape[-1] - 1
    grid = torch.stack([scaled[..., 0] * (2.0 / last_x) - 1.0, scaled[..., 1] / half_z, scaled[..., 2] / half_z], dim=-1)
    return sign, grid.reshape(*_rows(points, max_rows), 3)


def _rows(points: Tensor, max_rows: int | None) -> tuple[int, int, int, int]:
    n, m = points.shape[:2]
    # the CPU kernels share the rows among the threads
    threads = torch.get_num_threads() if points.device.type == "cpu" else 1
    threads = threads if max_rows is None else min(threads, max_rows)
    rows = next(rows for rows in range(min(threads, n), 0, -1) if n % rows == 0) if n else 1
    return rows, 1, 1, n * m // rows if n else 0


class Reconstructor:
    """Direct Fourier inversion: images inserted as slices, weighted by their CTF^2, Wiener-divided.

    Insertion is the exact adjoint of ``FourierVolume.sample`` (the same trilinear weights).
    """

    def __init__(self, box_size_px: int, padding: int = 2, max_radius_px: float | None = None,
                 dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        self.box_size_px, self.padding = box_size_px, padding
        self.max_radius_px = box_size_px / 2 - 1 if max_radius_px is None else max_radius_px
        reach = _reach(padding, self.max_radius_px)
        shape = (2 * reach + 1, 2 * reach + 1, reach + 2)
        # channels: real part and imaginary part of the numerator, weight
        self.sums = torch.zeros(1, 3, *shape, dtype=dtype, device=device)

    def insert_points(self, values: Complex[Tensor, "n m"], weights: Float[Tensor, "n m"], points: Float[Tensor, "n m 3"]
                      ) -> None:
        """Adds complex ``values`` (n, m) and real ``weights`` (n, m) at ``points`` (n, m, 3) in cycles per box."""
        # each row gets sums of its own before they are added: 0.8 GB at 256 px
        max_rows = max(1, MAX_INSERTION_BYTES // (self.sums.numel() * self.sums.element_size()))
        sign, grid = _half_space_grid(points, self.padding, self.sums.shape, max_rows)
        contribution = torch.stack([values.real, values.imag * sign, weights]).to(self.sums.dtype)
        rows = len(grid)
        contribution = contribution.reshape(3, rows, 1, 1, -1).movedim(1, 0).contiguous()
        # the derivative of interpolation with respect to the grid IS the adjoint; PyTorch's kernel computes it
        added, _ = torch.ops.aten.grid_sampler_3d_backward(
            contribution, self.sums.expand(rows, -1, -1, -1, -1), grid.to(self.sums.dtype), 0, 0, True, [True, False])
        self.sums += added.sum(0, keepdim=True)

    def insert(self, images_ft: Complex[Tensor, "n b b//2+1"], ctf: Float[Tensor, "n b b//2+1"],
               quaternion: Float[Tensor, "n 4"], weight: Float[Tensor, " n"] | Float[Tensor, "n b b//2+1"] | None = None
               ) -> None:
        """Adds images (N, B, B // 2 + 1), centred and with shifts undone, with their CTFs and poses (N, 4).

        ``weight`` (N,) or (N, B, B // 2 + 1): how much each image counts, e.g. one over the noise power.
        """
        index, k = half_plane_pixels(self.box_size_px, self.max_radius_px, 0.0, images_ft.device)
        # the constant term is no one's mate and half_plane_pixels leaves it out
        index, k = torch.cat([index.new_zeros(1), index]), torch.cat([k.new_zeros(1, 2), k])
        image, ctf = images_ft.flatten(-2)[:, index], ctf.flatten(-2)[:, index]
        weight = torch.ones_like(ctf[:, :1]) if weight is None else (
            weight[:, None] if weight.ndim == 1 else weight.flatten(-2)[:, index])
        self.insert_points(weight * ctf * image, weight * ctf.square(),
                           slice_points(quaternion, k.to(quaternion.dtype)))

    def volume(self, wiener: float = 1e-3) -> Float[Tensor, "d d d"]:
        """The map (D, D, D). No voxel's weight counts as less than ``wiener`` times the mean of its shell.

        The corners outside of the inscribed sphere are flat, as RELION leaves them.
        """
        numerator, weight = self.completed()
        radius = self.radius_px()
        shells = radius.round().long()
        counts = torch.bincount(shells.flatten()).clamp_min(1)
        mean = (torch.bincount(shells.flatten(), weight.flatten()) / counts).to(weight.dtype)
        inside = (radius <= self.max_radius_px) & (mean[shells] > 0)
        floor = (wiener * mean).clamp_min(1e-30)
        return self._to_real(torch.where(inside, numerator / torch.maximum(weight, floor[shells]), 0))

    def posterior_mean(self, signal_power: Float[Tensor, " shells"], max_radius_px: float | None = None
                       ) -> Float[Tensor, "d d d"]:
        """The map (D, D, D) expected under a Gaussian prior of ``signal_power`` (D // 2 + 1,) per Fourier voxel.

        Weights must be inverse noise variances (whitened images): ``numerator / (weight + 1 / power)``. Nothing beyond
        ``max_radius_px`` is kept.
        """
        numerator, weight = self.completed()
        radius = self.radius_px()
        shells = radius.round().long().clamp_max(len(signal_power) - 1)
        inside = radius <= min(self.max_radius_px, max_radius_px or self.max_radius_px)
        precision = signal_power.clamp_min(1e-30).reciprocal()[shells]
        return self._to_real(torch.where(inside, numerator / (weight + precision), 0))

    def shell_weight(self) -> Float[Tensor, " shells"]:
        """Mean weight of the voxels in each shell (D // 2 + 1,), with the padded grid's finer steps."""
        radius, weight = self.radius_px(), self.completed()[1]
        shells = radius.round().long().flatten()
        n_shells = self.box_size_px // 2 + 1
        sums = torch.bincount(shells, weight.flatten(), minlength=n_shells)
        return (sums / torch.bincount(shells, minlength=n_shells).clamp_min(1))[:n_shells].to(weight.dtype)

    def radius_px(self) -> Float[Tensor, "z z x"]:
        """Radius of every voxel of ``sums`` in cycles per box."""
        reach = (self.sums.shape[-3] - 1) // 2
        kz = torch.arange(-reach, reach + 1, device=self.sums.device, dtype=self.sums.dtype) / self.padding
        kx = torch.arange(reach + 2, device=self.sums.device, dtype=self.sums.dtype) / self.padding
        return torch.sqrt(kz[:, None, None].square() + kz[None, :, None].square() + kx.square())

    def completed(self) -> tuple[Complex[Tensor, "z z x"], Float[Tensor, "z z x"]]:
        """Numerator and weight with the plane kx = 0 completed: its half in memory got only half of the slices."""
        real, imaginary, weight = self.sums[0].clone()
        mate = torch.flip(self.sums[0, :, :, :, 0], dims=(-2, -1))
        real[..., 0] += mate[0]
        imaginary[..., 0] -= mate[1]
        weight[..., 0] += mate[2]
        return torch.complex(real, imaginary), weight

    def _to_real(self, quotient: Tensor) -> Tensor:
        padded_size = self.padding * self.box_size_px
        reach = (quotient.shape[0] - 1) // 2
        index = torch.arange(-reach, reach + 1, device=quotient.device) % padded_size
        columns = min(quotient.shape[-1], padded_size // 2 + 1)
        full = quotient.new_zeros(padded_size, padded_size, padded_size // 2 + 1)
        full[index[:, None], index[None, :], :columns] = quotient[..., :columns]
        before = padded_size // 2 - self.box_size_px // 2
        centre = slice(before, before + self.box_size_px)
        correction = gridding_correction(self.box_size_px, self.padding, quotient.device)
        return _flat_corners(ifft_volume(full)[centre, centre, centre] / correction.to(quotient.real.dtype))


def _flat_corners(volume: Tensor) -> Tensor:
    """The map with everything outside the inscribed sphere, which is noise and aliases, replaced by its mean."""
    sphere = soft_sphere(len(volume), len(volume) / 2, 3.0, volume.device).to(volume.dtype)
    outside = (volume * (1 - sphere)).sum() / (1 - sphere).sum()
    return volume * sphere + outside * (1 - sphere)
