from dataclasses import replace

import torch

from cryoforum_core.geometry.rotations import angular_distance_deg, compose, rotation_vector_to_quaternion
from cryoforum_core.matching.likelihood import log_likelihood_ratio, predicted
from cryoforum_core.matching.refine import fisher_information, predicted_at_refined, refine

from .conftest import simulate


def disturb(quaternion, displacement_px, degrees, pixels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(len(quaternion), 3, generator=generator), dim=-1)
    turned = compose(quaternion, rotation_vector_to_quaternion(axis * torch.deg2rad(torch.tensor(degrees))))
    return turned, displacement_px + pixels * torch.randn(displacement_px.shape, generator=generator)


def test_converges_from_eight_degrees_away_when_there_is_no_noise(clean_images):
    model = clean_images.model()
    start = disturb(clean_images.quaternion, clean_images.displacement_px, 8.0, 0.5)
    images = model.images(clean_images.images_ft, clean_images.ctf)
    refined = refine(images, model.volume, *start, iterations=12)
    assert angular_distance_deg(refined.quaternion, clean_images.quaternion).max() < 0.3
    assert (refined.displacement_px - clean_images.displacement_px).norm(dim=-1).max() < 0.05


def test_information_is_the_curvature_of_the_expected_score(clean_images):
    """Half the second difference of the log-likelihood around the truth, along each of the five directions."""
    model = clean_images.model()
    model = replace(model, amplitude=torch.ones_like(model.amplitude))
    images = model.images(clean_images.images_ft, clean_images.ctf)
    quaternion, displacement = clean_images.quaternion, clean_images.displacement_px
    information = fisher_information(images, model.volume, quaternion, displacement)
    for axis in range(5):
        size = 0.02 if axis < 3 else 0.1
        step = torch.zeros(5)
        step[axis] = size
        scores = [log_likelihood_ratio(images, model.volume,
                                       compose(quaternion, rotation_vector_to_quaternion(sign * step[:3])),
                                       displacement + sign * step[3:]) for sign in (-1.0, 0.0, 1.0)]
        curvature = -(scores[0] - 2 * scores[1] + scores[2]) / size ** 2
        # single images differ by some per cent: trilinear interpolation has kinks, which a second difference sees
        assert abs(curvature.sum() / information[:, axis, axis].sum() - 1) < 0.05


def test_errors_reach_the_cramer_rao_bound(noisy_images):
    """From the truth, the refined poses scatter as the inverse of the information says, not more and not less."""
    model = noisy_images.model()
    images = model.images(noisy_images.images_ft, noisy_images.ctf)
    information = fisher_information(images, model.volume, noisy_images.quaternion, noisy_images.displacement_px)
    covariance = torch.linalg.inv(information.double())
    predicted_rms = torch.rad2deg(covariance.diagonal(dim1=1, dim2=2)[:, :3].sum(-1).sqrt())
    refined = refine(images, model.volume, noisy_images.quaternion, noisy_images.displacement_px, iterations=8)
    error = angular_distance_deg(refined.quaternion, noisy_images.quaternion)
    ratio = error.square().mean().sqrt() / predicted_rms.square().mean().sqrt()
    assert 0.85 < ratio < 1.2
    shift_error = (refined.displacement_px - noisy_images.displacement_px).square().sum(-1).mean().sqrt()
    predicted_shift = covariance.diagonal(dim1=1, dim2=2)[:, 3:].sum(-1).mean().sqrt()
    assert 0.85 < shift_error / predicted_shift < 1.2


def test_never_ends_below_its_start_and_respects_the_largest_displacement(noisy_images):
    model = noisy_images.model()
    images = model.images(noisy_images.images_ft, noisy_images.ctf)
    start = disturb(noisy_images.quaternion, 0 * noisy_images.displacement_px, 40.0, 0.3, seed=2)
    before = log_likelihood_ratio(images, model.volume, *start)
    refined = refine(images, model.volume, *start, iterations=6, max_displacement_px=1.5)
    assert (refined.score >= before - 1e-2 * before.abs() - 1e-2).all()
    assert (refined.displacement_px.norm(dim=-1) <= 1.5 + 1e-6).all()


def test_a_blank_image_gives_finite_poses(noisy_images):
    model = noisy_images.model()
    blank = torch.zeros_like(noisy_images.images_ft[:3])
    images = model.images(blank, torch.zeros_like(noisy_images.ctf[:3]))
    refined = refine(images, model.volume, noisy_images.quaternion[:3], noisy_images.displacement_px[:3])
    assert torch.isfinite(refined.quaternion).all() and torch.isfinite(refined.displacement_px).all()


def test_refined_poses_fit_as_much_noise_as_is_taken_off():
    """Predictions at refined poses fit the noise better than those at the true ones, most in the outer shells."""
    simulated = simulate(3000, snr=0.3, seed=11)
    model = simulated.model()
    images = model.images(simulated.images_ft, simulated.ctf)
    refined = refine(images, model.volume, simulated.quaternion, simulated.displacement_px)
    at_truth = predicted(images, model.volume, simulated.quaternion, simulated.displacement_px)
    at_refined, taken_up = predicted_at_refined(images, model.volume, refined)
    torch.testing.assert_close(at_refined, predicted(images, model.volume, refined.quaternion, refined.displacement_px))
    assert torch.allclose(taken_up.sum(1), torch.tensor(1.25), atol=1e-3)
    for inner, outer in ((1, 5), (5, 8), (8, 15)):
        ring = (images.radius >= inner) & (images.radius < outer)
        truth, biased, right = (((images.data.conj() * at).real - less)[:, ring].sum() / at[:, ring].abs().square().sum()
                                for at, less in ((at_truth, 0.0), (at_refined, 0.0), (at_refined, taken_up)))
        assert abs(right - truth) < 0.35 * abs(biased - truth) + 0.002
