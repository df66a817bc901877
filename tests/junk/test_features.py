"""The power map, on noise and on a particle off-centre, and the features that it gives."""

import pytest
import torch

from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.imaging.fourier import displaced_out_of_box
from cryoforum_core.imaging.projection import FourierVolume
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
    known = power[torch.isfinite(power)]
    assert known.mean().abs() < 0.15
    assert known.std() == pytest.approx(1, abs=0.15)
    # also where little of a particle would be in the box
    at_rim = power[:, (power_map.seen > 0.1) & (power_map.seen < 0.3)]
    assert at_rim.std() == pytest.approx(1, abs=0.35)


def test_most_power_is_where_the_particle_is(matched):
    images, power_map, simulated = matched
    aside = torch.tensor([[0.25, -0.125]]).expand(len(images), 2) * images.box_size_px
    box = images.box_size_px
    views = random_quaternions(len(images), torch.Generator().manual_seed(3))
    signal = predicted(images, power_map.model.volume, views, aside)
    power = power_map.of(images, signal + noise_like(signal))
    best, place = power.flatten(1).max(1)
    found = torch.stack([place % (2 * box), place // (2 * box)], -1) - box
    assert best.median() > 5
    assert (found - aside).norm(dim=1).median() < 0.1 * images.box_size_px


def test_features_of_matched_particles_are_those_of_the_model(matched):
    """At their true poses: no fit, residual or power off-centre beyond what noise does, and power where they are."""
    images, power_map, simulated = matched
    n = len(images)
    poses = RefinedPoses(simulated.quaternion, simulated.displacement_px, torch.zeros(n), torch.zeros(n, 5, 5))
    values, place = power_map.features(images, poses, torch.ones(n))
    assert values.shape == (n, len(FEATURES)) and torch.isfinite(values).all()
    features = dict(zip(FEATURES, values.median(0).values.tolist(), strict=True))
    assert abs(features["fit"]) < 2 and abs(features["residual"]) < 1
    assert features["signal_to_noise"] > 5 and features["rest_near"] < 4
    assert (place.norm(dim=1) > power_map.model.max_displacement_px).all()  # beyond the largest shift searched


def test_features_do_not_depend_on_the_images_beside(matched, monkeypatch):
    images, power_map, simulated = matched
    n = len(images)
    poses = RefinedPoses(simulated.quaternion, simulated.displacement_px, torch.zeros(n), torch.zeros(n, 5, 5))
    whole = power_map.features(images, poses, torch.ones(n))[0]
    monkeypatch.setattr(features, "CHUNK", 7)
    torch.testing.assert_close(power_map.features(images, poses, torch.ones(n))[0], whole, rtol=1e-4, atol=1e-4)


def test_only_a_neighbour_that_overlaps_with_the_particle_is_near(matched):
    """One at the rim of the box, whose centre is outside, is seen where it is; its visible part does not count as near."""
    images, power_map, simulated = matched
    n = len(images)
    poses = RefinedPoses(simulated.quaternion, simulated.displacement_px, torch.zeros(n), torch.zeros(n, 5, 5))
    other = FourierVolume.from_real(simulated.volume).project(random_quaternions(n, torch.Generator().manual_seed(4)))
    near = {}
    for name, distance in (("overlaps", power_map.radius_px), ("at the rim", 2.3 * power_map.radius_px)):
        aside = poses.displacement_px + torch.tensor([distance, 0.0])
        both = simulated.images_ft + displaced_out_of_box(other, aside) * simulated.ctf
        values = power_map.features(power_map.model.images(both, simulated.ctf), poses, torch.ones(n))[0]
        near[name] = float(values[:, FEATURES.index("rest_near")].median())
    assert near["overlaps"] > 2 * near["at the rim"]
