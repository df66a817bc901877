"""The state of every particle of a set."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..results.pose_results import StateLabels
from .two_states import MAX_POSES, PosedImages, TwoStates, find_two_states, probability_of_minor

logger = logging.getLogger("cryoforum")

MAJOR, MINOR = 1, 2
# images of a sample, whatever the number of equivalent poses
_LEAST_SAMPLE = 300
# images prepared at a time
_BATCH_IMAGES = 256

Posed = Callable[[np.ndarray], PosedImages]
"""Rows (n,) -> their images at their poses."""


@dataclass(frozen=True, eq=False)
class ParticleStates:
    """States of the particles ``rows``. ``half``: 0 or 1, of each; ``minor_probability`` of each, and ``element`` of the
    point group: the equivalent pose at which it is in the minor state. The last two are None where no second state was
    found."""

    found: TwoStates
    rows: Int[np.ndarray, " n"]
    half: Int[np.ndarray, " n"]
    minor_probability: Float[np.ndarray, " n"] | None = None
    element: Int[np.ndarray, " n"] | None = None

    @property
    def is_found(self) -> bool:
        return self.minor_probability is not None

    def places(self, state: int, half: int | None = None) -> Int[np.ndarray, " m"]:
        """In ``rows``, of the particles in a state, of one half or of both."""
        is_in_state = (self.minor_probability >= 0.5) == (state == MINOR)
        return np.flatnonzero(is_in_state & (True if half is None else self.half == half))

    def labels(self, n: int) -> StateLabels:
        """Of the n images of the set; those that are not among the particles are in neither state."""
        state, probability = np.zeros(n, np.int64), np.zeros(n, np.float32)
        state[self.rows], probability[self.rows] = MAJOR, self.minor_probability
        state[self.rows[self.places(MINOR)]] = MINOR
        return StateLabels(state, probability)

    def summary(self) -> dict[str, float | None]:
        """For ``summary.json``."""
        gain, error = self.found.gain, self.found.gain_error
        weakest = int(np.argmin(np.array(gain) / np.maximum(error, 1e-12)))
        fraction = len(self.places(MINOR)) / len(self.rows) if self.is_found else None
        return {"minor_state_fraction": fraction, "minor_state_gain": gain[weakest],
                "minor_state_gain_error": error[weakest]}


def find_states(posed: Posed, rows: Int[np.ndarray, " n"], half: Int[np.ndarray, " n"], map_power: Float[Tensor, " shells"],
                group: Float[Tensor, "g 4"], seed: int, start: TwoStates | None = None) -> ParticleStates | None:
    """Whether the particles ``rows`` are in two states, and which each is in; ``half`` (n,): 0 or 1. ``start``: states that were
    found at earlier poses. None for too few particles."""
    n_most = max(MAX_POSES // len(group), _LEAST_SAMPLE)
    some = np.arange(len(rows))
    if len(rows) > n_most:
        some = np.sort(np.random.default_rng([seed, 0x57]).choice(len(rows), n_most, replace=False))
    images = PosedImages.concatenate([posed(rows[part]) for part in _batches(some)])
    found = find_two_states(images, torch.from_numpy(half[some]).to(images.data.device), map_power, seed, start)
    if found is None:
        return None
    states = ParticleStates(found, rows, half)
    if found.is_found:
        states = ParticleStates(found, rows, half, *_probabilities(posed, states))
    _log(states)
    return states


def _probabilities(posed: Posed, states: ParticleStates) -> tuple[np.ndarray, np.ndarray]:
    """By the states that the other half found, and the equivalent poses: an image finds its own noise in its own."""
    probability, element = np.zeros(len(states.rows), np.float32), np.zeros(len(states.rows), np.int64)
    for number, corrections in enumerate(states.found.halves):
        for part in _batches(np.flatnonzero(states.half != number)):
            best = probability_of_minor(posed(states.rows[part]), corrections).max(0)
            probability[part], element[part] = best.values.cpu().numpy(), best.indices.cpu().numpy()
    return probability, element


def _batches(places: np.ndarray) -> list[np.ndarray]:
    return np.array_split(places, max(1, -(-len(places) // _BATCH_IMAGES)))


def _log(states: ParticleStates) -> None:
    summary = states.summary()
    evidence = f"{summary['minor_state_gain']:.2f} +- {summary['minor_state_gain_error']:.2f} nats per held-out image"
    if states.is_found:
        logger.info("Two states: %.0f %% of the particles are in the minor one (%s).", 100 * summary["minor_state_fraction"],
                    evidence)
    else:
        logger.info("No second state found (%s).", evidence)
