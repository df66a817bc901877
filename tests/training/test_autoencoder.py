"""The auto-encoder: its losses and devices one by one, the table of poses, and fine-tuning a network with its map."""

import math
import signal

import numpy as np
import pytest
import torch

from cryoforum_core.errors import Interrupted
from cryoforum_core.geometry.rotations import (
    angular_distance_deg,
    compose,
    in_plane_quaternion,
    random_quaternions,
    rotation_vector_to_quaternion,
)
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging import projection
from cryoforum_core.imaging.fourier import crop_volume, fft_volume, ifft_volume
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.model.learnable_volume import LearnableVolume
from cryoforum_core.model.network import NetworkConfig, OrientationNetwork, rotate_90_deg
from cryoforum_core.model.orientation_head import PoseEstimate
from cryoforum_core.training.autoencoder import (
    AutoEncoder,
    AutoEncoderOptions,
    EndToEndObjective,
    EndToEndTask,
    FineTuneSettings,
    equivariance_errors_deg,
    fine_tune_end_to_end,
    marching_radius_px,
    mean_square,
    random_pose_loss,
    reconstruction_error,
    unexplained_power,
)
from cryoforum_core.training.image_batches import EpochStream
from cryoforum_core.training.learnable_poses import PoseAdam, PoseTable, tangent_gradient
from cryoforum_core.training.loop import LoopSettings, train_network

from .clean_images import BOX, MASK, PIXEL, CleanSet, molecule

C1 = symmetry_group("c1")


def low_pass(volume: torch.Tensor, box: int = 10) -> torch.Tensor:
    """The map on coarser voxels."""
    return crop_volume(volume, box)


def radius_3d() -> torch.Tensor:
    """Fourier radius on the half-complex grid of the map: (16, 16, 9)."""
    k = torch.fft.fftfreq(BOX, 1 / BOX)
    return torch.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + torch.arange(BOX // 2 + 1) ** 2)


@pytest.fixture(scope="module")
def clean():
    return CleanSet()


def make_model(options: AutoEncoderOptions = AutoEncoderOptions(shifts=False), head: str = "s2s2", n_images: int = 0,
               group: torch.Tensor = C1, encoder: str = "compact", width: int | None = 8,
               kind: type[AutoEncoder] = AutoEncoder) -> AutoEncoder:
    torch.manual_seed(0)
    network = OrientationNetwork(NetworkConfig(BOX, PIXEL, encoder, head, width=width))
    volume = LearnableVolume.random(BOX, 0.45 * BOX, torch.Generator().manual_seed(0))
    model = kind(network, volume, MASK, options, group, n_images)
    model.start_from_scratch()
    return model


def make_objective(data: CleanSet, pose_steps_from: int | None = None, batch_size: int = 40) -> EndToEndObjective:
    stream = EpochStream(data.images, data.rows, data.held_out, batch_size, 0, pose_steps_from)
    held_out = list(data.images.batches(data.held_out))
    return EndToEndObjective(stream, mean_square(held_out), held_out)


def fit(model: AutoEncoder, objective: EndToEndObjective, directory, steps: int, **settings) -> None:
    chosen = LoopSettings(**{"max_steps": steps, "learning_rate": 1e-3, "patience_evaluations": 10 ** 9, **settings})
    train_network(EndToEndTask(model, objective), chosen, directory / "state.pt", directory / "metrics.csv")


def weights(model: AutoEncoder) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


# losses and schedules


def test_error_of_all_frequencies_is_that_of_the_pixels():
    first, second = torch.randn(2, 3, BOX, BOX, generator=torch.Generator().manual_seed(0))
    everything = reconstruction_error(first, second, max_radius_px=float(BOX))
    assert torch.allclose(everything, reconstruction_error(first, second), rtol=1e-5)
    low = reconstruction_error(first, second, max_radius_px=3.0)
    assert (low < 0.3 * everything).all() and (low > 0).all()


def test_low_frequencies_come_first():
    radii = [marching_radius_px(progress / 10, 32) for progress in range(6)]
    assert radii[0] == 4.0 and all(a < b for a, b in zip(radii, radii[1:])) and radii[-1] < 16
    assert marching_radius_px(0.6, 32) is None and marching_radius_px(1.0, 32) is None


def test_held_out_images_get_poses_without_gradients_of_the_map(clean):
    model = make_model(AutoEncoderOptions(shifts=False, per_image_from_step=0), n_images=clean.n)
    objective = make_objective(clean, pose_steps_from=0)
    steps = [step for step in range(20) if objective.stream.is_held_out(step)]
    assert steps == [9, 19]
    for step, learns in ((8, True), (9, False)):
        model.zero_grad()
        objective(model, objective.stream(step, 0.0), 0.0)[0].backward()
        assert (model.volume.voxels.grad is not None) == learns
        moved = torch.nonzero(model.table.quaternion.grad.abs().sum(1))[:, 0].tolist()
        assert moved and set(moved) <= set((clean.rows if learns else clean.held_out).tolist())


def test_a_step_transforms_the_volume_once(clean, monkeypatch):
    model = make_model(AutoEncoderOptions(shifts=False, symmetric_loss=True, n_heads=3, random_pose_weight=1.0))
    objective, calls = make_objective(clean), []
    monkeypatch.setattr(projection, "fft_volume", lambda v, f=projection.fft_volume: (calls.append(1), f(v))[1])
    objective(model, objective.stream(0, 0.0), 0.0)[0].backward()
    assert len(calls) == 1


@pytest.mark.parametrize("head", ["euler", "quaternion", "s2s2", "qcqp", "qcqp-psd"])
@pytest.mark.parametrize("encoder", ["cryoposenet", "cryoforum", "compact", "polar"])
def test_every_head_and_encoder_learns_with_the_map(clean, head, encoder):
    model = make_model(head=head, encoder=encoder)
    objective = make_objective(clean)
    loss, figures = objective(model, objective.stream(0, 0.0), 0.0)
    loss.backward()
    assert math.isfinite(figures["reconstruction_loss"]) and model.volume.voxels.grad.abs().sum() > 0
    assert model.network.head.orientation.weight.grad.abs().sum() > 0
    first = next(p for p in model.network.encoder.parameters())
    assert torch.isfinite(first.grad).all() and first.grad.abs().sum() > 0


# devices


def test_only_the_winner_learns(clean):
    model = make_model(AutoEncoderOptions(shifts=False, n_heads=3))
    model.eval()  # batch normalisation needs more than one image to train
    batch = clean.images.at(np.arange(1))
    candidates, transform = model.candidates(batch), model.volume.transform()
    winner = int(model.winner(transform, candidates, batch))
    decoded = [model.decoded(transform, one.quaternion, one.shift_angstrom, batch.ctf)
               for one in (candidates[i] for i in range(3))]
    errors = [reconstruction_error(batch.images, image) for image in decoded]
    assert winner == int(torch.cat(errors).argmin())
    make_objective(clean)(model, (batch, 0), 0.0)[0].backward()
    gradients = [head.orientation.weight.grad for head in model.heads]
    assert gradients[winner].abs().sum() > 0
    assert all(g is None or not g.any() for i, g in enumerate(gradients) if i != winner)


def test_the_winner_among_more_hypotheses_is_never_worse(clean):
    one = make_model(AutoEncoderOptions(shifts=False))
    many = make_model(AutoEncoderOptions(shifts=False, n_heads=4, symmetric_loss=True))
    many.network.load_state_dict(one.network.state_dict())
    batch = clean.images.at(np.arange(50))
    one.eval(), many.eval()
    assert len(many.candidates(batch)) == 8
    assert (many.poses(batch)[1] <= one.poses(batch)[1] + 1e-6).all()
    assert many.poses(batch)[1].mean() < 0.99 * one.poses(batch)[1].mean()


def test_the_twin_is_the_image_rotated_by_180_degrees(clean):
    """The pose of the rotated copy, rotated back, is that of the image, if the network is right about both."""
    by_180_degrees = in_plane_quaternion(torch.tensor(math.pi))

    class Oracle(AutoEncoder):
        def poses_of_heads(self, images, ctf):
            found = [int((clean.pixels - image).square().sum((1, 2)).argmin()) for image in images]
            if (images - clean.pixels[found]).abs().max() < 1e-3:
                quaternion = clean.quaternion[found]
            else:
                quaternion = compose(by_180_degrees, clean.quaternion[:6])
            bingham = -quaternion[:, :, None] * quaternion[:, None, :]
            return [PoseEstimate(quaternion, bingham, torch.ones(len(images), 2))]

    model = make_model(AutoEncoderOptions(shifts=False, symmetric_loss=True), kind=Oracle)
    batch = clean.images.at(np.arange(6))
    candidates = model.candidates(batch)
    assert angular_distance_deg(candidates[0].quaternion, candidates[1].quaternion).max() < 0.1
    assert torch.allclose(candidates[0].bingham, candidates[1].bingham, atol=1e-5)
    assert torch.allclose(candidates[1].shift_angstrom, -candidates[0].shift_angstrom)


def test_rotated_copies_distinguish_right_poses_from_wrong_ones(clean):
    by_image = {tuple(image[6:9, 5].tolist()): pose for image, pose in zip(clean.pixels, clean.quaternion, strict=True)}
    turn = in_plane_quaternion(torch.tensor(0.5 * math.pi))

    class Oracle(AutoEncoder):
        def poses_of_heads(self, images, ctf):
            """The poses of the images of the set, and of those rotated by 90 degrees."""
            poses = [by_image.get(tuple(image[6:9, 5].tolist())) for image in images]
            back = rotate_90_deg(rotate_90_deg(rotate_90_deg(images)))
            rotated = [by_image.get(tuple(image[6:9, 5].tolist())) for image in back]
            quaternion = torch.stack([compose(turn, b) if a is None else a for a, b in zip(poses, rotated, strict=True)])
            return [PoseEstimate(quaternion, torch.zeros(len(images), 4, 4), torch.zeros(len(images), 2))]

    batches = list(clean.images.batches(clean.held_out))
    assert equivariance_errors_deg(make_model(kind=Oracle).eval(), batches).max() < 0.1
    assert equivariance_errors_deg(make_model().eval(), batches).median() > 20


def test_projections_at_random_poses_train_the_encoder_but_not_the_map(clean):
    model = make_model(AutoEncoderOptions(shifts=True, random_pose_weight=1.0))
    loss = random_pose_loss(model, model.volume.transform(), clean.ctf[:32])
    assert loss.shape == (32,)
    loss.mean().backward()
    assert model.volume.voxels.grad is None and model.network.head.orientation.weight.grad.abs().sum() > 0


def test_the_encoder_finds_poses_of_projections_at_random_poses(clean, tmp_path):
    found = {}
    for weight in (0.0, 1.0):
        model = make_model(AutoEncoderOptions(shifts=False, random_pose_weight=weight))
        fit(model, make_objective(clean), tmp_path, 60)
        model.eval()
        with torch.no_grad():
            torch.manual_seed(9)
            found[weight] = random_pose_loss(model, model.volume.transform(), clean.ctf[:200]).mean().item()
    assert found[1.0] < found[0.0] - 0.1


def test_symmetry_makes_the_map_symmetric(clean, tmp_path):
    """Images explained at any of their equivalent poses: a C2 map of an asymmetric particle."""
    correlation = {}
    for name in ("c1", "c2"):
        model = make_model(AutoEncoderOptions(shifts=False, learn_poses=False), n_images=clean.n,
                           group=symmetry_group(name))
        model.uses_table.fill_(True)
        model.table.set(torch.arange(clean.n), clean.quaternion, torch.zeros(clean.n, 2))
        fit(model, make_objective(clean), tmp_path, 60)
        volume = low_pass(model.volume.map().detach())[1:, 1:, 1:]
        correlation[name] = np.corrcoef(volume.flatten(), volume.flip(1, 2).flatten())[0, 1]
    assert correlation["c2"] > 0.9 and correlation["c1"] < 0.7, correlation


# poses of single images


def test_tangent_gradient_is_the_derivative_along_small_rotations():
    generator = torch.Generator().manual_seed(2)
    quaternion = random_quaternions(5, generator, torch.float64)
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    along = torch.autograd.functional.jacobian(
        lambda turn: (compose(rotation_vector_to_quaternion(turn), quaternion) * weight).sum(),
        torch.full((5, 3), 1e-9, dtype=torch.float64))
    assert torch.allclose(tangent_gradient(quaternion, weight), along, atol=1e-6)


def test_poses_outside_of_the_batch_stay_where_they_are():
    table = PoseTable(random_quaternions(6, torch.Generator().manual_seed(0)), torch.zeros(6, 2))
    optimizer, before = PoseAdam(table, 0.1, shift_unit_angstrom=2.0), table.quaternion.detach().clone()
    for rows in (torch.tensor([0, 2]), torch.tensor([4])):
        optimizer.zero_grad()
        quaternion, shift = table.at(rows)
        (quaternion[:, 0].sum() + shift.sum()).backward()
        optimizer.step()
    moved = angular_distance_deg(table.quaternion.detach(), before)
    assert moved[[0, 2, 4]].min() > 1 and moved[[1, 3, 5]].max() < 0.1
    # Adam's first step: the rate, whatever the gradient; of a shift in both directions together
    assert moved[[0, 2, 4]].max() == pytest.approx(math.degrees(0.1), rel=0.01)
    assert torch.allclose(table.shift_angstrom[4].norm(), torch.tensor(0.2))
    assert torch.allclose(table.quaternion.norm(dim=1), torch.ones(6))


def test_known_poses_give_the_map(clean, tmp_path):
    model = make_model(AutoEncoderOptions(shifts=False, learn_poses=False), n_images=clean.n)
    model.uses_table.fill_(True)
    model.table.set(torch.arange(clean.n), clean.quaternion, torch.zeros(clean.n, 2))
    fit(model, make_objective(clean), tmp_path, 150)
    fsc = fourier_shell_correlation(model.volume.map().detach(), molecule() * model.volume.mask)
    assert fsc[1:6].min() > 0.95
    assert torch.equal(model.table.quaternion.detach(), clean.quaternion)


def test_perturbed_poses_are_improved_one_by_one(clean, tmp_path):
    model = make_model(AutoEncoderOptions(shifts=False, per_image_from_step=0), n_images=clean.n)
    model.uses_table.fill_(True)
    turn = torch.nn.functional.normalize(torch.randn(clean.n, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    start = compose(rotation_vector_to_quaternion(turn * math.radians(12)), clean.quaternion)
    model.table.set(torch.arange(clean.n), start, torch.zeros(clean.n, 2))
    fit(model, make_objective(clean, pose_steps_from=0), tmp_path, 300)
    error = angular_distance_deg(model.table.quaternion.detach(), clean.quaternion)
    assert error[clean.rows].median() < 5 and error[clean.held_out].median() < 5


def test_the_encoder_hands_its_poses_over(clean, tmp_path):
    model = make_model(AutoEncoderOptions(shifts=False, per_image_from_step=20), n_images=clean.n)
    objective = make_objective(clean, pose_steps_from=20)
    fit(model, objective, tmp_path, 20)
    assert not model.uses_table
    model.eval()
    before = model.poses(clean.images.at(np.arange(clean.n)))[0].quaternion
    model.use_table(clean.images)
    assert model.uses_table and angular_distance_deg(model.table.quaternion.detach(), before).max() < 0.1
    again = make_model(AutoEncoderOptions(shifts=False, per_image_from_step=20), n_images=clean.n)
    fit(again, objective, tmp_path, 60)
    after, before = (unexplained_power(one, objective.evaluated) for one in (again, model))
    assert again.uses_table and after < before


# the training as a whole


def test_an_interrupted_training_goes_on_bit_for_bit(clean, tmp_path):
    options = AutoEncoderOptions(symmetric_loss=True, n_heads=2, frequency_marching=True, random_pose_weight=0.5,
                                 per_image_from_step=16)

    def run(directory, interrupt_at=None, resume=False):
        directory.mkdir(exist_ok=True)
        model, objective = make_model(options, n_images=clean.n), make_objective(clean, pose_steps_from=16)

        class Interrupting(EndToEndTask):
            def batch(self, step, progress):
                if step == interrupt_at:
                    signal.raise_signal(signal.SIGINT)
                return super().batch(step, progress)

        settings = LoopSettings(30, 1e-3, patience_evaluations=10 ** 9, resume=resume)
        train_network(Interrupting(model, objective), settings, directory / "state.pt", directory / "metrics.csv")
        return weights(model)

    whole = run(tmp_path / "whole")
    for interrupt_at in (7, 22):
        with pytest.raises(Interrupted, match="--resume"):
            run(tmp_path / str(interrupt_at), interrupt_at)
        assert torch.equal(run(tmp_path / str(interrupt_at), resume=True), whole)


def test_the_finished_network_needs_no_scale_and_has_the_best_head(clean):
    for encoder in ("polar", "compact", "cryoforum", "cryoposenet"):
        model = make_model(AutoEncoderOptions(shifts=False, n_heads=2), encoder=encoder)
        model.input_scale.fill_(0.3)
        model.eval()
        batch = clean.images.at(np.arange(20))
        model.count_wins(torch.tensor([0, 1, 1]))
        network = model.finished_network().eval()
        expected = model.candidates(batch)[1].quaternion
        assert angular_distance_deg(network(batch.images, batch.ctf).quaternion, expected).max() < 0.1


@pytest.fixture(scope="module")
def taught(clean):
    """A network that knows its poses roughly, from labels."""
    torch.manual_seed(0)
    network = OrientationNetwork(NetworkConfig(BOX, PIXEL, "compact", "qcqp", width=12))
    torch.nn.init.zeros_(network.head.shift.weight), torch.nn.init.zeros_(network.head.shift.bias)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(40):
        estimate = network(clean.pixels[clean.rows], clean.ctf[clean.rows])
        loss = angular_distance_deg(estimate.quaternion, clean.quaternion[clean.rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_fine_tuning_lowers_the_held_out_loss_and_leaves_the_given_network_as_it_was(clean, taught, tmp_path):
    given = {name: value.clone() for name, value in taught.state_dict().items()}
    blurred = 7.0 * ifft_volume(fft_volume(molecule()) * (radius_3d() < 3))  # any grey values
    settings = FineTuneSettings(batch_size=40, max_steps=60, options=AutoEncoderOptions(shifts=False))
    tuned = fine_tune_end_to_end(taught, blurred, clean.images, clean.rows, clean.held_out, MASK, C1, max_minutes=5,
                                 state_path=tmp_path / "state.pt", metrics_path=tmp_path / "metrics.csv",
                                 settings=settings)
    assert tuned.is_better and tuned.loss_after < 0.9 * tuned.loss_before and tuned.steps == 60
    assert tuned.volume.std() == pytest.approx(blurred.std().item(), rel=0.3)
    assert all(torch.equal(value, given[name]) for name, value in taught.state_dict().items())
    with torch.no_grad():
        rows = clean.held_out
        found = [network.eval()(clean.pixels[rows], clean.ctf[rows]).quaternion for network in (taught, tuned.network)]
        before, after = (angular_distance_deg(one, clean.quaternion[rows]).median() for one in found)
    assert after < before + 2


def test_fine_tuning_wants_the_map_at_the_networks_box(clean, taught, tmp_path):
    with pytest.raises(ValueError, match="box of 16 px"):
        fine_tune_end_to_end(taught, torch.zeros(24, 24, 24), clean.images, clean.rows, clean.held_out, MASK, C1, 1.0,
                             tmp_path / "state.pt", tmp_path / "metrics.csv")
