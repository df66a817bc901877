"""What held-out images and projections of the map say of a run."""

from .end_to_end_runs import config, run_end_to_end


def test_noise_does_not_converge(sets, tmp_path):
    """With an encoder and with free poses; both explain something of the noise that they learn from."""
    for poses in ("encoder", "per-image"):
        summary, run = run_end_to_end(config(tmp_path / poses, sets(1e-6).particles, poses=poses, epochs=6))
        assert not summary["converged"], summary["converged_reason"]
        assert run.map.is_file() and run.particles.is_file()


def test_figures_of_a_map_made_at_known_poses_are_far_from_those_of_noise(sets, tmp_path):
    """Of images without noise nearly all is explained, and far more than by the one image that comes nearest to all."""
    summary, _ = run_end_to_end(config(tmp_path, sets(float("inf")).truth, poses="known", epochs=4))
    assert summary["validation_loss"] < 0.2 * summary["loss_without_poses"] and summary["loss_without_poses"] < 1.05
    assert summary["loss_of_noise"] < 0.05
    # without an encoder there is nothing to say of rotated images and of projections
    assert summary["turn_error_deg"] is summary["projection_error_deg"] is summary["noise_gain_deviations"] is None
