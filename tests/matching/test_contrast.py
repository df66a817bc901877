"""Particles matched with a contrast of their own."""

import pytest
import torch

from cryoforum_core.geometry.rotations import angular_distance_deg
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.fourier import shift_phase
from cryoforum_core.matching.matcher import Matcher, StartingPoses
from cryoforum_core.matching.matching_model import MatchingModel

from .conftest import BOX, simulate


def test_stated_errors_are_right_for_images_of_low_and_of_high_contrast():
    """Half of the particles have a third of the others' signal: each is matched, and its error stated, with its own."""
    images = simulate(500, snr=2.0, seed=21)
    contrast = torch.where(torch.arange(500) % 2 == 0, 0.5, 1.5)
    noise = torch.randn(*images.images_ft.shape, 2, generator=torch.Generator().manual_seed(8))
    white = torch.view_as_complex(noise) * (images.noise_spectrum.mean() / 2).sqrt()
    model = images.model()
    signal = images.ctf * model.volume.project(images.quaternion) * shift_phase(images.displacement_px, BOX)
    mixed = signal * contrast[:, None, None] + white
    start = StartingPoses(images.quaternion[:, None], images.displacement_px[:, None])
    matcher = Matcher(MatchingModel.estimate(images.volume, mixed, images.ctf, images.noise_spectrum, symmetry_group("c1"),
                                             BOX / 2 - 1, 4.0), adaptive=False)
    matcher.calibrate(mixed[:120], images.ctf[:120], start[:120])
    found = matcher.match(mixed, images.ctf, start)
    assert matcher.contrast_deviation == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(found.contrast, contrast / contrast.mean(), atol=0.3, rtol=0)
    best = found.hypotheses[:, 0]
    stated = torch.linalg.inv(best.information)[:, :3, :3].diagonal(dim1=1, dim2=2).sum(1).sqrt()
    error = torch.deg2rad(angular_distance_deg(best.quaternion, images.quaternion))
    ratio = error.square() / stated.square()
    for some in (contrast < 1, contrast > 1):
        assert ratio[some].mean().item() == pytest.approx(1.0, abs=0.3)
    assert stated[contrast < 1].median() > 2 * stated[contrast > 1].median()
