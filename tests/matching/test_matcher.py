import pytest
import torch

from cryoforum_core.geometry.bingham import isotropic_bingham
from cryoforum_core.geometry.rotations import (
    angular_distance_deg,
    compose,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.imaging.volume_frame import move_volume
from cryoforum_core.matching.contrast import differs
from cryoforum_core.matching.likelihood import contrast_from_poses, predicted
from cryoforum_core.matching.matcher import Matcher, StartingPoses, with_map

from ..matching.conftest import simulate

N = 90


@pytest.fixture(scope="module")
def images():
    return simulate(N, snr=0.6, seed=11)


def network(images, error_deg, concentration, seed=0):
    """A network that is off by ``error_deg`` in a random direction, and as sure as ``concentration`` says."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(N, 3, generator=generator), dim=-1)
    quaternion = compose(images.quaternion, rotation_vector_to_quaternion(axis * torch.deg2rad(torch.tensor(error_deg))))
    return of_network(quaternion, concentration, torch.zeros_like(images.displacement_px))


def of_network(quaternion, concentration, displacement_px, **options):
    bingham = isotropic_bingham(quaternion, torch.full((len(quaternion),), concentration))
    return StartingPoses.of_network(quaternion, bingham, displacement_px, seed=0, **options)


def matched(images, poses, adaptive, images_ft=None):
    matcher = Matcher(images.model(), adaptive)
    matcher.calibrate(images.images_ft[:40], images.ctf[:40], poses[:40])
    return matcher, matcher.match(images.images_ft if images_ft is None else images_ft, images.ctf, poses)


def errors_deg(images, matches):
    return angular_distance_deg(matches.hypotheses.quaternion[:, 0], images.quaternion)


def test_local_matching_improves_a_good_network(images):
    _, matches = matched(images, network(images, 8.0, 100.0), adaptive=False)
    error = errors_deg(images, matches)
    assert error.median() < 2.5 and (error < 10).float().mean() > 0.9
    assert not matches.searched.any()
    shift = (matches.hypotheses.displacement_px[:, 0] - images.displacement_px).norm(dim=-1)
    assert shift.median() < 0.5


def test_local_matching_cannot_repair_what_adaptive_matching_finds(images):
    misassigned = network(images, 100.0, 100.0)
    _, local = matched(images, misassigned, adaptive=False)
    _, adaptive = matched(images, misassigned, adaptive=True)
    assert (errors_deg(images, local) < 10).float().mean() < 0.5
    assert (errors_deg(images, adaptive) < 10).float().mean() > 0.9
    assert adaptive.searched.float().mean() > 0.5


def test_two_micrographs_of_different_contrast_are_both_searched(images):
    """Half of the images with a weaker signal in the same noise: one amplitude fits neither, so that the spread of the
    fits is wide, and a wrong pose must not hide in it."""
    noise = torch.randn(*images.images_ft[:N // 2].shape, 2, generator=torch.Generator().manual_seed(5))
    extra = torch.view_as_complex(noise) * (images.noise_spectrum.mean() / 2).sqrt()
    weaker = (images.images_ft[:N // 2] + 1.5 * extra) / (1 + 1.5 ** 2) ** 0.5
    mixed = torch.cat([weaker, images.images_ft[N // 2:]])
    order = torch.arange(N).reshape(2, -1).T.flatten()  # the sample holds both
    poses = network(images, 100.0, 100.0)
    matcher = Matcher(images.model(), adaptive=True)
    matcher.calibrate(mixed[order][:40], images.ctf[order][:40], poses[order][:40])
    found = matcher.match(mixed, images.ctf, poses)
    assert (errors_deg(images, found) < 10).float().mean() > 0.85


def test_adaptive_matching_does_not_search_for_particles_that_match_well_already(images):
    mixed = network(images, 5.0, 200.0)
    misassigned = network(images, 120.0, 200.0)
    half = torch.arange(N) < N // 2
    poses = StartingPoses(torch.where(half[:, None, None], mixed.quaternion, misassigned.quaternion), mixed.displacement_px)
    _, matches = matched(images, poses, adaptive=True)
    assert matches.searched[half].float().mean() < 0.35 < 0.7 < matches.searched[~half].float().mean()


def test_noise_among_the_particles_has_a_poorer_fit(images):
    images_ft = images.images_ft.clone()
    noise = torch.randn(*images_ft[60:].shape, 2, generator=torch.Generator().manual_seed(3))
    images_ft[60:] = torch.view_as_complex(noise) * (images.noise_spectrum.mean() / 2).sqrt()
    _, matches = matched(images, network(images, 8.0, 100.0), adaptive=True, images_ft=images_ft)
    assert matches.quality.fit[60:].max() < matches.quality.fit[:60].median() - 3


def test_matching_is_repeatable(images):
    poses = network(images, 20.0, 10.0)
    first, second = (matched(images, poses, adaptive=True)[1] for _ in range(2))
    assert torch.equal(first.hypotheses.quaternion, second.hypotheses.quaternion)
    assert torch.equal(first.quality.fit, second.quality.fit)


def test_one_blank_image_does_not_disturb_the_others(images):
    images_ft = images.images_ft.clone()
    images_ft[5] = 0
    poses = network(images, 8.0, 100.0)
    matcher, with_blank = matched(images, poses, adaptive=False, images_ft=images_ft)
    plain = matcher.match(images.images_ft, images.ctf, poses)
    others = torch.arange(N) != 5
    assert torch.isfinite(with_blank.hypotheses.quaternion).all()
    torch.testing.assert_close(with_blank.quality.fit[others], plain.quality.fit[others], rtol=1e-3, atol=1e-2)


def test_random_rotations_as_hypotheses_stay_within_the_largest_displacement():
    quaternion = random_quaternions(6, torch.Generator().manual_seed(1))
    poses = of_network(quaternion, 5.0, torch.full((6, 2), 30.0), n_samples=4).within(3.0)
    assert poses.quaternion.shape == (6, 5, 4) and poses.displacement_px.shape == (6, 5, 2)
    assert poses.displacement_px.norm(dim=-1).max() <= 3.0 + 1e-5
    assert torch.equal(poses.quaternion[:, 0], quaternion)
    assert len(poses[:2].quaternion) == 2


def test_misassigned_poses_do_not_bias_the_amplitude():
    """More than half of them are misassigned; by the matches alone the amplitude is 7 % too large."""
    images = simulate(600, snr=0.03, seed=3)
    unknown = random_quaternions(600, torch.Generator().manual_seed(1))
    poses = of_network(unknown, 1.0, torch.zeros(600, 2))
    matcher = Matcher(images.model(), adaptive=True)
    matcher.calibrate(images.images_ft[:256], images.ctf[:256], poses[:256])
    seen = matcher.model.images(images.images_ft, images.ctf)
    truth = predicted(seen, matcher.model.volume, images.quaternion, images.displacement_px)
    contrast, variance = contrast_from_poses(seen, truth, 0.0)
    assert float((contrast / variance).sum() / (1 / variance).sum()) == pytest.approx(1, abs=0.05)


def test_a_set_of_one_contrast_is_matched_with_one(images):
    matcher, matches = matched(images, network(images, 8.0, 100.0), adaptive=True)
    assert not differs(matcher.contrast_deviation)
    assert torch.equal(matches.contrast, torch.ones(N))


def test_another_map_leaves_the_matcher_as_it_was(images):
    """Poses by a map that is turned are turned."""
    matcher, _ = matched(images, network(images, 8.0, 100.0), adaptive=True)
    seen = matcher.model.images(images.images_ft, images.ctf)
    before = matcher.search(seen)
    rotation = rotation_vector_to_quaternion(torch.tensor([0.0, 0.0, 0.5]))
    turned = move_volume(images.volume, rotation, torch.zeros(3))
    other = with_map(matcher, FourierVolume.from_real(turned, max_radius_px=matcher.model.max_radius_px + 1, with_gradient=True))
    angle = torch.rad2deg(torch.tensor(0.5))
    by_other = angular_distance_deg(other.search(seen).quaternion[:, 0], before.quaternion[:, 0]).median()
    assert by_other == pytest.approx(float(angle), abs=2.0)
    assert torch.equal(matcher.search(seen).score, before.score)
