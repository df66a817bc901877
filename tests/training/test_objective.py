"""The loss of a training and its figures on held-out images, of a network whose errors are known."""

import math

import pytest
import torch

from cryoforum_core.geometry.bingham import isotropic_bingham
from cryoforum_core.geometry.rotations import compose, in_plane_quaternion, random_quaternions
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.model.checkpoint import load_checkpoint
from cryoforum_core.model.network import NetworkConfig, OrientationNetwork
from cryoforum_core.model.orientation_head import PoseEstimate
from cryoforum_core.training.objective import Objective
from cryoforum_core.training.simulated_projections import TrainingBatch
from cryoforum_core.training.supervised import plan_training

from .supervised_runs import KNOWN, config, run_training

N, BOX_ANGSTROM = 60, 144.0


class OffBy(OrientationNetwork):
    """Says that every pose is the label rotated in-plane by ``error_deg``, and the shift is off by ``shift_angstrom``."""

    def __init__(self, batch: TrainingBatch, error_deg: float, shift_angstrom: float, concentration: float = 50.0):
        super().__init__(NetworkConfig(16, BOX_ANGSTROM / 16, "compact", width=8))
        rotation = in_plane_quaternion(torch.tensor(math.radians(error_deg)))
        quaternion = compose(rotation.expand(N, 4), batch.quaternion)
        offset = torch.tensor([shift_angstrom, 0.0])
        self.estimate = PoseEstimate(quaternion, isotropic_bingham(quaternion, torch.full((N,), concentration)),
                                     batch.shift_angstrom + offset)

    def forward(self, images, ctf):
        return self.estimate

    def predict(self, images, ctf, group=None):
        one = self.estimate
        return PoseEstimate(one.quaternion, self.ensemble_weight * one.bingham, one.shift_angstrom)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return TrainingBatch(torch.zeros(N, 24, 24), torch.ones(N, 24, 13), random_quaternions(N, generator),
                         5 * torch.randn(N, 2, generator=generator))


def objective(tmp_path, group: str = "c1", **options) -> Objective:
    return Objective(config(tmp_path, **options), symmetry_group(group), BOX_ANGSTROM, torch.device("cpu"))


def test_figures_are_the_errors_of_the_network(tmp_path, batch):
    found = objective(tmp_path).evaluate(OffBy(batch, 12.0, 3.0), [batch])
    assert found["validation_median_error_deg"] == pytest.approx(12.0, abs=0.01)
    assert found["validation_mean_error_deg"] == pytest.approx(12.0, abs=0.01)
    assert found["validation_median_shift_error_angstrom"] == pytest.approx(3.0, abs=1e-3)
    assert found["validation_fraction_below_10deg"] == 0.0


def test_the_validation_loss_is_the_sum_of_angle_likelihood_and_shift(tmp_path, batch):
    one = objective(tmp_path)
    found = one.evaluate(OffBy(batch, 12.0, 3.0), [batch])
    expected = (math.radians(12.0) + one.config.bingham_weight * found["validation_negative_log_likelihood"]
                + one.config.shift_weight * 3.0 / (0.25 * BOX_ANGSTROM))
    assert found["validation_loss"] == pytest.approx(expected, rel=1e-3)


def test_equivalent_poses_are_no_errors(tmp_path, batch):
    c2 = symmetry_group("c2")
    network = OffBy(batch, 0.0, 0.0)
    rotated = compose(network.estimate.quaternion, c2[1:].expand(N, 4))
    network.estimate = PoseEstimate(rotated, isotropic_bingham(rotated, torch.full((N,), 50.0)), batch.shift_angstrom)
    assert objective(tmp_path, "c2").evaluate(network, [batch])["validation_mean_error_deg"] < 0.1
    assert objective(tmp_path, "c1").evaluate(network, [batch])["validation_mean_error_deg"] > 10


def test_the_loss_weighs_its_terms_as_configured(tmp_path, batch):
    network = OffBy(batch, 12.0, 3.0)
    total, terms = objective(tmp_path, bingham_weight=0.5, shift_weight=2.0)(network, batch, 1.0)
    assert total.item() == pytest.approx(terms["orientation_loss"] + 0.5 * terms["bingham_loss"] + 2 * terms["shift_loss"])
    assert terms["shift_loss"] == pytest.approx(3.0 / (0.25 * BOX_ANGSTROM), rel=0.01)


def test_a_posterior_that_is_too_wide_is_narrowed_and_one_too_narrow_widened(tmp_path, batch):
    """Errors of 3 degrees: of the candidates from a half to eight the likeliest weight is chosen."""
    wide, narrow = OffBy(batch, 3.0, 0.0, concentration=20.0), OffBy(batch, 30.0, 0.0, concentration=200.0)
    for network in (wide, narrow):
        objective(tmp_path).calibrate(network, [batch])
    assert wide.ensemble_weight == pytest.approx(8.0) and narrow.ensemble_weight == pytest.approx(0.5)


def test_the_posterior_of_a_trained_network_is_calibrated_on_held_out_images(tmp_path, particle_set, molecule):
    settings = config(tmp_path, reference=molecule, max_steps=40)
    particles = particle_set(300, snr=2.0)
    network = load_checkpoint(run_training(settings, particles)[1].path)[0]
    plan = plan_training(settings, particles, state=KNOWN)
    chosen, loss = network.ensemble_weight.item(), {}
    for factor in (0.7, 1.0, 1.4):
        network.ensemble_weight.fill_(factor * chosen)
        found = plan.objective.evaluate(network, plan.validation, as_predicted=True)
        loss[factor] = found["validation_negative_log_likelihood"]
    assert loss[1.0] < loss[0.7] and loss[1.0] < loss[1.4]
