"""Batches of the particles' own images, of simulated projections, and of both."""

from dataclasses import replace

import pytest
import torch

from cryoforum_core.geometry.pose_hypotheses import PoseHypotheses
from cryoforum_core.geometry.rotations import angular_distance_deg, random_quaternions
from cryoforum_core.training.loop import step_generator
from cryoforum_core.training.schedules import NOISE_IS_FULL_AT
from cryoforum_core.training.streams import ParticleStream
from cryoforum_core.training.supervised import plan_training

from .supervised_runs import KNOWN, config


@pytest.fixture(scope="module")
def plan(tmp_path_factory, particle_set):
    """From 300 labelled images: at the end half of a batch are theirs, half projections of the map that they make."""
    return plan_training(config(tmp_path_factory.mktemp("streams")), particle_set(300, snr=2.0), state=KNOWN)


def stream_of(plan, rows, hypotheses=None) -> ParticleStream:
    own = plan.stream.labelled
    return ParticleStream(own.particles, rows, own.prepare, own.ctf_of, own.mask, own.pixel_size_angstrom,
                          own.noise_amplitude, hypotheses=hypotheses)


def test_images_as_they_are_have_their_own_labels(plan):
    stream = plan.stream.labelled
    rows = stream.rows[:6]
    batch, own = stream.at(rows), stream.particles.batch(rows)
    torch.testing.assert_close(batch.quaternion, own.poses.quaternion)
    torch.testing.assert_close(batch.shift_angstrom, own.poses.shift_angstrom)
    torch.testing.assert_close(batch.images, stream.prepare(own) * stream.mask)


def test_random_batches_are_functions_of_the_generator_and_of_the_rows_that_may_be_used(plan):
    stream = stream_of(plan, plan.stream.labelled.rows[:3])
    first, same, other = (stream.random(20, step_generator(0, step, 2), vary=False) for step in (1, 1, 2))
    assert torch.equal(first.images, same.images) and not torch.equal(first.images, other.images)
    distance = angular_distance_deg(first.quaternion[:, None], stream.at(stream.rows).quaternion[None])
    assert distance.min(1).values.max() < 0.1


def test_varied_images_are_rotated_in_plane_with_their_labels(plan):
    """In-plane rotation changes psi alone: the viewing direction, the third row of the matrix, stays."""
    stream = stream_of(plan, plan.stream.labelled.rows[:1])
    batch = stream.random(30, step_generator(0, 0, 2), vary=True)
    known = stream.at(stream.rows).quaternion
    assert angular_distance_deg(batch.quaternion, known.expand(30, 4)).median() > 30
    third = torch.stack([2 * (q[0] * q[2] - q[1] * q[3]) for q in (*batch.quaternion, known[0])])
    assert (third - third[-1]).abs().max() < 1e-4
    assert (batch.images[:, stream.mask == 0] == 0).all()


def test_uncertain_labels_are_drawn_from_their_posterior(plan):
    """Two hypotheses, of which the second has three quarters of the weight."""
    own, n = plan.stream.labelled, len(plan.stream.labelled.particles)
    other = random_quaternions(n, torch.Generator().manual_seed(5))
    known = PoseHypotheses.of(own.particles.poses.quaternion, torch.zeros(n, 2))
    hypotheses = known.with_two(known.best(), (other, torch.zeros(n, 2)))
    hypotheses.weight[:, 0], hypotheses.weight[:, 1] = 0.25, 0.75
    hypotheses.information[:] = 1e6 * torch.eye(3)
    stream = stream_of(plan, own.rows[:1], hypotheses)
    found = stream.random(400, step_generator(0, 0, 2), vary=True).quaternion
    # the viewing direction is that of the hypothesis, whatever the in-plane rotation
    direction, (first, second) = view(found), (view(q[own.rows[:1]]) for q in (known.best()[0], other))
    is_first = (direction - first).norm(dim=1) < (direction - second).norm(dim=1)
    assert is_first.float().mean() == pytest.approx(0.25, abs=0.09)  # four standard deviations of 400 draws
    assert torch.minimum((direction - first).norm(dim=1), (direction - second).norm(dim=1)).max() < 0.02


def view(q: torch.Tensor) -> torch.Tensor:
    """The third row (n, 3) of the matrices of quaternions (n, 4), x, y, z, w."""
    x, y, z, w = q.unbind(-1)
    return torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], dim=-1)


def test_the_share_of_the_particles_own_images_grows_with_the_noise(plan):
    """From none to half of the batch; without annealing it is half from the start."""
    labelled, drawn = plan.stream.labelled, []

    class Counting(ParticleStream):
        def random(self, n, generator, vary):
            drawn.append(n)
            return super().random(n, generator, vary)

    counting = Counting(labelled.particles, labelled.rows, labelled.prepare, labelled.ctf_of, labelled.mask,
                        labelled.pixel_size_angstrom, labelled.noise_amplitude)
    for stream in (replace(plan.stream, labelled=counting), replace(plan.stream, labelled=counting, anneal=False)):
        for progress in (0.0, 0.5 * NOISE_IS_FULL_AT, 1.0):
            assert len(stream(3, progress).images) == stream.batch_size == 64
    assert drawn == [16, 32, 32, 32, 32]


def test_a_mixed_batch_is_a_function_of_step_and_progress(plan):
    first, same, other = (plan.stream(step, 0.8) for step in (4, 4, 5))
    assert torch.equal(first.images, same.images) and torch.equal(first.quaternion, same.quaternion)
    assert not torch.equal(first.images, other.images)
