"""A pose for each image, improved directly instead of by an encoder, and the optimizer that does it.

CryoPoseNet's baseline by automatic differentiation, and cryoSPIN's second stage (Shekarforoush et al. 2024): a pose
moves along the tangent of SO(3) at where it is.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..geometry.rotations import compose, rotation_vector_to_quaternion


class PoseTable(nn.Module):
    """Poses of N images: unit quaternions and shifts in Angstrom, sign of rlnOriginX/YAngst."""

    def __init__(self, quaternion: Float[Tensor, "n 4"], shift_angstrom: Float[Tensor, "n 2"]):
        super().__init__()
        self.quaternion, self.shift_angstrom = nn.Parameter(quaternion), nn.Parameter(shift_angstrom)

    def at(self, rows: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n 2"]]:
        """Quaternions and shifts of ``rows``."""
        return self.quaternion[rows], self.shift_angstrom[rows]

    @torch.no_grad()
    def set(self, rows: Int[Tensor, " n"], quaternion: Float[Tensor, "n 4"], shift_angstrom: Float[Tensor, "n 2"]) -> None:
        self.quaternion[rows], self.shift_angstrom[rows] = quaternion, shift_angstrom


def tangent_gradient(quaternion: Float[Tensor, "n 4"], gradient: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3"]:
    """The gradient with respect to a small rotation vector w, of a function of ``exp(w) q`` at w = 0.

    quaternion, gradient: the rotation and the derivatives with respect to its components. By the chain rule
    with ``d(exp(w) q) / dw_i = (e_i / 2) q``, a product of quaternions.
    """
    half_axes = 0.5 * torch.eye(4, dtype=quaternion.dtype, device=quaternion.device)[:3]
    return torch.einsum("nik,nk->ni", compose(half_axes, quaternion[:, None, :]), gradient)


class PoseAdam(torch.optim.Optimizer):
    """Adam for the rows of a PoseTable: only the images of a batch move, each with a step count of its own.

    Rotations move by ``exp(-rate m / sqrt(v))`` on the left, ``rate`` in radians; shifts by ``rate`` times
    ``shift_unit_angstrom``. One second moment for all axes, so that the frame does not matter. Adam for dense tensors
    would go on moving the images that are not in the batch.
    """

    def __init__(self, table: PoseTable, rate: float, shift_unit_angstrom: float, relative_rate: float = 1.0,
                 betas: tuple[float, float] = (0.9, 0.9)):
        defaults = {"lr": rate, "relative_rate": relative_rate, "betas": betas}
        super().__init__([{"params": [table.quaternion], "unit": 1.0},
                          {"params": [table.shift_angstrom], "unit": shift_unit_angstrom}], defaults)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            parameter = group["params"][0]
            if parameter.grad is None:
                continue
            rows = torch.nonzero(parameter.grad.abs().sum(1), as_tuple=True)[0]
            gradient = parameter.grad[rows]
            if parameter.shape[1] == 4:
                move = self._move(parameter, group, rows, tangent_gradient(parameter[rows], gradient))
                moved = compose(rotation_vector_to_quaternion(move), parameter[rows])
                parameter[rows] = nn.functional.normalize(moved, dim=-1)
            else:
                parameter[rows] += self._move(parameter, group, rows, gradient)

    def _move(self, parameter: Tensor, group: dict, rows: Tensor, gradient: Tensor) -> Tensor:
        """Adam's step of some rows, gradient (n, d) to move (n, d)."""
        state = self.state[parameter]
        if not state:
            state["mean"] = parameter.new_zeros(len(parameter), gradient.shape[1])
            state["square"], state["count"] = parameter.new_zeros(len(parameter)), parameter.new_zeros(len(parameter))
        first, second = group["betas"]
        state["count"][rows] += 1
        state["mean"][rows] = first * state["mean"][rows] + (1 - first) * gradient
        state["square"][rows] = second * state["square"][rows] + (1 - second) * gradient.square().sum(1)
        count = state["count"][rows]
        mean = state["mean"][rows] / (1 - first ** count)[:, None]
        size = (state["square"][rows] / (1 - second ** count)).sqrt()[:, None]
        return -group["lr"] * group["unit"] * mean / size.clamp_min(1e-20)


class JointOptimizer:
    """Several optimizers as one: what the training loop needs of it."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])
