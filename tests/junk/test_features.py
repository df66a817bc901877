"""The power map, on noise and on a particle off-centre, and the features that it gives."""

import pytest
import torch

from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.junk import features
from cryoforum_core.junk.features import FEATURES, PowerMap
from cryoforum_core.matching.likelihood import predicted
from cryoforum_core.matching.refine import RefinedPoses

from ..matching.conftest import simulate


def noise_like(transforms: torch.Tensor) -> torch.Tensor:
    values = torch.randn(*transforms.shape, 2, generator=torch.Generator().manual_seed(1))
    return torch.view_as_complex(values) * 0.5 ** 0.5


@pytest.fixture(scope="module")
def matched():
    """Images of a map, and their power map."""
    images = simulate(60, snr=0.3, seed=2)
    model = images.model()
    return model.images(images.images_ft, images.ctf), PowerMap.build(model, images.ctf), images


def test_noise_alone_is_standard_everywhere(matched):
    images, power_map, _ = matched
    power = power_map.of(images, noise_like(images.data))
    assert power.mean().abs() < 0.15
    assert power.std() == pytest.approx(1, abs=0.15)


def test_most_power_is_where_the_particle_is(matched):
    images, power_map, simulated = matched
    aside = torch.tensor([[0.25, -0.125]]).expand(len(images), 2) * images.box_size_px
    views = random_quaternions(len(images), torch.Generator().manual_seed(3))
    signal = predicted(images, power_map.model.volume, views, aside)
    power = power_map.of(images, signal + noise_like(signal))
    best, place = power.flatten(1).max(1)
    found = torch.stack([place % images.box_size_px, place // images.box_size_px], -1) - images.box_size_px // 2
    assert best.median() > 5
    assert (found - aside).norm(dim=1).median() < 0.1 * images.box_size_px


def test_features_of_matched_particles_are_those_of_the_model(matched):
    """At their true poses: no fit, residual or power off-centre beyond what noise does, and power where they are."""
    images, power_map, simulated = matched
    n = len(images)
    poses = RefinedPoses(simulated.quaternion, simulated.displacement_px, torch.zeros(n), torch.zeros(n, 5, 5))
    values, place = power_map.features(images, poses)
    assert values.shape == (n, len(FEATURES)) and torch.isfinite(values).all()
    features = dict(zip(FEATURES, values.median(0).values.tolist(), strict=True))
    assert abs(features["fit"]) < 2 and abs(features["residual"]) < 1 and abs(features["rest_here"]) < 1
    assert features["power_here"] > features["rest_elsewhere"] and features["signal"] > 5
    assert (place.norm(dim=1) > power_map.model.max_displacement_px).all()  # beyond the largest shift searched


def test_features_do_not_depend_on_the_images_beside(matched, monkeypatch):
    images, power_map, simulated = matched
    n = len(images)
    poses = RefinedPoses(simulated.quaternion, simulated.displacement_px, torch.zeros(n), torch.zeros(n, 5, 5))
    whole = power_map.features(images, poses)[0]
    monkeypatch.setattr(features, "CHUNK", 7)
    torch.testing.assert_close(power_map.features(images, poses)[0], whole, rtol=1e-4, atol=1e-4)
