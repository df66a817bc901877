from pathlib import Path

import numpy as np
import pytest
import starfile
import torch

from cryoforum_core.geometry.rotations import random_quaternions, relion_euler_to_quaternion
from cryoforum_core.imaging.ctf import CTFParameters, ctf_2d
from cryoforum_core.imaging.fourier import fft_image, ifft_image, shift_phase
from cryoforum_core.imaging.masks import soft_sphere
from cryoforum_core.imaging.projection import FourierVolume, Reconstructor, slice_points
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.mrc import MrcStack, read_map

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def golden():
    """20 projections of a 70S ribosome made by RELION 3.1.3, without and with CTF, shifted by up to 3 px."""
    volume, pixel_size = read_map(GOLDEN / "70S_map.mrc")
    particles = starfile.read(GOLDEN / "70S_in.star")["particles"]
    stacks = {}
    for name in ("relion", "relion_ctf"):
        with MrcStack(GOLDEN / f"70S_{name}.mrcs") as stack:
            stacks[name] = stack.read(np.arange(20))
    columns = {name: torch.tensor(particles[name].to_numpy(float)) for name in particles if name != "rlnImageName"}
    return torch.tensor(volume), pixel_size, columns, stacks


def our_images(volume, pixel_size, columns, with_ctf, shift_sign=-1.0, transpose=False, defocus_sign=1.0):
    euler = torch.stack([columns[f"rlnAngle{name}"] for name in ("Rot", "Tilt", "Psi")], -1)
    if transpose:
        euler = -euler.flip(-1)
    shift_px = shift_sign * torch.stack([columns["rlnOriginXAngst"], columns["rlnOriginYAngst"]], -1) / pixel_size
    images_ft = FourierVolume.from_real(volume).project(relion_euler_to_quaternion(euler).float())
    images_ft = images_ft * shift_phase(shift_px.float(), volume.shape[-1])
    if with_ctf:
        one = torch.ones(len(euler))
        parameters = CTFParameters(defocus_sign * columns["rlnDefocusU"], defocus_sign * columns["rlnDefocusV"],
                                   columns["rlnDefocusAngle"], 0 * one, 300 * one, 2.7 * one, 0.1 * one)
        images_ft = images_ft * ctf_2d(parameters, volume.shape[-1], pixel_size)
    return ifft_image(images_ft).numpy()


def correlations(images, reference):
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, reference)])


def test_projections_are_relions(golden):
    volume, pixel_size, columns, stacks = golden
    images = our_images(volume, pixel_size, columns, with_ctf=False)
    assert correlations(images, stacks["relion"]).min() >= 0.9999
    assert np.abs((images * stacks["relion"]).sum() / (images ** 2).sum() - 1) < 0.01


def test_projections_with_ctf_are_relions(golden):
    volume, pixel_size, columns, stacks = golden
    assert correlations(our_images(volume, pixel_size, columns, True), stacks["relion_ctf"]).min() >= 0.9999


@pytest.mark.parametrize("wrong", [{"shift_sign": 1.0}, {"transpose": True}, {"defocus_sign": -1.0}])
def test_a_wrong_sign_is_seen(golden, wrong):
    volume, pixel_size, columns, stacks = golden
    images = our_images(volume, pixel_size, columns, with_ctf=True, **wrong)
    assert correlations(images, stacks["relion_ctf"]).mean() < 0.9


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_insertion_is_the_adjoint_of_sampling(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    size, padding, radius, n, m = 16, 2, 7.0, 6, 40
    reconstructor = Reconstructor(size, padding, radius, dtype)
    shape = reconstructor.sums.shape[2:]
    data = torch.randn(1, 2, *shape, generator=generator, dtype=dtype)
    points = slice_points(random_quaternions(n, generator, dtype),
                          torch.rand(m, 2, generator=generator, dtype=dtype) * 8 - 4)
    values = torch.randn(n, m, 2, generator=generator, dtype=dtype)
    sampled = FourierVolume(data, size, padding, radius).sample(points)
    reconstructor.insert_points(torch.view_as_complex(values), torch.zeros(n, m, dtype=dtype), points)
    left = (torch.view_as_real(sampled) * values).sum()
    right = (data * reconstructor.sums[:, :2]).sum()
    assert abs(left - right) / abs(left) < tolerance


def test_projection_gradients_with_respect_to_the_map_and_the_pose():
    generator = torch.Generator().manual_seed(1)
    volume = torch.randn(6, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    quaternion = random_quaternions(2, generator, torch.float64)
    assert torch.autograd.gradcheck(
        lambda v: torch.view_as_real(FourierVolume.from_real(v, max_radius_px=2).project(quaternion)), volume)
    fixed = FourierVolume.from_real(volume.detach(), max_radius_px=2)
    assert torch.autograd.gradcheck(
        lambda q: torch.view_as_real(fixed.project(torch.nn.functional.normalize(q, dim=-1))),
        quaternion.requires_grad_())


def test_stored_gradient_is_the_derivative_of_the_slice(golden):
    volume = golden[0].double() * soft_sphere(64, 26)
    fourier_volume = FourierVolume.from_real(volume, padding=3, with_gradient=True, max_radius_px=12)
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(1, 200, 3, generator=generator, dtype=torch.float64) * 12 - 6
    _, gradient = fourier_volume.sample_with_gradient(points)
    step = 0.25
    for axis in range(3):
        move = torch.zeros(3, dtype=torch.float64)
        move[axis] = step
        numeric = (fourier_volume.sample(points + move) - fourier_volume.sample(points - move)) / (2 * step)
        assert (numeric - gradient[axis]).abs().square().mean() < 0.02 * gradient[axis].abs().square().mean()


def test_central_pixel_is_the_sum_of_the_map(golden):
    volume = golden[0]
    image_ft = FourierVolume.from_real(volume).project(random_quaternions(5, torch.Generator().manual_seed(3)))
    # the map is divided by sinc^2 before the transform, which changes the sum a little
    torch.testing.assert_close(image_ft[:, 0, 0].real, volume.sum().expand(5), rtol=0.05, atol=0)


def test_smaller_box_is_the_fourier_crop(golden):
    volume = FourierVolume.from_real(golden[0])
    quaternion = random_quaternions(3, torch.Generator().manual_seed(4))
    large, small = volume.project(quaternion, max_radius_px=15), volume.project(quaternion, 32, max_radius_px=15)
    torch.testing.assert_close(small[:, :15, :16], large[:, :15, :16])


def test_reconstruction_from_clean_projections_returns_the_map(golden):
    volume, pixel_size, _, _ = golden
    quaternion = random_quaternions(1500, torch.Generator().manual_seed(5))
    defocus = torch.linspace(8000, 20000, 1500)
    one = torch.ones(1500)
    ctf = ctf_2d(CTFParameters(defocus, defocus, 0 * one, 0 * one, 300 * one, 2.7 * one, 0.1 * one), 64, pixel_size)
    images_ft = fft_image(ifft_image(FourierVolume.from_real(volume).project(quaternion) * ctf))
    reconstructor = Reconstructor(64)
    for part in torch.arange(1500).split(500):
        reconstructor.insert(images_ft[part], ctf[part], quaternion[part])
    reconstruction = reconstructor.volume()
    assert fourier_shell_correlation(reconstruction, volume)[1:29].min() > 0.99
    scale = (reconstruction * volume).sum() / volume.square().sum()
    assert abs(scale - 1) < 0.05
