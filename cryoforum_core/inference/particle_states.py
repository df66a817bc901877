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
# states are found again at the refined poses, so many times: maps from poses that fit the given map still look like it
_ROUNDS = 2


@dataclass(frozen=True)
class MatchedSet:
    """Images, the map that they were matched to, and what that gave."""

    images: ImagePreparation
    volume: Float[Tensor, "b b b"]
    matcher: Matcher
    group: Float[Tensor, "g 4"]
    results: PoseResults
    """With evidence, and junk labels where there are any"""

    def in_states(self, seed: int) -> tuple[PoseResults, ParticleStates | None]:
        """Results with the poses of the particles in their states, and these; None for too few particles."""
        states, results = self.states(seed), self.results
        if states is None or not states.is_found:
            return results, states
        results = self.refined(states)
        for _ in range(_ROUNDS):
            again = self._states_again(states, results, seed)
            if again is None or not again.is_found:
                break
            states, results = again, self.refined(again, results)
        return results, states

    def states(self, seed: int) -> ParticleStates | None:
        """Of the images that are particles; None for too few of them."""
        junk = self.results.junk
        rows = np.arange(len(self.results)) if junk is None else np.flatnonzero(junk.particle_probability >= 0.5)
        half = np.random.default_rng([seed, 0x57A7E]).permutation(np.arange(len(rows)) % 2)
        return find_states(self._posed, rows, half, self.matcher.model.map_power, self.group, seed)

    def _states_again(self, states: ParticleStates, at: PoseResults, seed: int) -> ParticleStates | None:
        posed = replace(self, results=at)._posed
        return find_states(posed, states.rows, states.half, self.matcher.model.map_power, self.group, seed, states.found)

    def refined(self, states: ParticleStates, at: PoseResults | None = None) -> PoseResults:
        """Results with labels; particles in the minor state have poses, and posteriors near them, refined against a map of that
        state. The poses before are those of a map that they do not fit. ``at``: the poses at which the states were found, where
        these are not the results'."""
        results, model = self.results, self.matcher.model
        volume = self.volume + states.found.correction(MINOR, len(self.volume)).to(self.volume)
        fourier_volume = FourierVolume.from_real(volume, max_radius_px=model.max_radius_px + 1, with_gradient=True)
        places, posed = states.places(MINOR), self if at is None else replace(self, results=replace(at, states=None))
        for part in np.array_split(places, max(1, -(-len(places) // _BATCH_IMAGES))):
            if len(part):
                rows = states.rows[part]
                results = results.put(rows, posed._refined(rows, states.element[part], fourier_volume))
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
