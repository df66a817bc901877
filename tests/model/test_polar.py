"""The polar encoder: equivariant to in-plane rotation and mirroring by construction."""

import math

import pytest
import torch

from cryoforum_core.geometry.rotations import in_plane_quaternion, left_multiplication
from cryoforum_core.imaging.fourier import fft_image, ifft_image, radius_px, shift_phase
from cryoforum_core.imaging.masks import soft_circle
from cryoforum_core.model.network import NetworkConfig, OrientationNetwork
from cryoforum_core.model.orientation_head import N_OUTPUTS
from cryoforum_core.model.polar import N_ANGLES, SHIFT_UNIT_OF_BOX, CircularConvolution
from cryoforum_core.training.augment import transform_images


@pytest.mark.parametrize("head", N_OUTPUTS)
@pytest.mark.parametrize("box", [32, 48])
def test_the_polar_encoder_is_equivariant_to_other_rotations_than_by_90_degrees(head, box):
    """By construction, up to the interpolation of the images."""
    torch.manual_seed(3)
    network = OrientationNetwork(NetworkConfig(box, 5.0, "polar", head, width=16)).eval()
    images = ifft_image(fft_image(torch.randn(6, box, box)) * (radius_px(box) < 5)) * soft_circle(box, 0.3 * box, 2)
    angle = torch.full((6,), 3 * 2 * math.pi / N_ANGLES)
    turned = transform_images(images, angle, torch.zeros(6, 2), torch.ones(6))
    with torch.no_grad():
        before, after = (network(x, torch.ones(6, box, box // 2 + 1)).bingham for x in (images, turned))
    left = left_multiplication(in_plane_quaternion(angle[0]))
    assert (left.T @ after @ left - before).norm() < 0.1 * (after - before).norm()


class KnownCentre(torch.nn.Module):
    """In place of the encoder's last centring layer: the same shift (n, 2), as a part of the box, in every view."""

    def __init__(self, encoder, shift_of_box):
        super().__init__()
        self.matrices, self.shift_of_box = encoder.centring.shift_matrices, shift_of_box

    def forward(self, features):
        return (self.shift_of_box[:, None, None] @ self.matrices)[:, :, 0] / SHIFT_UNIT_OF_BOX


def test_the_polar_encoder_does_not_depend_on_where_a_particle_of_known_centre_lies():
    torch.manual_seed(4)
    network = OrientationNetwork(NetworkConfig(32, 5.0, "polar", width=16)).eval()
    blob = ifft_image(fft_image(torch.randn(4, 32, 32)) * (radius_px(32) < 6)) * soft_circle(32, 8, 2)
    displacement_px = torch.tensor([[2.0, -1.0]]).expand(4, 2)
    ctf = torch.ones(4, 32, 17)
    moved = ifft_image(fft_image(blob) * shift_phase(displacement_px, 32))
    found = []
    for images, shift_of_box in ((blob, torch.zeros(4, 2)), (moved, -displacement_px / 32)):
        network.encoder.centre = KnownCentre(network.encoder, shift_of_box)
        with torch.no_grad():
            found.append(network(images, ctf))
    assert torch.allclose(found[0].bingham, found[1].bingham, atol=1e-4)
    assert torch.allclose(found[1].shift_angstrom - found[0].shift_angstrom, -5.0 * displacement_px, atol=1e-3)
    assert torch.allclose(found[1].first_shift_angstrom, -5.0 * displacement_px, atol=1e-3)


@pytest.mark.parametrize("kernel, stride", [(3, 1), (4, 2), (6, 4)])
def test_circular_convolution_of_a_rotated_circle_is_rotated(kernel, stride):
    """By as many samples as the stride is long; the mirror image's half of the channels, too."""
    torch.manual_seed(5)
    layer = CircularConvolution(3, 4, kernel, stride, is_first=True, activation="relu").eval()
    values = torch.randn(2, 3, 16)
    found, of_rotated = layer(values), layer(values.roll(2 * stride, -1))
    torch.testing.assert_close(of_rotated, found.roll(2, -1), rtol=1e-4, atol=1e-5)


def test_circular_convolution_of_a_mirrored_circle_exchanges_the_halves():
    torch.manual_seed(6)
    layer = CircularConvolution(3, 4, 4, 2, is_first=True, activation="relu").eval()
    values = torch.randn(2, 3, 16)
    own, mirrored = layer(values).chunk(2, 1)
    of_mirrored = layer(values.flip(-1)).chunk(2, 1)
    torch.testing.assert_close(of_mirrored[0], mirrored.flip(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_mirrored[1], own.flip(-1), rtol=1e-4, atol=1e-5)


def test_a_kernel_that_reaches_further_to_one_side_is_refused():
    with pytest.raises(ValueError, match="as far to both sides"):
        CircularConvolution(1, 1, 4, 1, True, "relu")
