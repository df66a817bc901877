"""The map reconstructed from the labelled images: its projections are training images, too."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.rotations import compose
from ..imaging.fourier import crop_volume, fft_image, fft_volume, ifft_volume, shift_phase, volume_radius_px
from ..imaging.masks import soft_sphere, solvent_mask
from ..imaging.projection import FourierVolume, Reconstructor
from ..imaging.resolution import fourier_shell_correlation, resolution_angstrom

# equivalent poses at which an image of a large group is inserted: more cost time and fill no gaps
_MAX_EQUIVALENTS = 8
# cycles per box; the solvent mask of a coarser map is not to be trusted
_MASKED_FROM_RADIUS_PX = 11


class LabelMap:
    """Inserts labelled images, alternately into two half maps; ``finish`` filters their mean by the FSC."""

    def __init__(self, box_size_px: int, pixel_size_angstrom: float, group: Float[Tensor, "g 4"]):
        """group: the symmetry."""
        self.box_size_px, self.pixel_size_angstrom, self.group = box_size_px, pixel_size_angstrom, group
        self.halves = [Reconstructor(box_size_px) for _ in range(2)]

    def add(self, images: Float[Tensor, "n b b"], ctf: Float[Tensor, "n b b//2+1"], quaternion: Float[Tensor, "n 4"],
            shift_angstrom: Float[Tensor, "n 2"]) -> None:
        """Adds images with CTFs, poses and origins."""
        centred = fft_image(images) * shift_phase(shift_angstrom / self.pixel_size_angstrom, self.box_size_px)
        # of a large group a few equivalents of each image are enough, spread over the group
        step = max(1, len(self.group) // _MAX_EQUIVALENTS)
        for operation in self.group[::step]:
            pose = compose(quaternion, operation.to(quaternion))
            for half, reconstructor in enumerate(self.halves):
                chosen = slice(half, None, 2)
                reconstructor.insert(centred[chosen], ctf[chosen], pose[chosen])

    def finish(self) -> Float[Tensor, "b b b"]:
        """The map: the mean of the half maps within a soft sphere, each shell times the share of it that is
        signal, ``2 FSC / (1 + FSC)``; within a solvent mask, where the half maps agree well enough to make one."""
        sphere = soft_sphere(self.box_size_px, 0.45 * self.box_size_px, 0.05 * self.box_size_px)
        first, second = (reconstructor.volume() * sphere for reconstructor in self.halves)
        fsc = fourier_shell_correlation(first, second).clamp_min(0).to(first.dtype)
        # from the first shell that is noise on, agreement is chance
        fsc = fsc * (torch.cumsum((fsc < 0.1).int(), 0) == 0)
        radius = volume_radius_px(self.box_size_px).round().long().clamp_max(len(fsc) - 1)
        weight = (2 * fsc / (1 + fsc))[radius]
        volume = ifft_volume(fft_volume(0.5 * (first + second)) * weight) * sphere
        # in pixels of 1 A
        resolution_radius_px = self.box_size_px / resolution_angstrom(fsc, self.box_size_px, 1.0)
        if resolution_radius_px < _MASKED_FROM_RADIUS_PX:
            return volume
        return volume * solvent_mask(volume, resolution_radius_px)


def network_volume(volume: Float[Tensor, "d d d"], box_size_px: int) -> FourierVolume:
    """A map with the images' field of view as the volume to be sliced at the network's box."""
    return FourierVolume.from_real(crop_volume(volume, min(box_size_px, len(volume))))
