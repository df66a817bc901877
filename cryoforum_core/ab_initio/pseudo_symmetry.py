"""Pseudo-symmetric molecules: a rotation by 180 degrees lays the map nearly on itself (pseudo-C2).

Each image then has two orientations that the map can hardly distinguish.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from ..geometry.rotations import compose, inverse, quaternion_to_matrix
from ..geometry.symmetry import symmetry_group
from ..imaging.masks import solvent_mask
from ..imaging.resolution import fourier_shell_correlation
from ..imaging.symmetry_frame import symmetry_frame
from ..imaging.volume_frame import move_volume
from .antisymmetric_part import AntisymmetricPart
from .half_map_pair import HalfMapPair, next_radius_px
from .half_sets import HalfSets
from .rounds import Refinement

# finest frequency, in cycles per box, by which the axis is found
AXIS_RADIUS_PX = 12.0
# mean FSC of a map and its rotated copy up to the resolution: 0.84 for adenylate kinase (4AKE, two chains), 0.06 to 0.10 for
# the ribosome, its small subunit and one chain of 4AKE
MIN_AGREEMENT = 0.5
# coarser shells hold the size of the molecule alone
_FIRST_SHELL = 3


@dataclass(frozen=True)
class PseudoTwofold:
    """The map at ``r`` is nearly that at ``rotation r + translation_px``; ``agreement``: their mean FSC.

    ``rotation`` by 180 degrees; ``translation_px`` across its axis, in px of the particles' own box.
    """

    rotation: Float[Tensor, " 4"]
    translation_px: Float[Tensor, " 3"]
    agreement: float

    def other(self, quaternion: Float[Tensor, "n 4"], displacement_px: Float[Tensor, "n 2"]
              ) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n 2"]]:
        """The other orientations and displacements of images."""
        moved = quaternion_to_matrix(quaternion) @ self.translation_px
        return compose(quaternion, self.rotation.expand_as(quaternion)), displacement_px + moved[:, :2]


def find_pseudo_twofold(pair: HalfMapPair, box_size_px: int) -> PseudoTwofold | None:
    """The pseudo-C2 symmetry of the map; None where it has none. ``box_size_px``: the particles' own."""
    resolution_px = pair.resolution_radius_px
    volume = pair.mean_reference * solvent_mask(pair.mean_reference, resolution_px)
    group = symmetry_group("c2").to(volume)
    frame = symmetry_frame(volume, group, min(AXIS_RADIUS_PX, resolution_px))
    # W(r) = V(R (r - t)) has the axis in its middle: V is itself at R C R^-1 r + R (C t - t)
    rotation = compose(compose(frame.rotation, group[1]), inverse(frame.rotation))
    translation_px = quaternion_to_matrix(frame.rotation) @ (
        quaternion_to_matrix(group[1]) @ frame.translation_px - frame.translation_px)
    rotated = move_volume(volume, rotation, -(quaternion_to_matrix(inverse(rotation)) @ translation_px))
    fsc = fourier_shell_correlation(volume, rotated)[_FIRST_SHELL:max(_FIRST_SHELL, int(resolution_px)) + 1]
    agreement = float(fsc.mean())
    if agreement < MIN_AGREEMENT:
        return None
    return PseudoTwofold(rotation, translation_px * (box_size_px / len(volume)), agreement)


def is_other_way_round(half_sets: HalfSets, refinement: Refinement, twofold: PseudoTwofold, max_radius_px: float, seed: int
                       ) -> Bool[Tensor, " n"] | None:
    """For each image whether its other orientation is the right one, or for each the other way; None where
    held-out images do not confirm that there is a difference.

    All images decide this together, as they do in classifications, before the half sets are refined independently again.
    """
    pair = refinement.pair
    images = half_sets.scaled(pair.noise_spectrum, next_radius_px(pair, max_radius_px))
    mask = solvent_mask(pair.mean_reference, pair.resolution_radius_px)
    return AntisymmetricPart(images, refinement.poses, twofold.other, mask, seed).is_other_way_round()
