"""Rotations as unit quaternions. The only module that imports roma.

Convention, stated once for the whole engine: a quaternion (x, y, z, w) stands for RELION's matrix A,
``x_image = A @ x_molecule``; q and -q are the same rotation. RELION's angles give ``A = Rz(psi) Ry(tilt) Rz(rot)``
in coordinate rotations, that is, the transpose of the intrinsic ZYZ matrix of (rot, tilt, psi). A symmetry operation
g of the molecule acts on the right (``A g``), a rotation of the image in its plane on the left.
"""

import math

import roma
import torch
from jaxtyping import Float
from torch import Tensor


def relion_euler_to_quaternion(euler_deg: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """RELION's (rot, tilt, psi) in degrees, shape (..., 3), to quaternions (..., 4)."""
    angles_rad = torch.deg2rad(euler_deg)
    return inverse(roma.euler_to_unitquat("ZYZ", angles_rad.unbind(-1)))


def quaternion_to_relion_euler(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3"]:
    """Quaternions (..., 4) to RELION's (rot, tilt, psi) in degrees (..., 3), tilt in [0, 180].

    At tilt 0 and 180 only one of rot and psi is determined; psi is set to 0 there.
    """
    matrix = quaternion_to_matrix(quaternion)
    tilt = torch.atan2(torch.hypot(matrix[..., 2, 0], matrix[..., 2, 1]), matrix[..., 2, 2])
    rot = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 0])
    psi = torch.atan2(matrix[..., 1, 2], -matrix[..., 0, 2])
    at_pole = torch.sin(tilt).abs() < 1e-6
    rot_at_pole = torch.atan2(-matrix[..., 1, 0], matrix[..., 1, 1])
    rot = torch.where(at_pole, rot_at_pole, rot)
    psi = torch.where(at_pole, torch.zeros_like(psi), psi)
    return torch.rad2deg(torch.stack([rot, tilt, psi], dim=-1))


def quaternion_to_matrix(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Unit quaternions (..., 4) to rotation matrices (..., 3, 3)."""
    return roma.unitquat_to_rotmat(quaternion)


def matrix_to_quaternion(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Rotation matrices (..., 3, 3) to unit quaternions (..., 4)."""
    return roma.rotmat_to_unitquat(matrix)


def compose(first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "... 4"]:
    """The quaternion of the matrix product ``R(first) @ R(second)``; shapes (..., 4) broadcast."""
    first, second = torch.broadcast_tensors(first, second)
    return roma.quat_product(first, second)


def left_multiplication(quaternion: Float[Tensor, " 4"]) -> Float[Tensor, "4 4"]:
    """The matrix (4, 4) of ``q -> compose(quaternion, q)``; quaternion: (4,)."""
    unit = torch.eye(4, dtype=quaternion.dtype, device=quaternion.device)
    return compose(quaternion.expand(4, 4), unit).T


def inverse(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """The inverse rotation of unit quaternions (..., 4)."""
    return roma.quat_conjugation(quaternion)


def rotation_vector_to_quaternion(rotation_vector_rad: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """Axis times angle in radians (..., 3) to quaternions (..., 4)."""
    return roma.rotvec_to_unitquat(rotation_vector_rad)


def quaternion_to_rotation_vector(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3"]:
    """Quaternions (..., 4) to axis times angle (at most pi) in radians (..., 3)."""
    return roma.unitquat_to_rotvec(quaternion)


def in_plane_quaternion(angle_rad: Float[Tensor, " *batch"]) -> Float[Tensor, "*batch 4"]:
    """The rotation about the beam that turns +x towards +y by ``angle_rad`` (...,): quaternions (..., 4)."""
    half = 0.5 * angle_rad
    zero = torch.zeros_like(half)
    return torch.stack([zero, zero, torch.sin(half), torch.cos(half)], dim=-1)


def rotation_of_view(angle_rad: Float[Tensor, " *batch"], is_mirrored: bool) -> Float[Tensor, "*batch 4"]:
    """What multiplies, on the left, the pose of an image that is mirrored (x and -x exchanged) or not, and then turned by
    ``angle_rad`` (...,), +x towards +y: quaternions (..., 4).

    A projection sums over z, hence its mirror image is what the particle shows when it is turned by 180 degrees about y.
    """
    rotation = in_plane_quaternion(angle_rad)
    return compose(rotation, rotation.new_tensor([0.0, 1.0, 0.0, 0.0])) if is_mirrored else rotation


def angular_distance_rad(first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "..."]:
    """Angle in [0, pi] between rotations (..., 4), broadcast; its gradient is finite, also at equality.

    ``4 asin(|q1 -+ q2| / 2)`` keeps digits at small angles, where acos of the dot product loses them.
    """
    first, second = torch.broadcast_tensors(first, second)
    same_sign = torch.where((first * second).sum(-1, keepdim=True) < 0, -second, second)
    squared = (first - same_sign).square().sum(-1)
    # the square root has an infinite slope at 0; below float noise a straight line takes its place
    tiny = torch.finfo(squared.dtype).eps ** 2
    chord = torch.sqrt(squared.clamp_min(tiny))
    return 4.0 * torch.asin((0.5 * chord).clamp_max(1.0))


def angular_distance_deg(first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "..."]:
    """As ``angular_distance_rad``, in degrees."""
    return torch.rad2deg(angular_distance_rad(first, second))


def random_quaternions(n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32,
                       device: torch.device | str = "cpu") -> Float[Tensor, "{n} 4"]:
    """``n`` rotations, uniform over SO(3): (n, 4)."""
    normal = torch.randn(n, 4, generator=generator, dtype=dtype,
                         device=generator.device if generator is not None else device)
    return torch.nn.functional.normalize(normal, dim=-1).to(device)


def smallest_eigenvector(matrix: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4"]:
    """The unit eigenvector (..., 4) of the smallest eigenvalue of symmetric matrices (..., 4, 4).

    The quaternion that minimises q'Aq: the quadratically constrained quadratic program of Peretroukhin et al. 2020
    (doi 10.15607/RSS.2020.XVI.007). The gradient is damped, hence finite, where eigenvalues coincide.
    """
    return roma.symmatrix_to_projective_point(matrix)


def s2s2_to_quaternion(vectors: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 4"]:
    """Two 3-vectors (..., 6), orthonormalised (Gram-Schmidt, Zhou et al. 2019), to quaternions (..., 4)."""
    columns = vectors.reshape(*vectors.shape[:-1], 2, 3).transpose(-1, -2)
    return matrix_to_quaternion(roma.special_gramschmidt(columns))


def mirror_hand(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Poses (..., 4) that belong to the map mirrored in z: RELION's (rot + 180, tilt, psi + 180)."""
    half_turn = quaternion.new_tensor([0.0, 0.0, 1.0, 0.0])
    return compose(half_turn, compose(quaternion, half_turn))


def spacing_deg(n_rotations: int) -> float:
    """Typical distance between neighbours of an even grid of ``n_rotations``: the cube root of SO(3)'s volume."""
    return math.degrees((8 * math.pi ** 2 / n_rotations) ** (1 / 3))
