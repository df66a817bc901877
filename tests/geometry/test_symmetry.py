import math
import subprocess

import mrcfile
import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from cryoforum_core.errors import InputError
from cryoforum_core.geometry.rotations import (
    angular_distance_rad,
    compose,
    quaternion_to_matrix,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.geometry.symmetry import nearest_equivalent, symmetric_distance_deg, symmetry_group

ORDERS = {"c1": 1, "c2": 2, "c7": 7, "d1": 2, "d2": 4, "D3": 6, "T": 12, "o": 24, "I": 60, "i1": 60, "i2": 60,
          "i3": 60, "i4": 60}


def relion_operations(name):
    """What relion_refine prints: (G, 3, 3), five digits."""
    text = subprocess.run(["relion_refine", "--sym", name, "--print_symmetry_ops"], capture_output=True,
                          text=True, check=True).stdout
    return np.array([[[float(v) for v in row.split()] for row in block.splitlines()[1:4]]
                     for block in text.split("R(")[1:]])


@pytest.mark.parametrize("name", ORDERS)
def test_group_is_that_of_relion(name):
    ours = quaternion_to_matrix(symmetry_group(name, torch.float64)).numpy()
    theirs = relion_operations(name)
    assert len(ours) == len(theirs) == ORDERS[name]
    distance = np.abs(ours[:, None] - theirs[None]).max(axis=(2, 3))
    assert distance.min(axis=0).max() < 1e-5 and distance.min(axis=1).max() < 1e-5


@pytest.mark.parametrize("name", ["c3", "d2", "t", "o", "i1", "i3"])
def test_map_symmetrised_by_relion_is_invariant(tmp_path, name):
    box = 48
    axis = np.arange(box) - box // 2
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    centres = np.random.default_rng(1).uniform(-12, 12, (5, 3))
    volume = sum(np.exp(-((grid - c[:, None, None, None]) ** 2).sum(0) / 8) for c in centres).astype(np.float32)
    with mrcfile.new(tmp_path / "in.mrc") as file:
        file.set_data(volume)
        file.voxel_size = 1.0
    subprocess.run(["relion_image_handler", "--i", "in.mrc", "--o", "out.mrc", "--sym", name], cwd=tmp_path,
                   check=True, capture_output=True)
    symmetrised = mrcfile.read(tmp_path / "out.mrc")

    def correlation_after_turn(matrix):
        zyx = np.ascontiguousarray(matrix.numpy()[::-1, ::-1])
        centre = np.full(3, box // 2)
        turned = affine_transform(symmetrised, zyx, offset=centre - zyx @ centre, order=3)
        return np.corrcoef(turned.ravel(), symmetrised.ravel())[0, 1]

    matrices = quaternion_to_matrix(symmetry_group(name, torch.float64))
    assert min(correlation_after_turn(matrix) for matrix in matrices[1:6]) > 0.98
    other = quaternion_to_matrix(rotation_vector_to_quaternion(torch.tensor([0.3, 0.5, -0.4]).double()))
    assert correlation_after_turn(other) < 0.95


@pytest.mark.parametrize("name", ["c0", "d", "x3", "ih", "i5", "c-1", ""])
def test_unknown_name_lists_the_known(name):
    with pytest.raises(InputError, match="Known: c1, c2"):
        symmetry_group(name)


def test_group_is_closed_and_starts_with_the_identity():
    group = symmetry_group("o", torch.float64)
    assert torch.equal(group[0], torch.tensor([0.0, 0, 0, 1]).double())
    products = compose(group[:, None], group[None]).reshape(-1, 4)
    assert torch.allclose((products @ group.T).abs().max(dim=1).values, torch.ones(len(products)).double())


@pytest.mark.parametrize("name", ["c1", "c5", "d2", "i2"])
def test_distance_is_the_minimum_over_the_group(name):
    generator = torch.Generator().manual_seed(0)
    group = symmetry_group(name, torch.float64)
    first, second = random_quaternions(50, generator, torch.float64), random_quaternions(50, generator, torch.float64)
    brute_force = angular_distance_rad(compose(first[:, None], group), second[:, None]).min(dim=1).values
    assert torch.allclose(torch.deg2rad(symmetric_distance_deg(first, second, group)), brute_force, atol=1e-9)


def test_equivalent_poses_have_no_distance():
    group = symmetry_group("d7", torch.float64)
    pose = random_quaternions(14, torch.Generator().manual_seed(3), torch.float64)
    assert symmetric_distance_deg(compose(pose, group), pose, group).max() < 1e-5


def test_nearest_equivalent_has_the_sign_of_the_reference_and_a_gradient():
    generator = torch.Generator().manual_seed(2)
    group = symmetry_group("d3", torch.float64)
    reference = random_quaternions(20, generator, torch.float64)
    pose = compose(reference, group[torch.arange(20) % 6]).neg().requires_grad_()
    near = nearest_equivalent(pose, reference, group)
    assert torch.allclose(near, reference)
    assert torch.autograd.gradcheck(lambda q: nearest_equivalent(q, reference, group), pose)


def test_largest_distance_shrinks_with_symmetry():
    generator = torch.Generator().manual_seed(5)
    first, second = random_quaternions(2000, generator), random_quaternions(2000, generator)
    largest = {name: float(symmetric_distance_deg(first, second, symmetry_group(name)).max())
               for name in ("c1", "d2", "i1")}
    assert largest["c1"] > 170 and 110 < largest["d2"] <= 120.001 and largest["i1"] < 45
    assert math.isclose(largest["d2"], 120, abs_tol=10)
