"""The learnable map: gradients of its images with respect to voxels and poses, and its single transform."""

import pytest
import torch

from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.imaging import projection
from cryoforum_core.imaging.fourier import fft_image, ifft_image
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.model.learnable_volume import LearnableVolume, decode

BOX = 8


def random_inputs(n: int = 3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    quaternion = random_quaternions(n, generator, dtype)
    displacement_px = torch.randn(n, 2, generator=generator, dtype=dtype)
    ctf = torch.rand(n, BOX, BOX // 2 + 1, generator=generator, dtype=dtype) + 0.5
    return LearnableVolume.random(BOX, 3.0, generator).to(dtype), quaternion, displacement_px, ctf


def test_gradients_with_respect_to_voxels_poses_and_displacements():
    """Against finite differences: the decoder is differentiable in everything that an auto-encoder learns."""
    volume, quaternion, displacement_px, ctf = random_inputs()

    def images(voxels, rotation, displacement):
        transform = FourierVolume.from_real(voxels * volume.mask)
        return decode(transform, torch.nn.functional.normalize(rotation, dim=-1), displacement, ctf)

    inputs = [x.detach().clone().requires_grad_() for x in (volume.voxels, quaternion, displacement_px)]
    assert torch.autograd.gradcheck(images, inputs, eps=1e-7, atol=1e-5, rtol=1e-3)


def test_images_are_projections_with_ctf_and_displacement():
    volume, quaternion, _, ctf = random_inputs()
    plain = ifft_image(FourierVolume.from_real(volume.map()).project(quaternion) * ctf)
    assert torch.allclose(decode(volume.transform(), quaternion, None, ctf), plain)
    moved = decode(volume.transform(), quaternion, torch.tensor([[1.0, 2.0]]).expand(3, 2).to(plain), ctf)
    inside = fft_image(plain.roll((2, 1), (-2, -1)))[:, :BOX // 2, :BOX // 2]
    assert torch.allclose(fft_image(moved)[:, :BOX // 2, :BOX // 2], inside, atol=1e-10)


def test_identity_pose_sums_along_z():
    volume = LearnableVolume.random(16, 5.0, torch.Generator().manual_seed(0))
    image = decode(volume.transform(), torch.tensor([[0.0, 0.0, 0.0, 1.0]]), None, torch.ones(1, 16, 9))[0]
    expected = volume.map().sum(0)
    # not 1: the corners of the transform, beyond the Nyquist circle, are left out
    assert torch.corrcoef(torch.stack([image.flatten(), expected.flatten()]))[0, 1] > 0.99


def test_a_batch_transforms_the_volume_once(monkeypatch):
    volume, quaternion, displacement_px, ctf = random_inputs(n=3)
    calls = []
    monkeypatch.setattr(projection, "fft_volume", lambda v, f=projection.fft_volume: (calls.append(1), f(v))[1])
    decode(volume.transform(), quaternion, displacement_px, ctf).square().sum().backward()
    assert len(calls) == 1 and volume.voxels.grad.abs().sum() > 0


def test_there_is_no_density_outside_the_mask_also_after_a_step():
    volume = LearnableVolume.random(16, 4.0, torch.Generator().manual_seed(0))
    outside = volume.mask == 0
    decode(volume.transform(), random_quaternions(2), None, torch.ones(2, 16, 9)).square().sum().backward()
    assert outside.any() and not volume.map()[outside].any() and not volume.voxels.grad[outside].any()


def test_unit_scales_the_map_and_leaves_the_parameters():
    initial = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)) * 50
    volume = LearnableVolume(initial, 4.0, unit=50.0)
    assert volume.voxels.max() <= 1 and torch.allclose(volume.map(), initial * volume.mask)
    before = volume.voxels.clone()
    volume.rescale(2.0)
    assert torch.allclose(volume.map(), 2 * initial * volume.mask) and torch.equal(volume.voxels, before)


@pytest.mark.parametrize("max_radius_px", [2.0, 3.5])
def test_a_limited_transform_gives_low_pass_images(max_radius_px):
    volume, quaternion, _, ctf = random_inputs()
    low = fft_image(decode(volume.transform(max_radius_px), quaternion, None, ctf))
    full = fft_image(decode(volume.transform(), quaternion, None, ctf))
    radius = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(BOX, 1 / BOX), torch.arange(BOX // 2 + 1.0), indexing="ij"))
    assert torch.allclose(low[:, radius <= max_radius_px], full[:, radius <= max_radius_px], atol=1e-8)
    assert low[:, radius > max_radius_px].abs().max() < 1e-8
