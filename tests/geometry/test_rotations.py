import numpy as np
import pytest
import torch

from cryoforum_core.geometry import rotations as rot


def relion_matrix(euler_deg):
    """RELION's Euler_angles2matrix, element by element, as an independent formula."""
    a, b, g = np.deg2rad(np.asarray(euler_deg, float)).T
    ca, sa, cb, sb, cg, sg = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(g), np.sin(g)
    rows = [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb,
            -sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb,
            sb * ca, sb * sa, cb]
    return np.stack(rows, -1).reshape(-1, 3, 3)


@pytest.fixture
def euler_deg():
    random = np.random.default_rng(0).uniform([-180, 0, -180], [180, 180, 180], (200, 3))
    poles = [[30, 0, 40], [30, 180, 40], [0, 0, 0], [10, 90, -90]]
    return torch.tensor(np.concatenate([random, poles]))


def test_euler_angles_give_relions_matrix(euler_deg):
    matrix = rot.quaternion_to_matrix(rot.relion_euler_to_quaternion(euler_deg))
    np.testing.assert_allclose(matrix, relion_matrix(euler_deg.numpy()), atol=1e-12)


def test_euler_round_trip_keeps_the_matrix_also_at_the_poles(euler_deg):
    quaternion = rot.relion_euler_to_quaternion(euler_deg)
    again = rot.relion_euler_to_quaternion(rot.quaternion_to_relion_euler(quaternion))
    assert rot.angular_distance_deg(quaternion, again).max() < 1e-5


def test_compose_is_the_matrix_product_and_inverse_undoes_it():
    generator = torch.Generator().manual_seed(1)
    a, b = (rot.random_quaternions(50, generator, torch.float64) for _ in range(2))
    product = rot.quaternion_to_matrix(rot.compose(a, b))
    torch.testing.assert_close(product, rot.quaternion_to_matrix(a) @ rot.quaternion_to_matrix(b))
    identity = rot.compose(a, rot.inverse(a))
    torch.testing.assert_close(identity.abs(), torch.eye(4, dtype=torch.float64)[3].expand(50, 4))


def test_distance_is_the_rotation_angle_and_is_accurate_when_tiny():
    generator = torch.Generator().manual_seed(2)
    q = rot.random_quaternions(60, generator, torch.float64)
    angle = torch.logspace(-7, 0.49, 60, dtype=torch.float64)
    axis = torch.nn.functional.normalize(torch.randn(60, 3, generator=generator, dtype=torch.float64), dim=-1)
    moved = -rot.compose(rot.rotation_vector_to_quaternion(axis * angle[:, None]), q)
    torch.testing.assert_close(rot.angular_distance_rad(q, moved), angle, rtol=1e-5, atol=1e-12)


def test_distance_gradient_is_right_and_finite_at_equality():
    generator = torch.Generator().manual_seed(3)
    a = rot.random_quaternions(5, generator, torch.float64).requires_grad_()
    b = rot.random_quaternions(5, generator, torch.float64)
    assert torch.autograd.gradcheck(rot.angular_distance_rad, (a, b))
    same = b.clone().requires_grad_()
    rot.angular_distance_rad(same, b).sum().backward()
    assert torch.isfinite(same.grad).all()


def test_smallest_eigenvector_minimises_and_has_finite_gradients_when_eigenvalues_coincide():
    generator = torch.Generator().manual_seed(4)
    half = torch.randn(20, 4, 4, generator=generator, dtype=torch.float64)
    matrix = half + half.transpose(-1, -2)
    vector = rot.smallest_eigenvector(matrix)
    value = (vector[:, None] @ matrix @ vector[..., None]).squeeze()
    torch.testing.assert_close(value, torch.linalg.eigvalsh(matrix)[:, 0])
    equal = torch.eye(4).expand(3, 4, 4).clone().requires_grad_()
    rot.smallest_eigenvector(equal)[:, 0].sum().backward()
    assert torch.isfinite(equal.grad).all()


def test_s2s2_of_orthonormal_columns_is_their_rotation():
    q = rot.random_quaternions(20, torch.Generator().manual_seed(5), torch.float64)
    columns = rot.quaternion_to_matrix(q)[..., :2].transpose(-1, -2).reshape(20, 6)
    assert rot.angular_distance_deg(rot.s2s2_to_quaternion(3.0 * columns), q).max() < 1e-5


def test_in_plane_rotation_adds_to_relions_psi_with_a_minus():
    """A = Rz(psi) Ry Rz in coordinate rotations: turning the particle by +phi lowers psi by phi."""
    euler = torch.tensor([[20.0, 50.0, 70.0]], dtype=torch.float64)
    turned = rot.compose(rot.in_plane_quaternion(torch.deg2rad(torch.tensor([15.0], dtype=torch.float64))),
                         rot.relion_euler_to_quaternion(euler))
    torch.testing.assert_close(rot.quaternion_to_relion_euler(turned), euler - torch.tensor([[0.0, 0.0, 15.0]]))


def test_mirroring_the_hand_is_relions_rotation_by_180_degrees():
    euler = torch.tensor([[20.0, 50.0, 70.0], [-100.0, 120.0, 10.0]], dtype=torch.float64)
    expected = rot.relion_euler_to_quaternion(euler + torch.tensor([180.0, 0.0, 180.0]))
    assert rot.angular_distance_deg(rot.mirror_hand(rot.relion_euler_to_quaternion(euler)), expected).max() < 1e-5


def test_random_rotations_are_uniform():
    q = rot.random_quaternions(20000, torch.Generator().manual_seed(6), torch.float64)
    second_moment = q.T @ q / len(q)
    torch.testing.assert_close(second_moment, torch.eye(4, dtype=torch.float64) / 4, atol=0.01, rtol=0)
