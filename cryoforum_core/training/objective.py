"""The loss that training minimises, and the validation on images that it does not see."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import TrainConfig
from ..geometry.symmetry import symmetric_distance_deg
from ..model.network import OrientationNetwork
from ..model.orientation_head import PoseEstimate
from .losses import bingham_loss, displacement_error, orientation_loss
from .precision import mixed_precision
from .simulated_projections import TrainingBatch


class Objective:
    """The loss of a batch: orientation, likelihood of A, and shift."""

    def __init__(self, config: TrainConfig, group: Float[Tensor, "g 4"], box_size_angstrom: float, device: torch.device):
        self.config, self.group, self.device = config, group.to(device), device
        self.box_size_angstrom = box_size_angstrom

    def __call__(self, network: nn.Module, batch: TrainingBatch, progress: float
                 ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        with mixed_precision(self.device, self.config.precision):
            estimate = network(batch.images, batch.ctf)
        terms = self._terms(estimate, batch, progress)
        total = (terms["orientation_loss"] + self.config.bingham_weight * terms["bingham_loss"]
                 + self.config.shift_weight * terms["shift_loss"])
        return total, {name: value.item() for name, value in terms.items()}

    def _terms(self, estimate: PoseEstimate, batch: TrainingBatch, progress: float) -> dict[str, Tensor]:
        """Means over the batch, in radians, nats, and quarters of the box."""
        return {
            "orientation_loss": orientation_loss(self.config.loss, progress, estimate.quaternion, batch.quaternion,
                                                 self.group).mean(),
            "bingham_loss": bingham_loss(estimate.bingham, batch.quaternion, self.group).mean(),
            "shift_loss": displacement_error(estimate, batch.shift_angstrom, self.box_size_angstrom).mean(),
        }

    @torch.no_grad()
    def evaluate(self, network: OrientationNetwork, batches: list[TrainingBatch],
                 as_predicted: bool = False) -> dict[str, float]:
        """Errors on held-out images; ``validation_loss`` is what the end of the training minimises.

        ``as_predicted``: of ``network.predict``, which uses rotated and mirrored images too, and not of the network alone.
        """
        network.eval()
        estimate_of = partial(network.predict, group=self.group) if as_predicted else network
        angle, shift, likelihood = [], [], []
        for batch in batches:
            estimate = estimate_of(batch.images, batch.ctf)
            angle.append(symmetric_distance_deg(estimate.quaternion, batch.quaternion, self.group))
            shift.append((estimate.shift_angstrom - batch.shift_angstrom).norm(dim=-1))
            likelihood.append(bingham_loss(estimate.bingham, batch.quaternion, self.group))
        angle, shift, likelihood = (torch.cat(values) for values in (angle, shift, likelihood))
        loss = (torch.deg2rad(angle).mean() + self.config.bingham_weight * likelihood.mean()
                + self.config.shift_weight * shift.mean() / (0.25 * self.box_size_angstrom))
        return {"validation_loss": loss.item(), "validation_median_error_deg": angle.median().item(),
                "validation_mean_error_deg": angle.mean().item(),
                "validation_fraction_below_10deg": (angle < 10).float().mean().item(),
                "validation_negative_log_likelihood": likelihood.mean().item(),
                "validation_median_shift_error_angstrom": shift.median().item()}

    @torch.no_grad()
    def calibrate(self, network: OrientationNetwork, batches: list[TrainingBatch]) -> None:
        """Sets ``ensemble_weight``, between 0.5 and 8, by maximum likelihood on held-out images."""
        network.eval()
        network.ensemble_weight.fill_(1.0)
        bingham = torch.cat([network.predict(batch.images, batch.ctf, self.group).bingham for batch in batches])
        truth = torch.cat([batch.quaternion for batch in batches])
        candidates = torch.logspace(-1, 3, 41, base=2.0)
        loss = torch.stack([bingham_loss(worth * bingham, truth, self.group).mean() for worth in candidates])
        network.ensemble_weight.fill_(candidates[loss.argmin()])
