"""Examples of images beside projections: which are chosen, and that both show the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.imaging.fourier import ifft_image
from cryoforum_core.imaging.noise_spectrum import noise_power_spectrum
from cryoforum_core.matching.matching_model import MatchingModel
from cryoforum_core.mrc import write_map
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.results.gallery import N_EXAMPLES, read_gallery, write_gallery
from cryoforum_core.results.pose_results import ErrorEstimates, JunkLabels, Match, PoseResults

from ..matching.conftest import blobs

N, BOX, PIXEL = 60, 32, 5.0


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Images, their matching model, and results that hold the true poses and scores that fall with the row."""
    folder = tmp_path_factory.mktemp("gallery")
    write_map(folder / "molecule.mrc", blobs().numpy(), PIXEL)
    run = cf.simulate(cf.SimulateConfig(out=folder / "set", model=folder / "molecule.mrc", n_particles=N, snr=1.0,
                                        shift_rms_px=1.0, seed=3))
    particles = load_particles(run.truth, require_poses=True)
    images = ImagePreparation(particles, ImageState(), BOX, torch.device("cpu"))
    images_ft, ctf = images.transforms(np.arange(N))
    model = MatchingModel.estimate(blobs(), images_ft, ctf, noise_power_spectrum(ifft_image(images_ft), 0.45 * BOX),
                                   torch.tensor([[0.0, 0, 0, 1]]), BOX / 2 - 1, 4.0)
    results = PoseResults(particles.particle_id, particles.poses.quaternion.numpy(), particles.poses.shift_angstrom.numpy(),
                          np.zeros((N, 4, 4)), match=Match(match_score=-np.arange(N).astype(float)),
                          errors=ErrorEstimates(*np.tile(np.arange(N).astype(float), (3, 1))))
    return images, model, results


def written(path, known, **changes):
    images, model, results = known
    write_gallery(path, images, model, replace(results, **changes))
    return read_gallery(path)


def test_best_median_and_worst_matches_are_chosen_by_their_score(known, tmp_path):
    found = written(tmp_path / "gallery.npz", known)
    rows = {kind: (found.particle_id[found.kind == kind] - 1).tolist() for kind in ("best", "median", "worst")}
    assert rows["best"] == list(range(N_EXAMPLES))
    assert rows["median"] == list(range(N // 2 - N_EXAMPLES // 2, N // 2 + N_EXAMPLES // 2))
    assert rows["worst"] == list(range(N - N_EXAMPLES, N))
    assert found.match_score.tolist() == (1.0 - found.particle_id).tolist()
    assert found.expected_error_deg.tolist() == (found.particle_id - 1.0).tolist()


def test_each_image_is_like_its_own_projection_and_not_like_the_next(known, tmp_path):
    """At the particle's pose and shift, with its CTF."""
    found = written(tmp_path / "gallery.npz", known)
    images, projections = (values.reshape(len(values), -1) for values in (found.images, found.projections))
    own, other = (np.array([np.corrcoef(*pair)[0, 1] for pair in zip(images, shown)])
                  for shown in (projections, np.roll(projections, 1, axis=0)))
    assert own.min() > 0.4 and np.median(own) > np.median(other) + 0.2


def test_junk_has_examples_of_each_label_in_the_order_asked_for(known, tmp_path):
    reason = np.full(N, "none", dtype=object)
    reason[::6], reason[3:9:5] = "off-centre", "not-a-particle"
    nothing = np.full((N, 4), np.nan)
    junk = JunkLabels(reason.astype(str), np.ones(N), nothing[:, :2], nothing)
    found = written(tmp_path / "gallery.npz", known, junk=junk)
    chosen = found.of(["off-centre", "not-a-particle"])
    n_off_centre = (chosen.kind == "off-centre").sum()
    assert chosen.kind.tolist() == ["off-centre"] * n_off_centre + ["not-a-particle"] * (len(chosen.kind) - n_off_centre)
    assert n_off_centre == N_EXAMPLES and set(chosen.particle_id[:n_off_centre] - 1) <= set(range(0, N, 6))
    assert len(found.of([]).images) == 0
