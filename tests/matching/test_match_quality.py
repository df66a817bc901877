"""How well images fit the map at their poses, and what they show beside it."""

from dataclasses import replace

import torch

from cryoforum_core.geometry.rotations import compose, random_quaternions
from cryoforum_core.imaging.projection import FourierVolume
from cryoforum_core.matching.exhaustive_search import SearchGrid
from cryoforum_core.matching.likelihood import predicted
from cryoforum_core.matching.match_quality import match_quality
from cryoforum_core.matching.refine import RefinedPoses

from .conftest import simulate


def test_quality_distinguishes_particles_from_noise_and_from_overlapping_particles(noisy_images):
    model = noisy_images.model()
    search = SearchGrid.build(model, step_deg=12.0)
    good = model.images(noisy_images.images_ft[:40], noisy_images.ctf[:40])
    generator = torch.Generator().manual_seed(9)
    noise = torch.view_as_complex(torch.randn(*noisy_images.images_ft[:40].shape, 2, generator=generator))
    noise = noise * (noisy_images.noise_spectrum.mean() / 2).sqrt()
    empty = model.images(noise, noisy_images.ctf[:40])
    both = model.images(noisy_images.images_ft[:40] + FourierVolume.from_real(noisy_images.volume).project(
        compose(noisy_images.quaternion[:40], random_quaternions(40, generator))) * noisy_images.ctf[:40],
        noisy_images.ctf[:40])
    quality = {name: match_quality(images, model, search.search(images, n_hypotheses=6)[:, 0])
               for name, images in (("good", good), ("empty", empty), ("both", both))}
    assert quality["good"].fit.median() > quality["empty"].fit.quantile(0.95) + 1
    assert quality["both"].residual.median() > quality["good"].residual.quantile(0.95) + 1


def test_fit_and_residual_are_standard_normal_at_the_true_poses():
    """By their definition, of images that are the model's projections with noise: the mean of 160 values is within 4 of
    its standard deviations of 0.08, and their deviation within 25 %."""
    images = simulate(160, snr=0.5, seed=4)
    model, n, generator = images.model(), len(images.quaternion), torch.Generator().manual_seed(5)
    matched = model.images(images.images_ft, images.ctf)
    expected = predicted(matched, model.volume, images.quaternion, images.displacement_px)
    noise = torch.view_as_complex(torch.randn(*expected.shape, 2, generator=generator)) * 0.5 ** 0.5
    at_truth = RefinedPoses(images.quaternion, images.displacement_px, torch.zeros(n), torch.zeros(n, 5, 5))
    quality = match_quality(replace(matched, data=expected + noise), model, at_truth)
    for values in (quality.fit, quality.residual):
        assert abs(values.mean()) < 0.32 and 0.75 < values.std() < 1.25
