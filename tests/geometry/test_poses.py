"""Poses: RELION's numbers in, the same numbers out."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from cryoforum_core.geometry.poses import Poses, displacement_px, shift_angstrom
from cryoforum_core.imaging.fourier import fft_image, ifft_image, shift_phase


def relion_poses():
    euler_deg = torch.tensor([[10.0, 80.0, -30.0], [-170.0, 5.0, 120.0], [0.5, 179.0, 1.0]], dtype=torch.float64)
    return euler_deg, Poses.from_relion(euler_deg, torch.tensor([[1.0, -2.0], [0.0, 3.5], [7.0, 0.0]]))


def test_relion_angles_round_trip():
    euler_deg, poses = relion_poses()
    assert torch.allclose(poses.euler_deg(), euler_deg, atol=1e-9)


def test_indexing_takes_rotation_and_shift_together():
    euler_deg, poses = relion_poses()
    part = poses[torch.tensor([2, 0])]
    assert len(part) == 2 and torch.allclose(part.euler_deg(), euler_deg[[2, 0]], atol=1e-9)
    assert part.shift_angstrom.tolist() == [[7.0, 0.0], [1.0, -2.0]]
    assert len(poses[torch.tensor([True, False, False])].to("cpu")) == 1


def test_shapes_are_checked_at_every_call_of_a_test():
    with pytest.raises(TypeCheckError, match="shift_angstrom"):
        Poses(torch.zeros(3, 4), torch.zeros(2, 2))


def test_without_the_checks_of_tests_wrong_shapes_are_refused():
    """As users run it: in a process of its own nothing but the class itself looks at shapes."""
    code = ("import torch; from cryoforum_core.geometry.poses import Poses\n"
            "try: Poses(torch.zeros(3, 4), torch.zeros(2, 2))\n"
            "except ValueError as error: print(type(error).__name__, error)")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.startswith("ValueError ") and "(3, 4) and (2, 2)" in found


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_an_origin_is_minus_the_displacement(kind):
    origin = kind([[3.0, -1.5], [0.0, 4.5]])
    where = displacement_px(origin, 1.5)
    assert isinstance(where, type(origin)) and where.tolist() == [[-2.0, 1.0], [0.0, -3.0]]
    assert shift_angstrom(where, 1.5).tolist() == origin.tolist()


def test_a_displaced_image_is_centred_by_its_origin():
    """RELION moves an image by its origin to centre it; the particle lies at minus that, along columns and rows."""
    image = torch.zeros(16, 16)
    image[8, 8] = 1
    where = displacement_px(torch.tensor([4.0, -6.0]), 2.0)
    displaced = ifft_image(fft_image(image) * shift_phase(where, 16))
    assert torch.argmax(displaced).item() == (8 + 3) * 16 + (8 - 2)
    assert torch.allclose(torch.roll(displaced, (-3, 2), (0, 1)), image, atol=1e-5)
