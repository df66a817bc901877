"""What is known of each micrograph, and which are unusual."""

import numpy as np
import pytest

from cryoforum_core.particles.particle_groups import ParticleGroups
from cryoforum_core.results.micrographs import Micrographs, read_micrographs
from cryoforum_core.results.pose_results import ErrorEstimates, JunkLabels, Match, MatchEvidence, PoseResults

G, EACH = 40, 25
N = G * EACH
GROUPS = ParticleGroups(tuple(f"m{i:02d}.mrc" for i in range(G)), np.tile(np.arange(G), EACH))
FAINT, NOISY, JUNKY = 3, 17, 30


def results_with(contrast=None, probability=None):
    match = None if contrast is None else Match(evidence=MatchEvidence(
        np.ones((N, 1)), np.zeros((N, 1)), np.ones((N, 3)), np.ones((N, 2)), np.zeros((N, 4)), contrast=contrast))
    junk = None if probability is None else JunkLabels(np.full(N, "-"), probability)
    errors = ErrorEstimates(1.0 + GROUPS.of_particle, np.ones(N), np.ones(N))
    return PoseResults(np.arange(N), np.zeros((N, 4)), np.zeros((N, 2)), match=match, errors=errors, junk=junk)


@pytest.fixture
def found():
    """One micrograph has half the contrast, one twice the noise at low frequencies, and one is half junk of no contrast."""
    rng = np.random.default_rng(0)
    contrast, probability = rng.normal(1.0, 0.2, N), np.ones(N)
    contrast[GROUPS.of_particle == FAINT] -= 0.5
    junk = np.flatnonzero(GROUPS.of_particle == JUNKY)[:10]
    contrast[junk], probability[junk] = 0.0, 0.1
    noise = np.exp(rng.normal(0, 0.03, (G, 3)))
    noise[NOISY, 0] = 2.0
    return Micrographs.of(GROUPS, noise, results_with(contrast, probability))


def test_values_are_those_of_the_micrographs_own_particles(found):
    assert (found.n_particles == EACH).all() and found.median_expected_error_deg.tolist() == [1.0 + g for g in range(G)]
    assert found.junk_fraction[JUNKY] == 10 / EACH and found.junk_fraction.sum() == 10 / EACH
    assert abs(found.mean_contrast[FAINT] - 0.5) < 0.15 and abs(found.mean_contrast[JUNKY] - 1.0) < 0.15


def test_outliers_are_named_with_their_values_and_no_others(found):
    assert np.flatnonzero(found.is_unusual).tolist() == [FAINT, NOISY]
    assert found.unusual[FAINT] == "contrast" and found.unusual[NOISY] == "noise at low frequencies"
    worst = " | ".join(found.worst())
    assert "m17.mrc (noise at low frequencies 2 times the set's power)" in worst and "m03.mrc (mean contrast 0." in worst


def test_many_outliers_are_counted_and_the_worst_come_first():
    noise = np.exp(np.random.default_rng(1).normal(0, 0.01, (G, 3)))
    noise[5:13, 2] = np.arange(2, 10)
    worst = Micrographs.of(GROUPS, noise, results_with()).worst()
    assert len(worst) == 6 and worst[0].startswith("m12.mrc") and worst[-1] == "and 3 more"


def test_micrographs_that_are_alike_or_few_are_not_unusual():
    """Also with small differences that are significant."""
    noise = np.ones((G, 3))
    noise[3] = 1.05
    assert Micrographs.of(GROUPS, noise, results_with()).worst() == []
    few = ParticleGroups(("a", "b"), GROUPS.of_particle % 2)
    assert Micrographs.of(few, np.array([[1.0] * 3, [5.0] * 3]), results_with()).worst() == []


def test_a_micrograph_of_few_particles_may_have_any_mean_contrast():
    """5 particles of mean 0.7 are 3 standard errors of 0.1 from 1, of other micrographs 60 robust ones."""
    group = np.repeat(np.arange(20), [5] + [125] * 7 + [10] * 12)
    contrast = 1.0 + 0.22 * np.random.default_rng(2).choice([-1.0, 1.0], N)
    for g in range(20):
        contrast[group == g] += (0.7 if g == 0 else 1.0) - contrast[group == g].mean()
    groups = ParticleGroups(tuple(map(str, range(20))), group)
    assert Micrographs.of(groups, None, results_with(contrast)).worst() == []
    # the same of many particles is unusual
    contrast[group == 1] -= 0.3
    assert Micrographs.of(groups, None, results_with(contrast)).worst() == ["1 (mean contrast 0.7)"]


def test_the_table_is_read_as_it_was_written_and_unknown_values_stay_unknown(found, tmp_path):
    for micrographs in (found, Micrographs.of(GROUPS, None, results_with())):
        micrographs.write(tmp_path / "micrographs.csv")
        again = read_micrographs(tmp_path / "micrographs.csv")
        assert again.name == micrographs.name and again.unusual == micrographs.unusual
        for name in ("n_particles", "noise", "mean_contrast", "junk_fraction", "median_expected_error_deg"):
            np.testing.assert_allclose(getattr(again, name), getattr(micrographs, name), rtol=1e-3)
    assert np.isnan(again.noise).all() and np.isnan(again.mean_contrast).all()
