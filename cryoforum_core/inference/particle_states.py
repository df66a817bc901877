"""The states of particles that were matched to a map; those in the minor state are matched to a map of it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..geometry.poses import displacement_px
from ..geometry.rotations import compose
from ..imaging.projection import FourierVolume
from ..matching.matcher import Matcher, StartingPoses, refined_matches
from ..particles.image_preparation import ImagePreparation
from ..results.pose_results import PoseResults
from ..results.write import poses_of
from ..states.labelling import MINOR, ParticleStates, find_states
from ..states.two_states import STATES_RADIUS_PX, PosedImages
from .match_results import match_results

# matched at a time
_BATCH_IMAGES = 256


@dataclass(frozen=True)
class MatchedSet:
    """Images, the map that they were matched to, and what that gave."""

    images: ImagePreparation
    volume: Float[Tensor, "b b b"]
    matcher: Matcher
    group: Float[Tensor, "g 4"]
    results: PoseResults
    """With evidence, and junk labels where there are any"""

    def states(self, seed: int) -> ParticleStates | None:
        """Of the images that are particles; None for too few of them."""
        junk = self.results.junk
        rows = np.arange(len(self.results)) if junk is None else np.flatnonzero(junk.particle_probability >= 0.5)
        half = np.random.default_rng([seed, 0x57A7E]).permutation(np.arange(len(rows)) % 2)
        return find_states(self._posed, rows, half, self.matcher.model.map_power, self.group, seed)

    def refined(self, states: ParticleStates) -> PoseResults:
        """Results with labels; particles in the minor state have poses, and posteriors near them, refined against a map of that
        state. The poses before are those of a map that they do not fit."""
        results, model = self.results, self.matcher.model
        volume = self.volume + states.found.correction(MINOR, len(self.volume)).to(self.volume)
        fourier_volume = FourierVolume.from_real(volume, max_radius_px=model.max_radius_px + 1, with_gradient=True)
        places = states.places(MINOR)
        for part in np.array_split(places, max(1, -(-len(places) // _BATCH_IMAGES))):
            if len(part):
                rows = states.rows[part]
                results = results.put(rows, self._refined(rows, states.element[part], fourier_volume))
        return replace(results, states=states.labels(len(results)))

    def _poses(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        poses = poses_of(self.results[rows], torch.float32).to(self.images.device)
        return poses.quaternion, displacement_px(poses.shift_angstrom, self.images.pixel_size_angstrom)

    def _posed(self, rows: Int[np.ndarray, " n"]) -> PosedImages:
        model, contrast = self.matcher.model, torch.from_numpy(self.results.evidence.contrast[rows])
        images = model.images(*self.images.transforms(rows)).with_contrast(contrast.to(self.images.device))
        return PosedImages.of(images, model.volume, *self._poses(rows), self.group)

    def _refined(self, rows: np.ndarray, element: np.ndarray, volume: FourierVolume) -> PoseResults:
        """The particles' results with the pose of the state, and all that is known of it; other orientations stay."""
        quaternion, displacement = self._poses(rows)
        quaternion = compose(quaternion, self.group.to(quaternion)[torch.from_numpy(element).to(quaternion.device)])
        start = StartingPoses(quaternion[:, None], displacement[:, None])
        matches = refined_matches(self.matcher, volume, *self.images.transforms(rows), start, STATES_RADIUS_PX)
        found, before = match_results(matches, self.results.particle_id[rows], self.group,
                                      self.images.pixel_size_angstrom), self.results[rows]
        evidence = replace(before.evidence, **{name: getattr(found.evidence, name) for name in (
            "local_deviation_rad", "shift_deviation_angstrom", "contrast", "split_error_rad")})
        return replace(before, quaternion=found.quaternion, shift_angstrom=found.shift_angstrom, bingham=found.bingham,
                       match=replace(before.match, evidence=evidence))
