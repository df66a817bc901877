"""The matching of every particle to its half's map: what it starts from, and the errors and labels that follow."""

import csv

import numpy as np
import torch

from cryoforum_core import jobs
from cryoforum_core.ab_initio.matching_to_half_maps import FinalImages, match_half
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.ab_initio.rounds import reconstruct
from cryoforum_core.config import AbInitioConfig, SelectConfig
from cryoforum_core.geometry.pose_hypotheses import PoseHypotheses
from cryoforum_core.geometry.poses import displacement_px
from cryoforum_core.geometry.rotations import random_quaternions
from cryoforum_core.junk.features import PowerMap
from cryoforum_core.matching.matcher import Matcher
from cryoforum_core.model.orientation_head import PoseEstimate
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.progress import Progress

from .hybrid_runs import N


def test_expected_errors_are_the_size_of_true_errors(run, evaluation, data):
    rows = list(csv.DictReader((evaluation.path / "errors.csv").read_text().splitlines()))
    error_deg, is_junk = (np.array([float(row[name]) for row in rows]) for name in ("error_deg", "is_junk"))
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        expected_deg, bound_deg = arrays["expected_error_deg"], arrays["error_bound_deg"]
    right = (is_junk == 0) & (error_deg < 10)
    assert 0.75 < error_deg[right].mean() / np.median(expected_deg[right]) < 1.33
    assert 0.8 < (error_deg <= bound_deg)[right].mean() < 0.98


def test_junk_is_rejected_by_default(run, data, folder):
    clean = jobs.select(SelectConfig(out=folder / "clean", run=run.path))
    kind = dict(zip(ParticleTable.read(data.truth).integers("rlnParticleId").tolist(),
                    ParticleTable.read(data.truth).strings("rlnCryoforumJunkKind").tolist(), strict=True))
    kept = [kind[i] for i in ParticleTable.read(clean.selected).integers("rlnParticleId").tolist()]
    assert sum(k != "none" for k in kept) <= 8  # of 30
    assert len(kept) > 0.85 * N


def test_matching_starts_from_the_hypotheses_of_the_rounds_and_the_networks_pose(half_sets, poses, clean_data):
    """Displacements are in px of the box of the matching, which may be smaller than the images' own."""
    particles = half_sets.images.particles
    plan = plan_ab_initio(AbInitioConfig(out="x", particles=clean_data.particles, device="cpu"), particles,
                          torch.device("cpu"))
    refinement = reconstruct(half_sets, poses, half_sets.background_spectrum, 5.0)
    n = len(particles)
    network = PoseEstimate(random_quaternions(n, torch.Generator().manual_seed(1)), torch.zeros(n, 4, 4),
                           torch.full((n, 2), 6.0))
    rows = np.array([3, 17, 5])
    alone, both = (FinalImages.of(plan, half_sets, refinement, found) for found in (None, network))
    scale, k = alone.scaled.scale, poses.quaternion.shape[1]
    starts = both.starts(rows)
    assert scale < 1 and starts.quaternion.shape == (3, k + 1, 4)
    assert torch.equal(starts.quaternion[:, :k], alone.starts(rows).quaternion)
    torch.testing.assert_close(starts.displacement_px[:, 0], refinement.poses.displacement_px[rows, 0] * scale)
    assert torch.equal(starts.quaternion[:, k], network.quaternion[rows])
    pixel = particles.pixel_size_angstrom / scale
    torch.testing.assert_close(starts.displacement_px[:, k], torch.full((3, 2), -6.0 / pixel))


def test_errors_observed_between_frequencies_are_those_of_images_that_are_not_in_the_map(half_sets, truth, clean_data):
    """An image finds its own noise in its own half map, with either half of its pixels: their poses agree too well."""
    images, matcher, rows = _first_half(half_sets, truth.quaternion, truth, clean_data)
    found = _matched(images, matcher, rows)
    of_own_map = matcher.match(*images.scaled.images.transforms(rows), images.starts(rows)).split_error_rad
    assert found["evidence_split_error_rad"].median() > 1.1 * of_own_map.median()


def test_misassigned_poses_differ_from_those_by_the_map_of_the_other_half_set(half_sets, truth, clean_data):
    """Even where matching leaves them as they are."""
    is_wrong = torch.zeros(len(half_sets.halves), dtype=torch.bool)
    is_wrong[half_sets.rows(1)[:100:4]] = True
    anywhere = random_quaternions(len(is_wrong), torch.Generator().manual_seed(2))
    quaternion = torch.where(is_wrong[:, None], anywhere, truth.quaternion)
    images, matcher, rows = _first_half(half_sets, quaternion, truth, clean_data)
    angle = torch.rad2deg(_matched(images, matcher, rows)["evidence_independent_angle_rad"])
    assert (angle[is_wrong[rows]] > 20).float().mean() > 0.8
    assert (angle[~is_wrong[rows]] < 10).float().mean() > 0.9


def _first_half(half_sets, quaternion, truth, clean_data):
    """Images at poses that matching starts from, a local matcher to the first half map, and some rows of its half set."""
    particles = half_sets.images.particles
    plan = plan_ab_initio(AbInitioConfig(out="x", particles=clean_data.particles, device="cpu"), particles,
                          torch.device("cpu"))
    poses = PoseHypotheses.of(quaternion, displacement_px(truth.shift_angstrom, particles.pixel_size_angstrom))
    images = FinalImages.of(plan, half_sets, reconstruct(half_sets, poses, half_sets.background_spectrum, 14.0), None)
    rows = half_sets.rows(1)[:100]
    matcher = Matcher(images.scaled.model(images.refinement.pair.reference[0]), adaptive=False)
    matcher.calibrate(*images.scaled.images.transforms(rows), images.starts(rows))
    return images, matcher, rows


def _matched(images, matcher, rows):
    power_map = PowerMap.build(matcher.model, images.scaled.images.transforms(rows)[1])
    return match_half(images, matcher, power_map, rows, Progress(len(rows), "matching"))["arrays"]
