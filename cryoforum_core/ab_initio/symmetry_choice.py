"""Whether a symmetric map comes from a search in c1 on which the point group was imposed, or from one that had the group from
the start: held-out images decide."""

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..imaging.volume_frame import rotate_volume
from .random_starts import SearchResult

IMPOSED = "searched in c1, then imposed"
FROM_THE_START = "imposed from the start"
# a map found in c1 whose score is as high needs no other search; of near-spherical shells it was 0.4 to 0.7 where searches that
# had the group from the start explained the images better
CLEARLY_SYMMETRIC = 0.8
# the gain in log-evidence must be so many standard errors above zero
MIN_GAIN_ERRORS = 4


@dataclass(frozen=True)
class SymmetryChoice:
    """Which of the two was used, and the evidence for it."""

    used: str
    """``IMPOSED`` or ``FROM_THE_START``"""
    c1_symmetry_score: float
    """Correlation of the map that was searched in c1 with its symmetrised copy"""
    c1_explained_fraction: float | None
    """Part of the fine details of held-out images that this map explains; None where their background hides it"""
    gain: float | None = None
    """Log-evidence, in nats per held-out image, of the best map with the group from the start over the best one without; None
    where no search had the group from the start"""
    gain_error: float | None = None
    """Its standard error"""

    @property
    def is_from_the_start(self) -> bool:
        return self.used == FROM_THE_START

    def sentence(self) -> str:
        """For the log and the report."""
        explained = ("explains an unknown part of the fine details of held-out images, whose background holds more power than "
                     "they do" if self.c1_explained_fraction is None else
                     f"explains {max(0.0, self.c1_explained_fraction):.0%} of the fine details of held-out images")
        in_c1 = f"the map found in c1 correlates by {self.c1_symmetry_score:.2f} with its symmetrised copy and {explained}"
        if self.gain is None:
            return f"The symmetry was {self.used}: {in_c1}."
        return (f"The symmetry was {self.used}: the log-evidence of held-out images for the best map with the symmetry from "
                f"the start is {self.gain:+.2f} +- {self.gain_error:.2f} nats per image relative to the best map without; "
                f"{in_c1}.")

    def summary(self) -> dict:
        return asdict(self) | {"sentence": self.sentence()}


def suffices(in_c1: SearchResult, symmetry_score: float) -> bool:
    """Whether a map that was searched in c1 leaves nothing to find: held-out images confirm it, and it clearly has the
    symmetry."""
    return in_c1.is_settled and symmetry_score >= CLEARLY_SYMMETRIC


def choose(symmetry_score: float, in_c1: SearchResult, imposed: SearchResult | None, symmetric: SearchResult
           ) -> SymmetryChoice:
    """``in_c1``: the best map searched in c1; ``imposed``: with the group imposed, where it has the symmetry; ``symmetric``:
    the best with the group from the start. All assessed on the same images.

    A map without symmetry counts, too: a wrong group would otherwise be imposed on any molecule.
    """
    other = max((result for result in (in_c1, imposed) if result is not None), key=lambda result: result.score)
    gain = symmetric.held_out_evidence - other.held_out_evidence
    mean, error = float(gain.mean()), float(gain.std() / len(gain) ** 0.5)
    used = FROM_THE_START if mean > MIN_GAIN_ERRORS * error else IMPOSED
    return SymmetryChoice(used, symmetry_score, known(in_c1.explained_fraction), mean, error)


def known(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def symmetrised(volume: Float[Tensor, "b b b"], group: Float[Tensor, "g 4"]) -> Float[Tensor, "b b b"]:
    """The mean of a map under all operations of ``group`` (G, 4) in its own frame."""
    return torch.stack([rotate_volume(volume, operation) for operation in group]).mean(0)
