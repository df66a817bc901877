import math

import pytest
import torch

from cryoforum_core.evaluation import self_test
from cryoforum_core.evaluation.self_test import Check, run_self_test
from cryoforum_core.geometry.rotations import inverse


def test_all_checks_pass_within_20_seconds():
    checks = run_self_test()
    assert all(check.ok for check in checks), checks
    assert len(checks) == 5 and sum(check.seconds for check in checks) < 20


def test_transposed_rotation_matrix_fails(monkeypatch):
    """The most common mistake; the projections must reveal it."""
    right = self_test.quaternion_to_matrix
    monkeypatch.setattr(self_test, "quaternion_to_matrix", lambda q: right(inverse(q)))
    assert self_test._projection_error("cpu") > 0.1
    assert self_test._euler_error("cpu") > 0.1


def test_wrong_ctf_sign_fails(monkeypatch):
    right = self_test.ctf_2d
    monkeypatch.setattr(self_test, "ctf_2d", lambda *arguments: -right(*arguments))
    assert self_test._ctf_error("cpu") > 0.1


@pytest.mark.parametrize("figure, ok", [(0.5, True), (1.5, False), (math.nan, False)])
def test_check_passes_up_to_its_limit(figure, ok):
    assert Check("name", figure, 1.0, "", 0.0).ok is ok


def test_analytic_projections_follow_relions_matrix():
    """One pose by hand: rot 20, tilt 50, psi 70, with RELION's matrix for it."""
    quaternion = self_test.relion_euler_to_quaternion(torch.tensor([[20.0, 50.0, 70.0]]))
    image = self_test._exact_images(quaternion)[0]
    atoms = self_test._atoms() @ torch.tensor(self_test._MATRIX).T
    axis = torch.arange(self_test.BOX_SIZE_PX) - self_test.BOX_SIZE_PX // 2
    centre_x = (image.sum(0) * axis).sum() / image.sum()
    assert float(centre_x) == pytest.approx(float(atoms[:, 0].mean()), abs=0.02)
