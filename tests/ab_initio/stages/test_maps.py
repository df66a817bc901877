"""The files that the last stage writes."""

import numpy as np
import pytest

from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.table import ParticleTable

from ..hybrid_runs import BOX


def test_the_network_carries_the_final_map_without_solvent(run):
    """Not the map of its labels: further particles are matched to it."""
    (reference, reference_px), (final, final_px) = (read_map(path) for path in (run.checkpoint / "reference.mrc", run.map))
    assert len(reference) * reference_px == pytest.approx(len(final) * final_px, rel=1e-4)
    outside = final[reference == 0]
    assert 0.3 < outside.size / final.size < 0.95 and outside.std() < 0.3 * final[reference != 0].std()
    assert np.corrcoef(reference[reference != 0], final[reference != 0])[0, 1] > 0.95


def test_examples_of_particles_lie_beside_the_projections_of_the_map_that_they_match(run):
    with np.load(run.gallery) as arrays:
        examples = dict(arrays)
    best = examples["kind"] == "best"
    images, projections = (examples[name][best].reshape(best.sum(), -1) for name in ("images", "projections"))
    own = np.array([np.corrcoef(*pair)[0, 1] for pair in zip(images, projections)])
    other = np.array([np.corrcoef(*pair)[0, 1] for pair in zip(images, np.roll(projections, 1, axis=0))])
    assert own.min() > 0.5 and own.mean() > other.mean() + 0.1
    ids = np.load(run.orientation_posterior)["particle_id"]
    assert np.isin(examples["particle_id"], ids).all()


def test_particles_keep_what_they_had_and_get_poses_uncertainties_and_half_sets(run, data):
    before, after = ParticleTable.read(data.particles), ParticleTable.read(run.particles)
    for name in before.names:
        if name != "rlnImageName":
            assert after.strings(name).tolist() == before.strings(name).tolist()
    assert after.has("rlnAngleRot", "rlnOriginXAngst", "rlnCryoforumExpectedError", "rlnCryoforumMatchScore")
    assert set(after.integers("rlnRandomSubset")) == {1, 2}
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["particle_id"], load_particles(data.particles).particle_id)
        assert np.isfinite(arrays["expected_error_deg"]).all()


def test_half_maps_are_two_maps_of_one_molecule(run):
    (first, pixel), (second, _), (both, _) = (read_map(path) for path in (run.map_half1, run.map_half2, run.map))
    assert first.shape == both.shape == (BOX,) * 3 and pixel == pytest.approx(read_map(run.map)[1])
    assert 0.7 < np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.9999
