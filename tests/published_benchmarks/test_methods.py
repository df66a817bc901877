"""The methods of the table as options of ab-initio."""

from cryoforum_core.config import BenchmarkConfig
from cryoforum_core.published_benchmarks.data_sets import DataSet
from cryoforum_core.published_benchmarks.methods import ab_initio_config, has_encoder, refinement


def test_pose_errors_are_recorded_during_training(out):
    header = (out / "runs/A_per-image_0/metrics.csv").read_text().splitlines()[0]
    assert "training_mean_error_deg" in header and "training_mean_error_modulo_deg" in header


def config_of(tmp_path, method: str, name: str = "A", **options):
    data = DataSet(name, *(tmp_path / f"{kind}.star" for kind in ("train", "train_truth", "test", "test_truth")),
                   tmp_path / "map.mrc")
    return ab_initio_config(BenchmarkConfig(table="cryoposenet", out=tmp_path, **options), method, data, 3, tmp_path / "run")


def test_each_method_gets_its_options(tmp_path):
    hybrid = config_of(tmp_path, "hybrid", search_steps=7, network_minutes=2.0)
    assert hybrid.method == "hybrid" and hybrid.search_steps == 7 and hybrid.train_minutes == 2.0 and hybrid.seed == 3
    known = config_of(tmp_path, "known", "G")
    assert known.method == "end-to-end" and known.poses == "known" and not known.shifts and known.ctf_state == "raw"
    assert known.particles.name == "train_truth.star"  # the others must not see the poses
    for method in ("end-to-end", "per-image", "end-to-end-aided"):
        config = config_of(tmp_path, method)
        assert config.particles.name == "train.star" and config.ctf_state == "none" and config.train_minutes == 20.0
        assert config.network_box_size_px == 32
    assert config.random_pose_weight == 1.0


def test_sets_of_another_program_keep_their_own_box(tmp_path):
    assert config_of(tmp_path, "end-to-end", particles_of=tmp_path).network_box_size_px is None


def test_held_out_images_are_matched_where_the_method_matches():
    assert refinement("hybrid") == "adaptive" and refinement("end-to-end") == "none"
    assert has_encoder("end-to-end") and not has_encoder("per-image") and not has_encoder("known")
