"""Match scores of a set with known junk, and a run of predict as it is left on disk."""

import json

import numpy as np

from cryoforum_core.run_directory import RunDirectory


def scores(is_junk: np.ndarray, centre: float = -7.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"match-score": np.where(is_junk, rng.normal(centre, 1.0, len(is_junk)), rng.normal(0.0, 1.0, len(is_junk)))}


def run_of_predict(path, particles, measures) -> RunDirectory:
    """A run as predict leaves it; ids in an order of their own."""
    path.mkdir()
    run = RunDirectory(path)
    run.config.write_text(json.dumps({"job": "predict", "contrast": "bright", "ctf_state": "raw",
                                      "pixel_size_angstrom": None, "refinement": "adaptive"}))
    particles.save(run.particles)
    order = np.random.default_rng(2).permutation(len(particles))
    score = measures["match-score"]
    np.savez(run.orientation_posterior, particle_id=particles.particle_id[order], match_score=score[order],
             expected_error_deg=np.exp(-score)[order], eigenvalues=np.tile([0.0, 9, 10, 11], (len(particles), 1)))
    run.write_summary({"job": "predict", "symmetry": "c1", "refinement": "adaptive"})
    return run
