"""Half maps and their FSC, and how a round makes them from matched images.

The half sets are refined independently from one low-resolution start (gold standard). Their FSC says how far each map is
to be trusted: it sets the prior of the next map, and the finest resolution of the next round. Only the lowest frequencies
are shared, so that the two maps cannot drift apart.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ..geometry.rotations import compose, random_quaternions
from ..imaging.fourier import shell_average
from ..imaging.masks import solvent_mask
from ..imaging.projection import FourierVolume, Reconstructor, slice_points
from ..imaging.resolution import fourier_shell_correlation
from ..matching.matching_model import MatchingModel
from ..matching.whitened_images import WhitenedImages

# RELION shares what is coarser than 40 A; in cycles per box it is as little
JOINED_RADIUS_PX = 3.0
# of two half maps: where a map of all images has a signal-to-noise ratio of 1/3 (Rosenthal and Henderson 2003)
FSC_LIMIT = 0.143
# an FSC of 1 would ask for no prior at all, one below this for no signal at all
_FSC_RANGE = (1e-3, 0.999)
# beyond the resolution and a tenth of it, so that a round can find what the one before did not
_SPARE_SHELLS = 3
# the solvent mask is made of the half maps once they agree so many shells beyond their common start, whose mask it would
# otherwise be
_SHELLS_BEFORE_MASKING = 3
# part of the voxels of a shell that count as reached by a slice: those with a hundredth of the shell's mean weight
_SAMPLED_WEIGHT = 0.01
# the shell's FSC below which there is but noise; the second such shell ends what the prior trusts
_NOISE_FSC = 0.05


@dataclass(frozen=True)
class HalfMapPair:
    """Maps of the two half sets: ``raw`` as they are measured, ``reference`` as the data support them; their FSC, and the
    noise power per shell of the images, whose box may be another."""

    raw: tuple[Float[Tensor, "b b b"], Float[Tensor, "b b b"]]
    reference: tuple[Float[Tensor, "b b b"], Float[Tensor, "b b b"]]
    fsc: Float[Tensor, " b//2+1"]
    noise_spectrum: Float[Tensor, " shells"]
    sampled_fraction: float
    """Part of the Fourier voxels up to the finest resolution that the slices of the images reach"""

    @property
    def resolution_radius_px(self) -> float:
        """Cycles per box at which the FSC falls below 0.143."""
        below = torch.nonzero(self.fsc[1:] < FSC_LIMIT)
        return float(below[0] + 1) if len(below) else float(len(self.fsc) - 1)

    @property
    def mean_reference(self) -> Float[Tensor, "b b b"]:
        """Of both half sets."""
        return 0.5 * (self.reference[0] + self.reference[1])

    def without_solvent(self) -> "HalfMapPair":
        """The references with the solvent around the molecule flat: its noise would only mislead the matching.

        Solvent is three quarters of the sphere and more; masking it lowered the error of poses from 1.31 to 1.06
        times the Cramer-Rao bound (``docs/decisions/0037-solvent-mask.md``). Both half maps get the same mask, as fine as
        they agree.
        """
        mask = solvent_mask(self.mean_reference, self.resolution_radius_px)
        return replace(self, reference=(self.reference[0] * mask, self.reference[1] * mask))

    def masked_beyond(self, common_radius_px: float) -> "HalfMapPair":
        """Without solvent, once the half maps agree well beyond ``common_radius_px``, to which they started from one map."""
        return self.without_solvent() if self.resolution_radius_px > common_radius_px + _SHELLS_BEFORE_MASKING else self


def matching_model(volume: Float[Tensor, "b b b"], noise_spectrum: Float[Tensor, " shells"], group: Float[Tensor, "g 4"],
                   max_radius_px: float, max_displacement_px: float) -> MatchingModel:
    """The matching model of a map that was reconstructed from the images themselves, so that it has their amplitude."""
    fourier_volume = FourierVolume.from_real(volume, max_radius_px=max_radius_px + 1, with_gradient=True)
    views = random_quaternions(200, torch.Generator().manual_seed(0)).to(volume.device)
    power = shell_average(fourier_volume.project(views).abs().square().mean(0), volume.shape[-1])
    return MatchingModel(fourier_volume, noise_spectrum, torch.ones_like(noise_spectrum), power, group, max_radius_px,
                         max_displacement_px)


def resized_spectrum(spectrum: Float[Tensor, " shells"], box_size_px: int, new_box_size_px: int
                     ) -> Float[Tensor, " {new_box_size_px}//2+1"]:
    """Noise power per shell of the same images Fourier-cropped (or not) to another box; zeros where it is unknown."""
    scale = (new_box_size_px / box_size_px) ** 4
    n = new_box_size_px // 2 + 1
    if n <= len(spectrum):
        return spectrum[:n] * scale
    return torch.cat([spectrum, spectrum.new_zeros(n - len(spectrum))]) * scale


class RoundSums:
    """What a round collects: the insertions of each half set, and the power that the maps leave unexplained."""

    def __init__(self, box_size_px: int, max_radius_px: float, device: torch.device):
        self.box_size_px, self.max_radius_px = box_size_px, max_radius_px
        self.halves = {half: Reconstructor(box_size_px, max_radius_px=max_radius_px, device=device) for half in (1, 2)}
        n_shells = box_size_px // 2 + 1
        self._residual, self._count = torch.zeros(n_shells, device=device), torch.zeros(n_shells, device=device)

    def add_residual(self, images: WhitenedImages, model: Complex[Tensor, "n m"]) -> None:
        shells = images.radius.round().long().clamp_max(len(self._residual) - 1)
        left = (images.data - model).abs().square().sum(0)
        self._residual.index_add_(0, shells, left)
        self._count.index_add_(0, shells, torch.full_like(left, len(images)))

    def insert(self, half: int, images: WhitenedImages, quaternion: Float[Tensor, "n 4"],
               displacement_px: Float[Tensor, "n 2"], weight: Float[Tensor, " n"], group: Float[Tensor, "g 4"]) -> None:
        """Images at poses, displaced, with ``weight``, and at the poses that the symmetry makes equivalent."""
        centred = (weight[:, None] * images.transfer) * images.data * images.displacement_phase(displacement_px).conj()
        power = weight[:, None] * images.transfer.square()
        for element in group.to(quaternion):
            self.halves[half].insert_points(centred, power, slice_points(compose(quaternion, element), images.k))

    def pair(self, mask: Float[Tensor, "b b b"], noise_spectrum: Float[Tensor, " b//2+1"]) -> HalfMapPair:
        """Half maps, their FSC, and the references that it allows."""
        first, second = self.halves[1], self.halves[2]
        raw = tuple(half.volume(1e-2) for half in (first, second))
        fsc = fourier_shell_correlation(raw[0] * mask, raw[1] * mask).float()
        self._join(first, second)
        power = _prior_power(fsc, first, second)
        reference = tuple(half.posterior_mean(power) * mask for half in (first, second))
        relative = torch.where(self._count > 0, self._residual / self._count.clamp_min(1), 1.0)
        return HalfMapPair(raw, reference, fsc, noise_spectrum * relative, _sampled_fraction(first, second))

    @staticmethod
    def _join(first: Reconstructor, second: Reconstructor) -> None:
        joined = first.radius_px() <= JOINED_RADIUS_PX
        mean = 0.5 * (first.sums + second.sums)
        first.sums = torch.where(joined, mean, first.sums)
        second.sums = torch.where(joined, mean, second.sums)


def _prior_power(fsc: Tensor, first: Reconstructor, second: Reconstructor) -> Tensor:
    """Signal power per Fourier voxel and shell: the FSC's signal-to-noise ratio ``FSC / (1 - FSC)`` of a half map times
    the noise of its voxels, one over their mean weight (Scheres 2012, J. Struct. Biol. 180, 519)."""
    weight = 0.5 * (first.shell_weight() + second.shell_weight())
    n = len(weight)
    trusted = fsc[:n].clamp(*_FSC_RANGE)
    # from the first shell that is noise on, agreement is chance
    trusted = torch.where(torch.cumsum((fsc[:n] < _NOISE_FSC).int(), 0) > 1, _FSC_RANGE[0], trusted)
    return trusted / (1 - trusted) / weight.clamp_min(1e-20)


def _sampled_fraction(first: Reconstructor, second: Reconstructor) -> float:
    """Part of the voxels within the finest resolution whose weight is above a hundredth of their shell's mean."""
    weight = first.sums[0, 2] + second.sums[0, 2]
    radius = first.radius_px()
    shells = radius.round().long()
    mean = (first.shell_weight() + second.shell_weight())[shells.clamp_max(len(first.shell_weight()) - 1)]
    inside = (radius <= first.max_radius_px) & (radius >= 2)
    inside[..., 0] = False  # its half in memory got only half of the slices
    return float((weight > _SAMPLED_WEIGHT * mean)[inside].float().mean())


def next_radius_px(pair: HalfMapPair, limit_px: float) -> float:
    """The finest frequency of the next round: some shells beyond the resolution of the half maps."""
    return min(limit_px, 1.1 * pair.resolution_radius_px + _SPARE_SHELLS)
