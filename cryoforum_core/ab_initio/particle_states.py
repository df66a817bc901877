"""The states of particles after the last round, and their poses, refined against maps of their own states."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

from ..geometry.pose_hypotheses import PoseHypotheses
from ..geometry.rotations import compose
from ..matching.matching_model import MatchingModel
from ..results.pose_results import PoseResults
from ..states.labelling import MAJOR, MINOR, ParticleStates, find_states
from ..states.two_states import PosedImages
from .half_sets import HalfSets, RoundImages, batches
from .hypothesis_refinement import refine_hypotheses, store_hypotheses
from .rounds import Refinement


@dataclass(frozen=True)
class LastRound:
    """What the last round left: ``refinement``, with maps as images are matched to them, and its images."""

    half_sets: HalfSets
    refinement: Refinement
    images: RoundImages

    def states(self, results: PoseResults, seed: int) -> ParticleStates | None:
        """Of the images that are particles, those of ``results``; None for too few of them.

        Each image is compared with its own half map, and its state found by what the other half set shows.
        """
        rows = np.flatnonzero(results.junk.particle_probability >= 0.5) if results.junk is not None else (
            np.arange(len(results)))
        models = [self._model(half) for half in (1, 2)]
        return find_states(lambda some: self._posed(some, models), rows, self.half_sets.halves[rows] - 1,
                           models[0].map_power, self.half_sets.group, seed)

    def refined(self, states: ParticleStates) -> PoseHypotheses:
        """All poses, those of the particles refined against maps of their own states: a half map is that of neither."""
        poses = self.refinement.poses.copy()
        for half in (1, 2):
            for state in (MAJOR, MINOR):
                model = self._model(half, states, state)
                for places in batches(states.places(state, half - 1)):
                    if len(places):
                        self._refine(poses, states.rows[places], states.element[places] if state == MINOR else None, model)
        return poses

    def _model(self, half: int, states: ParticleStates | None = None, state: int = MAJOR) -> MatchingModel:
        """Of a half map, or of a state: corrected by what the other half set shows, since an image finds its own noise in its
        own. Only shells that the half maps share for good are corrected."""
        volume = self.refinement.pair.reference[half - 1]
        if states is not None:
            volume = volume + states.found.correction(state, len(volume), 2 - half).to(volume)
        return self.images.model(volume)

    def _posed(self, rows: Int[np.ndarray, " n"], models: list[MatchingModel]) -> PosedImages:
        of_half = [np.flatnonzero(self.half_sets.halves[rows] == half) for half in (1, 2)]
        parts = [self._posed_of_half(rows[places], model) for places, model in zip(of_half, models, strict=True)
                 if len(places)]
        return PosedImages.concatenate(parts)[torch.from_numpy(np.argsort(np.concatenate(of_half)))]

    def _posed_of_half(self, rows: np.ndarray, model: MatchingModel) -> PosedImages:
        index = torch.from_numpy(rows).to(self.half_sets.device)
        quaternion, displacement_px = (values[index] for values in self.refinement.poses.best())
        return PosedImages.of(self._images(rows), model.volume, quaternion, displacement_px * self.images.scale,
                              self.half_sets.group)

    def _images(self, rows: np.ndarray):
        images, contrast = self.images.at(rows), self.refinement.contrast
        return images if contrast is None else images.with_contrast(contrast[torch.from_numpy(rows).to(contrast.device)])

    def _refine(self, poses: PoseHypotheses, rows: np.ndarray, element: np.ndarray | None, model: MatchingModel) -> None:
        """In place: hypotheses of ``rows``, from the equivalent poses at which they are in the state."""
        index, group = torch.from_numpy(rows).to(self.half_sets.device), self.half_sets.group
        quaternion = poses.quaternion[index]
        if element is not None:
            rotation = group.to(quaternion)[torch.from_numpy(element).to(index.device)]
            quaternion = compose(quaternion, rotation[:, None].expand(-1, quaternion.shape[1], -1))
        found = refine_hypotheses(self._images(rows), model, quaternion, poses.displacement_px[index] * self.images.scale,
                                  poses.score[index])
        store_hypotheses(poses, index, found, 1 / self.images.scale, group)
