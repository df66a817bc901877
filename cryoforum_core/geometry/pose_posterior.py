"""The posterior of the poses of N particles: hypotheses, their weights, and how precise the best one is."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .poses import Poses
from .rotations import compose, rotation_vector_to_quaternion

# 20 degrees: the Gaussian approximation means nothing beyond, as for an image that leaves an axis undetermined
_LARGEST_DEVIATION_RAD = 0.35


@dataclass(frozen=True, eq=False)
class PosePosterior:
    """``quaternion`` (N, K, 4), ``shift_angstrom`` (N, K, 2), ``weight`` (N, K), which sums to 1; ``information``
    (N, 3, 3) about the rotation vector (rad, in the molecule's frame) near the first hypothesis, which counts for all."""

    quaternion: Float[Tensor, "n k 4"]
    shift_angstrom: Float[Tensor, "n k 2"]
    weight: Float[Tensor, "n k"]
    information: Float[Tensor, "n 3 3"]

    def __len__(self) -> int:
        return len(self.quaternion)

    def best(self) -> Poses:
        """The first hypotheses."""
        return Poses(self.quaternion[:, 0], self.shift_angstrom[:, 0])

    def sample(self, rows: Int[Tensor, " m"], generator: torch.Generator) -> Poses:
        """One pose for each of ``rows`` (n,), drawn from its posterior.

        A network trained on such draws q of an image, by their negative log-likelihood under ``exp(-q'Aq) / F(A)``,
        minimises in expectation ``log F(A) + tr(A E[q q'])``: of the posterior only ``E[q q']``, ten numbers, counts.
        """
        rows = rows.to(self.weight.device)
        chosen = torch.multinomial(self.weight[rows], 1, generator=generator)[:, 0]
        quaternion, shift_angstrom = self.quaternion[rows, chosen], self.shift_angstrom[rows, chosen]
        precision, axes = torch.linalg.eigh(self.information[rows].double())
        deviation = precision.clamp_min(_LARGEST_DEVIATION_RAD ** -2).rsqrt()
        normal = torch.randn(len(rows), 3, generator=generator, device=self.weight.device, dtype=torch.float64)
        vector_rad = (axes @ (deviation * normal)[..., None])[..., 0].to(quaternion)
        return Poses(compose(quaternion, rotation_vector_to_quaternion(vector_rad)), shift_angstrom)

    def outer_product(self) -> Float[Tensor, "n 4 4"]:
        """``sum_j p_j q_j q_j'`` over the hypotheses themselves: (N, 4, 4)."""
        return torch.einsum("nk,nki,nkj->nij", self.weight, self.quaternion, self.quaternion)

    def to(self, device: torch.device | str) -> "PosePosterior":
        return PosePosterior(*(value.to(device) for value in (self.quaternion, self.shift_angstrom, self.weight,
                                                              self.information)))
