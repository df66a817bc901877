"""The final frame of poses and maps: centred, on the symmetry's axes, or aligned to a reference, which decides the hand."""

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.rotations import compose, inverse
from ..imaging.fourier import resize_volume
from ..imaging.map_alignment import HALF_TURN_Z, align_to_reference
from ..imaging.symmetry_frame import NO_SYMMETRY_BELOW, symmetry_frame
from ..imaging.volume_frame import centre_of_mass_px, mirror_volume, move_volume, rotate_volume

logger = logging.getLogger("cryoforum")

# finest frequency, in cycles per box, by which a map is laid on a reference: as fine as the start of the half maps
REFERENCE_RADIUS_PX = 8.0
# and by which the axes of the symmetry are found: nearly as fine as the search goes
AXES_RADIUS_PX = 10.0

# of the hand, in ``summary.json``: that of the reference, or one of two that images cannot tell
AS_REFERENCE = "as in the reference"
UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class FramedMap:
    """A map in the final frame."""

    volume: Float[Tensor, "b b b"]
    symmetry_score: float | None
    """How well the map agrees with its symmetrised copy; None for c1"""
    hand: str
    rotation: Float[Tensor, " 4"]
    """what brought the map here, but for the hand: a rotation ``rotation g rotation^-1`` of the frame in which the map
    was found is ``g`` here"""

    def group_before(self, group: Float[Tensor, "g 4"]) -> Float[Tensor, "g 4"]:
        """A point group of this frame as it lies in the one in which the map was found."""
        return compose(compose(self.rotation, group), inverse(self.rotation))


def into_final_frame(volume: Float[Tensor, "b b b"], group: Float[Tensor, "g 4"], mask_radius_px: float,
                     hand_reference: Float[Tensor, "B B B"] | None, seed: int) -> FramedMap:
    """Moves a map; ``mask_radius_px`` in its own pixels; ``hand_reference`` has its field of view."""
    rotation = torch.tensor([0.0, 0.0, 0.0, 1.0], device=volume.device)
    score, hand = None, UNDETERMINED
    if hand_reference is not None:
        reference = resize_volume(hand_reference.to(volume.device), len(volume))
        found = align_to_reference(volume, reference, REFERENCE_RADIUS_PX)
        if found.is_mirrored:
            # mirrored in z: a rotation about any axis is then the one about the axis rotated by 180 degrees about z
            volume, rotation = mirror_volume(volume), rotation.new_tensor(HALF_TURN_Z)
        volume, hand = move_volume(volume, found.rotation, found.translation_px), AS_REFERENCE
        rotation = compose(rotation, found.rotation.to(rotation))
    if len(group) > 1:
        frame = symmetry_frame(volume, group, AXES_RADIUS_PX, seed)
        score = float(frame.score)
        logger.info("correlation of the map with its symmetrised copy: %.2f", score)
    if score is not None and score >= NO_SYMMETRY_BELOW:
        volume = move_volume(volume, frame.rotation, frame.translation_px)
        rotation = compose(rotation, frame.rotation.to(rotation))
    elif hand_reference is None:
        volume = move_volume(volume, rotation, -centre_of_mass_px(volume, mask_radius_px))
    return FramedMap(volume, score, hand, rotation)


def with_hand_of_reference(volume: Float[Tensor, "b b b"], hand_reference: Float[Tensor, "B B B"] | None, max_radius_px: float
                           ) -> tuple[Float[Tensor, "b b b"], str]:
    """A map on its symmetry's axes, inverted through its centre where the reference has the other hand, and what is known of
    the hand: the inversion leaves all rotation axes where they are."""
    if hand_reference is None:
        return volume, UNDETERMINED
    found = align_to_reference(volume, resize_volume(hand_reference.to(volume.device), len(volume)), max_radius_px)
    if found.is_mirrored:
        volume = rotate_volume(mirror_volume(volume), volume.new_tensor(HALF_TURN_Z))
    return volume, AS_REFERENCE
