"""An exhaustive search over all rotations and shifts, from a grid to refined poses."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.rotations import compose
from ..geometry.so3_grid import n_rotations_for_step, super_fibonacci
from .likelihood import MatchingImages
from .matching_model import MatchingModel
from .refine import RefinedPoses
from .search import DISPLACEMENT_STEP_OF_WAVE, GridReferences, displacement_grid, distinct_best, score_grid

# Step of the grid of rotations.
SEARCH_STEP_DEG = 7.5
# Radius of the exhaustive search in cycles per box: rotations of some 4 degrees, the distance to the nearest node of that
# grid, displace the outermost features of a particle that fills two thirds of its box by one pixel there.
SEARCH_RADIUS_PX = 10.0
# Hypotheses of an image that are refined.
N_HYPOTHESES = 16
# The fine search. Of the 70S ribosome's poses at SNR 0.05 that the search above leaves wrong, one at radius 12 finds 90 %
# (6 degrees, 64 hypotheses), at radius 14 98 % (7.5 degrees) and 99 % (5 degrees, in twice the time).
FINE_SEARCH_RADIUS_PX = 14.0
# as measured above
FINE_SEARCH_STEP_DEG = 7.5
# as measured above
N_FINE_HYPOTHESES = 64


@dataclass(frozen=True)
class SearchGrid:
    """The references of an exhaustive search, made once and used for every batch."""

    model: MatchingModel
    references: GridReferences
    radius_px: float
    displacement_px: Float[Tensor, "t 2"]
    separation_rad: float

    @classmethod
    def build(cls, model: MatchingModel, step_deg: float = SEARCH_STEP_DEG,
              radius_px: float = SEARCH_RADIUS_PX) -> "SearchGrid":
        """Rotations ``step_deg`` apart over the asymmetric unit, displacements a third of the finest wave apart."""
        device = model.volume.data.device
        radius_px = min(radius_px, model.max_radius_px)
        grid = asymmetric_unit(super_fibonacci(n_rotations_for_step(step_deg)).to(device), model.group)
        box_size_px = model.volume.box_size_px
        pixels = MatchingImages.from_transforms(
            torch.zeros(1, box_size_px, box_size_px // 2 + 1, dtype=torch.complex64, device=device),
            torch.zeros(1, box_size_px, box_size_px // 2 + 1, device=device), model.noise_spectrum, radius_px)
        step_px = DISPLACEMENT_STEP_OF_WAVE * box_size_px / radius_px
        displacement = displacement_grid(model.max_displacement_px, step_px).to(device)
        return cls(model, GridReferences.build(model.volume, grid, pixels.k), radius_px, displacement,
                   float(torch.deg2rad(torch.tensor(1.4 * step_deg))))

    def search(self, images: MatchingImages, n_hypotheses: int = N_HYPOTHESES, keep: int = 2,
               chunk: int = 64) -> RefinedPoses:
        """The best poses anywhere: hypotheses from the grid, refined; best first, fields (n, keep, ...)."""
        low = images.up_to(self.radius_px)
        quaternion, displacement = [], []
        for rows in torch.arange(len(images)).split(chunk):
            score, which = score_grid(low[rows], self.references, self.displacement_px)
            best = distinct_best(score, self.references.quaternion, n_hypotheses, self.separation_rad)
            quaternion.append(self.references.quaternion[best])
            displacement.append(self.displacement_px[which.gather(1, best).long()])
        return self.model.refine_from(images, torch.cat(quaternion), torch.cat(displacement),
                                      1.2 * self.radius_px, keep)


def asymmetric_unit(grid: Float[Tensor, "n 4"], group: Float[Tensor, "g 4"]) -> Float[Tensor, "kept 4"]:
    """The rotations (r, 4) of a grid (R, 4) that are nearer to the identity than their equivalents q g."""
    if len(group) == 1:
        return grid
    nearness = torch.stack([compose(grid, element)[:, 3].abs() for element in group.to(grid)])
    return grid[nearness[0] >= nearness.amax(dim=0) - 1e-6]
