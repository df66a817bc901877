"""Half precision in training: what it changes, and where it is used unasked."""

import pytest
import torch

from cryoforum_core.config import TrainConfig
from cryoforum_core.geometry.rotations import angular_distance_deg
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.training.precision import mixed_precision
from cryoforum_core.training.supervised import plan_training


@pytest.fixture
def a_step(tmp_path, particle_set):
    """Loss, gradients and answers of the first batch, with a precision."""
    def of(precision):
        settings = TrainConfig(out=tmp_path / "run", particles="unused.star", width=12, batch_size=64, precision=precision)
        plan = plan_training(settings, particle_set(300, snr=2.0), state=ImageState())
        batch = plan.stream(0, 0.5)
        loss, _ = plan.objective(plan.network, batch, 0.5)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in plan.network.parameters()])
        return loss.detach(), gradient, plan.network.eval()(batch.images, batch.ctf).quaternion.detach()
    return of


def test_half_precision_goes_the_same_way(a_step):
    loss, gradient, answer = a_step("float32")
    rounded_loss, rounded_gradient, rounded_answer = a_step("bfloat16")
    assert rounded_gradient.dtype == torch.float32
    assert not torch.equal(gradient, rounded_gradient)
    torch.testing.assert_close(rounded_loss, loss, rtol=0.05, atol=0)
    assert torch.nn.functional.cosine_similarity(gradient, rounded_gradient, dim=0) > 0.95
    # the network itself, as it is used later, answers in full precision; only the batch's statistics were rounded
    assert angular_distance_deg(answer, rounded_answer).median() < 1.0


def test_on_a_cpu_it_is_used_where_it_is_asked_for():
    for name, used in (("auto", False), ("float32", False), ("bfloat16", True)):
        with mixed_precision(torch.device("cpu"), name):
            assert torch.is_autocast_enabled("cpu") == used
