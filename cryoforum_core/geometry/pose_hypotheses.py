"""The poses that each particle may have, with their posterior probabilities."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .poses import Poses, shift_angstrom
from .rotations import compose, rotation_vector_to_quaternion

# kept for each particle: at a radius of 12 cycles per box one particle in ten of the noisiest sets fits a wrong pose better
# than its own; the details that tell come later (``docs/decisions/0039-alternative-poses.md``)
N_HYPOTHESES = 4
# 20 degrees: the Gaussian approximation means nothing beyond, as for an image that leaves an axis undetermined
_LARGEST_DEVIATION_RAD = 0.35


@dataclass(frozen=True, eq=False)
class PoseHypotheses:
    """K hypotheses of the pose of every particle, best first, with their posterior weights.

    ``quaternion`` (N, K, 4); ``displacement_px`` (N, K, 2) in px of the particles' own box; ``score`` (N, K) the
    log-likelihood ratio to an empty image, -inf of those dropped; ``weight`` (N, K) their posterior, which sums to 1;
    ``information`` (N, 3, 3) about the rotation vector (rad, in the molecule's frame) near the best.
    """

    quaternion: Float[Tensor, "n k 4"]
    displacement_px: Float[Tensor, "n k 2"]
    score: Float[Tensor, "n k"]
    weight: Float[Tensor, "n k"]
    information: Float[Tensor, "n 3 3"]

    @classmethod
    def of(cls, quaternion: Float[Tensor, "n 4"], displacement_px: Float[Tensor, "n 2"]) -> "PoseHypotheses":
        """One pose for each particle, (N, 4) and (N, 2), and nothing known about its error."""
        n = len(quaternion)
        score = quaternion.new_full((n, N_HYPOTHESES), -torch.inf)
        score[:, 0] = 0
        return cls(quaternion[:, None].repeat(1, N_HYPOTHESES, 1), displacement_px[:, None].repeat(1, N_HYPOTHESES, 1),
                   score, torch.isfinite(score).to(score.dtype), quaternion.new_zeros(n, 3, 3))

    @classmethod
    def empty(cls, n: int, device: torch.device) -> "PoseHypotheses":
        quaternion = torch.zeros(n, 4, device=device)
        quaternion[:, 3] = 1
        return cls.of(quaternion, torch.zeros(n, 2, device=device))

    def __len__(self) -> int:
        return len(self.quaternion)

    def best(self) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n 2"]]:
        """Rotation (N, 4) and displacement in px (N, 2) of the best hypotheses."""
        return self.quaternion[:, 0], self.displacement_px[:, 0]

    def best_poses(self, pixel_size_angstrom: float) -> Poses:
        quaternion, displacement_px = self.best()
        return Poses(quaternion, shift_angstrom(displacement_px, pixel_size_angstrom))

    @property
    def median_spread_deg(self) -> float:
        """Of the root-mean-square rotation by which the best pose may be off, by its local posterior."""
        precision = torch.linalg.eigvalsh(self.information.double()).clamp_min(_LARGEST_DEVIATION_RAD ** -2)
        return float(torch.rad2deg(precision.reciprocal().sum(1).sqrt()).median())

    def at(self, rows: Int[Tensor, " m"]) -> "PoseHypotheses":
        """Those of particles ``rows`` (n,); a copy."""
        return PoseHypotheses(*(values[rows] for values in vars(self).values()))

    def copy(self) -> "PoseHypotheses":
        return PoseHypotheses(*(values.clone() for values in vars(self).values()))

    def with_rows(self, rows: Int[Tensor, " m"], others: "PoseHypotheses") -> "PoseHypotheses":
        """A copy in which those of n particles stand for particles ``rows`` (n,)."""
        changed = self.copy()
        for name, values in vars(others).items():
            getattr(changed, name)[rows] = values
        return changed

    def with_two(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> "PoseHypotheses":
        """A copy with two hypotheses for every particle, (N, 4) and (N, 2) each, as likely as its best was; the first has
        all the weight until they are refined."""
        changed = self.copy()
        for k, (q, d) in enumerate((first, second)):
            changed.quaternion[:, k], changed.displacement_px[:, k] = q, d
        changed.score[:, 1] = changed.score[:, 0]
        changed.score[:, 2:] = -torch.inf
        changed.weight[:] = 0
        changed.weight[:, 0] = 1
        return changed

    def sample(self, rows: Int[Tensor, " m"], pixel_size_angstrom: float, generator: torch.Generator) -> Poses:
        """One pose for each of ``rows`` (m,), drawn from its posterior; ``pixel_size_angstrom`` of the particles' own box.

        A network trained on such draws q of an image, by their negative log-likelihood under ``exp(-q'Aq) / F(A)``,
        minimises in expectation ``log F(A) + tr(A E[q q'])``: of the posterior only ``E[q q']``, ten numbers, counts.
        """
        rows = rows.to(self.weight.device)
        chosen = torch.multinomial(self.weight[rows], 1, generator=generator)[:, 0]
        quaternion, displacement = self.quaternion[rows, chosen], self.displacement_px[rows, chosen]
        precision, axes = torch.linalg.eigh(self.information[rows].double())
        deviation = precision.clamp_min(_LARGEST_DEVIATION_RAD ** -2).rsqrt()
        normal = torch.randn(len(rows), 3, generator=generator, device=self.weight.device, dtype=torch.float64)
        vector_rad = (axes @ (deviation * normal)[..., None])[..., 0].to(quaternion)
        return Poses(compose(quaternion, rotation_vector_to_quaternion(vector_rad)),
                     shift_angstrom(displacement, pixel_size_angstrom))

    def to(self, device: torch.device | str) -> "PoseHypotheses":
        return PoseHypotheses(*(values.to(device) for values in vars(self).values()))
