"""The map that labelled images make."""

import dataclasses

import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.geometry.rotations import compose, random_quaternions, rotation_vector_to_quaternion
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.fourier import ifft_image, shift_phase
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.training.map_from_labels import LabelMap, network_volume
from cryoforum_core.training.supervised import plan_training

from .conftest import BOX, PIXEL_SIZE, blobs
from .supervised_runs import KNOWN, config


@pytest.fixture(scope="module")
def ribosome(tmp_path_factory):
    """200 images of 48 px with their poses, SNR 2."""
    return cf.simulate(cf.SimulateConfig(out=tmp_path_factory.mktemp("ribosome") / "set", n_particles=200, box_size_px=48,
                                         snr=2.0, seed=1))


def test_the_map_of_labels_is_masked_where_its_resolution_allows_a_solvent_mask(ribosome):
    particles = load_particles(ribosome.truth)
    settings = config(ribosome.path, network_box_size_px=32)
    volume = plan_training(settings, particles, state=KNOWN).volume
    known = torch.from_numpy(read_map(ribosome.map)[0])
    solvent = volume == 0
    assert 0.6 < solvent.float().mean() < 0.95  # half of the box lies outside the sphere
    assert known[solvent].square().sum() < 0.02 * known.square().sum()
    assert fourier_shell_correlation(volume, known)[3:12].mean() > 0.9
    # poses that are off by 60 degrees make a coarse map, whose outline is not to be trusted
    off = rotation_vector_to_quaternion(0.7 * torch.randn(len(particles), 3, generator=torch.Generator().manual_seed(0)))
    poses = dataclasses.replace(particles.poses, quaternion=compose(particles.poses.quaternion, off))
    coarse = plan_training(settings, dataclasses.replace(particles, poses=poses), state=KNOWN).volume
    assert (coarse == 0).float().mean() < 0.5


def projections(n: int, noise: float, seed: int):
    """Images (n, b, b) of the molecule at random poses and origins, CTFs of 1, poses and origins."""
    generator = torch.Generator().manual_seed(seed)
    quaternion, shift_angstrom = random_quaternions(n, generator), 5 * torch.randn(n, 2, generator=generator)
    phase = shift_phase(-shift_angstrom / PIXEL_SIZE, BOX)
    images = ifft_image(FourierVolume.from_real(blobs()).project(quaternion) * phase)
    images = images + noise * images.std() * torch.randn(images.shape, generator=generator)
    return images, torch.ones(n, BOX, BOX // 2 + 1), quaternion, shift_angstrom


def test_images_at_their_poses_and_origins_make_the_molecule():
    label_map = LabelMap(BOX, PIXEL_SIZE, symmetry_group("c1"))
    for seed in range(4):
        label_map.add(*projections(100, 0.0, seed))
    volume = label_map.finish()
    assert fourier_shell_correlation(volume, blobs())[1:6].min() > 0.97  # beyond, the molecule has hardly any power


def test_shells_without_signal_are_left_out():
    """Noise alone agrees in no shell: nothing of it is left in the map."""
    images, ctf, quaternion, shift = projections(200, 0.0, 0)
    label_map = LabelMap(BOX, PIXEL_SIZE, symmetry_group("c1"))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    label_map.add(noise, ctf, quaternion, shift)
    assert label_map.finish().std() < 0.02 * noise.std()


def test_the_network_volume_has_the_field_of_view_of_the_images():
    volume = blobs()
    assert network_volume(volume, 16).box_size_px == 16 and network_volume(volume, 48).box_size_px == 24
