"""Maps at another pixel size and box: a ball of known place and size, and there and back again."""

import pytest
import torch

from cryoforum_core.imaging.resample import resample_volume


def blob(box: int, pixel_size: float, centre_angstrom: tuple[float, float, float],
         sigma_angstrom: float) -> torch.Tensor:
    axis = (torch.arange(box) - box // 2) * pixel_size
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    squared = (x - centre_angstrom[0]) ** 2 + (y - centre_angstrom[1]) ** 2 + (z - centre_angstrom[2]) ** 2
    # a projection, a sum over voxels, keeps its grey values: the value in a voxel is the density times the voxel's side
    return torch.exp(-squared / (2 * sigma_angstrom ** 2)) * pixel_size


@pytest.mark.parametrize("old, new", [((48, 5.0), (32, 6.0)), ((32, 6.0), (48, 4.0)), ((40, 3.54), (30, 5.1)),
                                      ((32, 4.0), (48, 4.0)), ((48, 4.0), (24, 4.0))])
def test_a_blob_keeps_its_place_its_size_and_its_projection(old, new):
    centre, sigma = (9.0, -6.0, 12.0), 12.0
    found = resample_volume(blob(*old, centre, sigma), old[1], new[1], new[0])
    expected = blob(*new, centre, sigma)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.02 * expected.max()
    assert (found.sum(0) - expected.sum(0)).abs().max() < 0.02 * expected.sum(0).max()


def test_finer_and_back_changes_nothing():
    volume = blob(32, 5.0, (4.0, 0.0, -8.0), 14.0)
    there = resample_volume(volume, 5.0, 2.5, 64)
    assert torch.allclose(resample_volume(there, 2.5, 5.0, 32), volume, atol=1e-4 * float(volume.max()))
