import copy

import torch

from cryoforum_core.geometry.rotations import compose, random_quaternions, rotation_vector_to_quaternion
from cryoforum_core.training.learnable_poses import JointOptimizer, PoseAdam, PoseTable, tangent_gradient


def table_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return PoseTable(random_quaternions(n, generator), torch.randn(n, 2, generator=generator))


def angle_deg(a, b):
    return torch.rad2deg(2 * torch.acos((a * b).sum(-1).abs().clamp(max=1)))


def test_tangent_gradient_is_the_derivative_along_small_rotations():
    quaternion, weight = random_quaternions(5, torch.Generator().manual_seed(1)).double(), torch.randn(5, 4).double()
    w = torch.zeros(5, 3, dtype=torch.float64)
    step, found = 1e-5, tangent_gradient(quaternion, weight)
    for axis in range(3):
        moved = w.clone()
        moved[:, axis] = step
        difference = ((compose(rotation_vector_to_quaternion(moved), quaternion) - quaternion) * weight).sum(1)
        assert torch.allclose(difference / step, found[:, axis], atol=1e-4)


def test_poses_reach_their_targets():
    table, target = table_of(20), table_of(20, seed=5)
    # within 60 degrees: rotations have far sides
    start = compose(rotation_vector_to_quaternion(0.5 * torch.randn(20, 3, generator=torch.Generator().manual_seed(2))),
                    target.quaternion.detach())
    table.set(torch.arange(20), start, table.shift_angstrom.detach().clone())
    optimizer = PoseAdam(table, rate=0.02, shift_unit_angstrom=2.0)
    for _ in range(300):
        optimizer.zero_grad()
        quaternion, shift = table.at(torch.arange(20))
        loss = (1 - (quaternion * target.quaternion.detach()).sum(1) ** 2).sum() + (
            shift - target.shift_angstrom.detach()).square().sum()
        loss.backward()
        optimizer.step()
    assert angle_deg(table.quaternion, target.quaternion).max() < 3
    assert (table.shift_angstrom - target.shift_angstrom).abs().max() < 0.1
    assert torch.allclose(table.quaternion.norm(dim=1), torch.ones(20))


def test_only_images_of_the_batch_move():
    table = table_of(6)
    before = table.quaternion.detach().clone()
    optimizer = PoseAdam(table, rate=0.1, shift_unit_angstrom=1.0)
    for rows in ([0, 1, 2], [3]):
        optimizer.zero_grad()
        (table.at(torch.tensor(rows))[0] * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
        optimizer.step()
        moved = (table.quaternion.detach() != before).any(1)
        assert moved.nonzero().flatten().tolist() == list(range(rows[-1] + 1))
        still = table.quaternion.detach()[:3].clone()
    assert torch.equal(table.quaternion.detach()[:3], still)
    # the first step of Adam has the length of its rate, whatever the size of the gradient
    assert torch.allclose(angle_deg(table.quaternion[3], before[3]), torch.rad2deg(torch.tensor(0.1)), atol=0.05)


def test_joint_optimizer_goes_on_from_its_state():
    def make():
        table, layer = table_of(4), torch.nn.Linear(4, 1)
        torch.nn.init.constant_(layer.weight, 0.3)
        return table, layer, JointOptimizer(PoseAdam(table, 0.05, 1.0), torch.optim.Adam(layer.parameters(), 0.01))

    def train(table, layer, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            layer(table.at(torch.arange(4))[0]).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    table, layer, optimizer = make()
    train(table, layer, optimizer, 3)
    torch.manual_seed(0)
    other_table, other_layer, other = make()
    other_table.load_state_dict(table.state_dict())
    other_layer.load_state_dict(layer.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(table, layer, optimizer, 3)
    train(other_table, other_layer, other, 3)
    assert torch.equal(table.quaternion, other_table.quaternion) and torch.equal(layer.weight, other_layer.weight)
    assert {group["lr"] for group in optimizer.param_groups} == {0.05, 0.01}
