"""The method end-to-end as a job: what it finds, what it writes, when it says that it did not converge, resuming."""

import json
import signal

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.ab_initio import live_run
from cryoforum_core.ab_initio.end_to_end.run import end_to_end
from cryoforum_core.ab_initio.end_to_end.setup import prepare
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.cli import EXIT_NOT_CONVERGED, main
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.errors import InputError, Interrupted
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.model.checkpoint import load_checkpoint
from cryoforum_core.mrc import read_map, write_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.report.live_page import write_live
from cryoforum_core.run_directory import RunDirectory

BOX, PIXEL, N_SHORT = 16, 6.0, 400
# one value of the contrast transfer function everywhere: 1
NO_CTF = {"amplitude_contrast": 1.0, "spherical_aberration_mm": 0.0, "defocus_min_angstrom": 0.0,
          "defocus_max_angstrom": 0.0, "astigmatism_angstrom": 0.0}
CPU = torch.device("cpu")


def molecule() -> torch.Tensor:
    """A map (16, 16, 16) of six blobs that looks different from all sides."""
    axis = (torch.arange(BOX) - BOX // 2).float() / BOX
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    blobs = (((0.25, 0, 0), 1.5), ((-0.12, 0.05, 0), 1.0), ((-0.22, -0.1, 0.05), 0.8), ((0.02, 0.22, 0.08), 1.2),
             ((-0.05, -0.02, 0.25), 0.7), ((0.1, -0.1, -0.15), 0.9))
    return sum(w * torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * 0.06 ** 2)) for (a, b, c), w in blobs)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Makes sets of 1,000 images without CTF and shifts: ``sets(snr)`` returns the run, whose truth.star has poses."""
    folder, made = tmp_path_factory.mktemp("sets"), {}
    write_map(folder / "molecule.mrc", molecule().numpy(), PIXEL)

    def make(snr: float, n: int = 1000) -> RunDirectory:
        if (snr, n) not in made:
            made[snr, n] = cf.simulate(cf.SimulateConfig(out=folder / f"{snr}_{n}", model=folder / "molecule.mrc",
                                                         n_particles=n, snr=snr, shift_rms_px=0.0, **NO_CTF))
        return made[snr, n]

    return make


def cryoforum(*arguments) -> int:
    """The command line, within this process (loading torch takes seconds); returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def config(tmp_path, particles, **options) -> AbInitioConfig:
    defaults = {"method": "end-to-end", "encoder": "compact", "batch_size": 32, "shifts": False, "ctf_state": "raw",
                "contrast": "bright", "epochs": 10}
    return AbInitioConfig(out=tmp_path / "run", particles=particles, device="cpu", **{**defaults, **options})


def run_end_to_end(settings: AbInitioConfig, particles=None) -> tuple[dict, RunDirectory]:
    run = RunDirectory(settings.out)
    run.prepare(settings, settings.resume)
    particles = particles or load_particles(settings.particles, settings)
    return end_to_end(plan_ab_initio(settings, particles, CPU), run), run


def weights(run: RunDirectory) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(run.path)[0].state_dict().values()])


def test_known_poses_recover_the_map(sets, tmp_path):
    made = sets(float("inf"))
    summary, run = run_end_to_end(config(tmp_path, made.truth, poses="known", epochs=6))
    assert summary["converged"] and summary["explained_fraction"] > 0.95
    assert summary["hand"] == "that of the poses given"
    volume, pixel_size = read_map(run.map)
    fsc = fourier_shell_correlation(torch.from_numpy(volume), torch.from_numpy(read_map(made.map)[0]))
    assert volume.shape == (BOX,) * 3 and pixel_size == pytest.approx(PIXEL) and fsc[1:7].min() > 0.97
    assert not run.orientation_posterior.exists() and not (run.checkpoint / "checkpoint.json").exists()


def test_known_poses_are_asked_for(sets, tmp_path):
    with pytest.raises(InputError, match="--poses known"):
        run_end_to_end(config(tmp_path, sets(float("inf")).particles, poses="known"))
    with pytest.raises(InputError, match="--network-box-size-px"):
        run_end_to_end(config(tmp_path / "box", sets(float("inf")).particles, network_box_size_px=15))


@pytest.fixture(scope="module")
def short(sets, tmp_path_factory):
    """A short job of everything that can be switched on: its summary, its run, that of its particles, which belong to
    no half sets, and the pages that it showed."""
    made, run = sets(2.0, N_SHORT), RunDirectory(tmp_path_factory.mktemp("short") / "run")
    ParticleTable.read(made.particles).with_columns({"rlnRandomSubset": np.ones(N_SHORT, int)}).write(
        made.path / "no_halves.star")
    pages = []

    def write_and_keep(run, progress, volume, *more):
        write_live(run, progress, volume, *more)
        pages.append((progress, volume, run.live.read_text(encoding="utf-8")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_run, "write_live", write_and_keep)
        code = cryoforum("ab-initio", "--out", run.path, "--particles", made.path / "no_halves.star", "--device", "cpu",
                         "--method", "end-to-end", "--encoder", "cryoposenet", "--batch-size", 20, "--epochs", 3,
                         "--symmetric-loss", "--n-heads", 2, "--random-pose-weight", 0.3, "--frequency-marching",
                         "--ctf-state", "raw", "--contrast", "bright")
    assert code == EXIT_NOT_CONVERGED
    return run.read_summary(), run, made, pages


def test_the_summary_says_what_was_done(short):
    summary = short[0]
    promised = {"converged", "converged_reason", "resolution_angstrom", "method", "symmetry", "hand", "n_particles",
                "n_steps", "train_seconds", "validation_loss"}
    assert promised <= set(summary)
    assert summary["method"] == "end-to-end" and summary["hand"] == "undetermined"
    assert summary["n_particles"] == N_SHORT and summary["n_steps"] == 3 * 18
    assert summary["converged"] is False and summary["converged_reason"].endswith(".")
    assert summary["half_sets"] == "drawn at random" and list(summary["stages"]) == ["training", "poses and maps"]


def test_the_files_are_those_of_a_run(short):
    _, run, made, _ = short
    for path in (run.map, run.map_half1, run.map_half2, run.fsc, run.metrics, run.particles, run.report):
        assert path.is_file()
    table, before = ParticleTable.read(run.particles), ParticleTable.read(made.particles)
    assert table.integers("rlnParticleId").tolist() == before.integers("rlnParticleId").tolist()
    assert np.isfinite(table.floats("rlnAngleTilt")).all() and table.floats("rlnOriginXAngst").any()
    expected = table.floats("rlnCryoforumExpectedError")
    assert (expected > 0).all() and (expected <= 127).all()
    with np.load(run.orientation_posterior, allow_pickle=False) as posterior:
        assert {"particle_id", "quaternion", "bingham", "eigenvalues", "expected_error_deg", "error_bound_deg",
                "shift_angstrom", "figure_of_merit"} <= set(posterior)
        assert np.allclose(posterior["expected_error_deg"], expected, rtol=1e-3)
    assert not list(run.checkpoint.glob("*.pt"))


def test_half_maps_are_of_the_half_sets_that_are_written(short, tmp_path):
    """``reconstruct`` goes by the half sets of particles.star, and makes the same half maps."""
    _, run, _, _ = short
    assert np.bincount(ParticleTable.read(run.particles).integers("rlnRandomSubset"))[1:].tolist() == [N_SHORT / 2] * 2
    again = cf.reconstruct(cf.ReconstructConfig(out=tmp_path / "again", particles=run.particles, device="cpu",
                                                ctf_state="raw", contrast="bright"))
    first, second, same = (read_map(path)[0].ravel() for path in (run.map_half1, run.map_half2, again.map_half1))
    assert np.corrcoef(same, first)[0, 1] > 0.999 > np.corrcoef(same, second)[0, 1]


def test_the_run_can_be_followed(short):
    """The map as it is learnt and the curve of the loss are in the page before the training ends."""
    _, run, _, pages = short
    before, learning, *_, last = pages
    assert before[0]["stage"] == learning[0]["stage"] == "training" and before[0]["fraction"] == 0
    progress, volume, page = [page for page in pages if page[0]["loss"] is not None][-1]
    assert progress["stages"] == ["training", "poses and maps"] and 0 < progress["loss"] < 2
    assert volume.shape == (BOX,) * 3 and "<h3>The map so far</h3>" in page and "<h3>Loss</h3>" in page
    assert last[0]["fraction"] == 1 and last[0]["message"] == "did not converge"
    assert np.allclose(last[1], read_map(run.map)[0], rtol=1e-5)
    assert json.loads(run.progress.read_text())["fraction"] == 1
    assert "report.html" in run.live.read_text()  # whoever has it open is led on


def test_predict_takes_the_network(short, tmp_path):
    _, run, made, _ = short
    poses = cf.predict(cf.PredictConfig(out=tmp_path / "poses", particles=made.particles, model=run.path, device="cpu",
                                        refinement="none", ctf_state="raw", contrast="bright"))
    assert poses.read_summary()["n_particles"] == N_SHORT
    metadata = load_checkpoint(run.path)[1]
    assert metadata.reference == run.checkpoint / "reference.mrc" and metadata.signal_scale > 0


def test_network_and_map_learn_together(sets, tmp_path):
    """From images without noise alone, with projections at random poses: little is left unexplained."""
    made = sets(float("inf"))
    summary, run = run_end_to_end(config(tmp_path, made.particles, encoder="polar", epochs=16, random_pose_weight=1.0))
    assert summary["converged"], summary["converged_reason"]
    assert summary["validation_loss"] < 0.1 * summary["loss_without_poses"] and summary["loss_of_noise"] < 0.01
    assert summary["projection_error_deg"] < 15
    errors = cf.evaluate(cf.EvaluateConfig(out=tmp_path / "errors", particles=run.particles, truth=made.truth,
                                           align_frame=True, allow_mirror=True)).read_summary()
    assert errors["median_error_deg"] < 5
    poses = cf.predict(cf.PredictConfig(out=tmp_path / "poses", particles=made.particles, model=run.path, device="cpu",
                                        refinement="none", ctf_state="raw", contrast="bright"))
    predicted = cf.evaluate(cf.EvaluateConfig(out=tmp_path / "again", particles=poses.particles, truth=made.truth,
                                              align_frame=True, allow_mirror=True)).read_summary()
    assert predicted["median_error_deg"] < 5


def test_noise_does_not_converge(sets, tmp_path):
    """With an encoder and with free poses; both explain something of the noise that they learn from."""
    for poses in ("encoder", "per-image"):
        summary, run = run_end_to_end(config(tmp_path / poses, sets(1e-6).particles, poses=poses, epochs=6))
        assert not summary["converged"], summary["converged_reason"]
        assert run.map.is_file() and run.particles.is_file()


def test_images_without_noise_keep_their_own_grey_values(sets, tmp_path):
    """Normalised by a background that holds nothing but the particle, each image would have a scale of its own."""
    scale = {}
    for snr in (float("inf"), 2.0):
        particles = load_particles(sets(snr).truth)
        setup = prepare(plan_ab_initio(config(tmp_path, sets(snr).truth), particles, CPU))
        rows = np.arange(200)
        own = particles.images(rows)
        # the mask takes little away: the standard deviations of both must be in one proportion
        ratio = setup.images.at(rows).images.std((1, 2)) / own.std((1, 2))
        scale[snr] = (ratio.std() / ratio.mean()).item()
    assert scale[float("inf")] < 0.02 and scale[2.0] < 0.1


def test_an_interrupted_run_goes_on_bit_for_bit(sets, tmp_path):
    particles = sets(2.0).particles
    options = {"epochs": 3, "batch_size": 100, "symmetric_loss": True, "per_image_after_epoch": 2}
    whole, run = run_end_to_end(config(tmp_path / "whole", particles, **options))
    stopped = config(tmp_path / "parts", particles, **options)
    plan = plan_ab_initio(stopped, load_particles(particles, stopped), CPU)
    RunDirectory(stopped.out).prepare(stopped)
    with pytest.raises(Interrupted, match="--resume"):
        end_to_end(plan, RunDirectory(stopped.out), on_evaluate=_interrupt)
    parts, resumed = run_end_to_end(stopped.model_copy(update={"resume": True}))
    assert parts["n_steps"] == whole["n_steps"] == 27 and torch.equal(weights(run), weights(resumed))
    assert parts["validation_loss"] == whole["validation_loss"]
    assert ParticleTable.read(run.particles).floats("rlnAngleRot").tolist() == ParticleTable.read(
        resumed.particles).floats("rlnAngleRot").tolist()


def _interrupt(*_) -> dict[str, float]:
    """The first evaluation of a training; a user stops it there."""
    signal.raise_signal(signal.SIGINT)
    return {}
