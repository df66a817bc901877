"""Half precision in training: what it changes, and where it is used unasked."""

import pytest
import torch

from cryoforum_core.config import TrainConfig
from cryoforum_core.geometry.rotations import angular_distance_deg
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.training import precision
from cryoforum_core.training.supervised import plan_training

N_STEPS, N_BATCHES = 20, 8


@pytest.fixture(params=["polar", "compact"])
def a_step(tmp_path, particle_set, request):
    """Loss and answers of a batch, and gradients of some, with a precision, after some steps in full precision: untrained, `polar` says
    the same of every pose, and its gradient is hardly more than what rounding makes of it."""
    def of(name):
        def planned(precision):
            return plan_training(TrainConfig(out=tmp_path / "run", particles="unused.star", width=12, batch_size=64,
                                             precision=precision, encoder=request.param),
                                 particle_set(300, snr=2.0), state=ImageState())
        exact, plan = planned("float32"), planned(name)
        updates = torch.optim.Adam(exact.network.parameters(), lr=1e-3)
        for step in range(N_STEPS):
            updates.zero_grad()
            exact.objective(exact.network, exact.stream(step, 0.5), 0.5)[0].backward()
            updates.step()
        plan.network.load_state_dict(exact.network.state_dict())
        for batch in (plan.stream(N_STEPS + k, 0.5) for k in range(N_BATCHES)):
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
    torch.testing.assert_close(rounded_loss, loss, rtol=0.01, atol=0)
    assert torch.nn.functional.cosine_similarity(gradient, rounded_gradient, dim=0) > 0.98
    # the network itself, as it is used later, answers in full precision; only the batch's statistics were rounded
    assert angular_distance_deg(answer, rounded_answer).median() < 0.3


@pytest.mark.parametrize("has_units", [False, True])
def test_on_a_cpu_it_is_used_where_it_is_fast_or_asked_for(has_units, tmp_path, monkeypatch):
    described = tmp_path / "cpuinfo"
    described.write_text("flags\t\t: fpu sse2 avx512f " + ("amx_bf16 " if has_units else "") + "amx_tile\n")
    monkeypatch.setattr(precision, "_PROCESSOR", described)
    precision.multiplies_bfloat16.cache_clear()
    try:
        for name, used in (("auto", has_units), ("float32", False), ("bfloat16", True)):
            with precision.mixed_precision(torch.device("cpu"), name):
                assert torch.is_autocast_enabled("cpu") == used
        described.unlink()  # as where there is no Linux
        precision.multiplies_bfloat16.cache_clear()
        assert not precision.multiplies_bfloat16()
    finally:
        precision.multiplies_bfloat16.cache_clear()


def test_on_a_gpu_it_is_used_unless_it_is_not_wanted():
    used = {name: precision.uses_bfloat16(torch.device("cuda"), name) for name in ("auto", "float32", "bfloat16")}
    assert used == {"auto": True, "float32": False, "bfloat16": True}
