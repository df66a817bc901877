"""Poses, maps and network of a finished run, and their files."""

import numpy as np

import cryoforum_core as cf
from cryoforum_core.model.checkpoint import load_checkpoint
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.table import ParticleTable

from .end_to_end_runs import N_SHORT


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


def test_predict_takes_the_network(short, tmp_path):
    _, run, made, _ = short
    poses = cf.predict(cf.PredictConfig(out=tmp_path / "poses", particles=made.particles, model=run.path, device="cpu",
                                        refinement="none", ctf_state="raw", contrast="bright"))
    assert poses.read_summary()["n_particles"] == N_SHORT
    metadata = load_checkpoint(run.path)[1]
    assert metadata.reference == run.checkpoint / "reference.mrc" and metadata.signal_scale > 0
