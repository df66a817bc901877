"""Labels of a run as a selection reads them: what is rejected, what can be recentred, the other orientation."""

import numpy as np
import pytest

from cryoforum_core.config import JUNK_REASONS
from cryoforum_core.junk.rejection import ImageLabels, alternative_columns, recentred
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.selection.measures import measures_of
from cryoforum_core.selection.selection import REASON_COLUMN

from .conftest import PIXEL


def test_off_centre_particles_get_the_origins_that_recentre_them(runs):
    _, _, kept, posterior, truth = runs
    again = ParticleTable.read(kept.recentre)
    row = {id_: i for i, id_ in enumerate(truth.integers("rlnParticleId").tolist())}
    rows = [row[id_] for id_ in again.integers("rlnParticleId").tolist()]
    known = np.stack([truth.floats(name)[rows] for name in ("rlnOriginXAngst", "rlnOriginYAngst")], -1)
    origin = np.stack([again.floats(name) for name in ("rlnOriginXAngst", "rlnOriginYAngst")], -1)
    is_right = truth.strings("rlnCryoforumJunkKind")[rows] == "off-centre"
    assert is_right.sum() >= 6
    assert np.median(np.linalg.norm(origin - known, axis=1)[is_right]) < 2 * PIXEL
    assert np.isfinite(posterior["recentre_shift_angstrom"]).all(1).sum() == (posterior["reason"] == "off-centre").sum()


def test_runs_without_junk_labels_have_none():
    assert ImageLabels.of(PoseResults.from_arrays({"quaternion": np.zeros((2, 4))})) is None
    assert "particle-probability" not in measures_of(PoseResults.from_arrays({"eigenvalues": np.zeros((2, 4))}))


def test_select_rejects_images_with_junk_labels_and_reports_them(runs):
    _, _, kept, posterior, _ = runs
    summary, rejected = kept.read_summary(), ParticleTable.read(kept.rejected)
    assert summary["measure"] == "particle-probability" and summary["threshold"] == 0.5
    assert set(summary["reasons"]) <= set(JUNK_REASONS)
    assert len(rejected) == np.isin(posterior["reason"], JUNK_REASONS).sum()
    assert set(rejected.strings(REASON_COLUMN)) == set(summary["reasons"])
    assert summary["n_short_of_view_shares"] == 0
    assert "Why particles were rejected" in kept.report.read_text()


def test_the_other_orientation_of_those_that_have_one():
    other = np.full((3, 4), np.nan)
    labels = ImageLabels(np.array(["ambiguous-orientation"] * 3), np.zeros(3, dtype=int), np.full((3, 2), np.nan), other)
    assert alternative_columns(labels, np.array([0, 2])) == {}
    other[2] = [0, 0, 0, 1]
    columns = alternative_columns(labels, np.array([0, 2]))
    assert [column.tolist() for column in columns.values()] == [[-999, -999, 0]] * 3


@pytest.mark.parametrize("names", [("rlnOriginX", "rlnOriginY"), ("rlnOriginXAngst", "rlnOriginYAngst"),
                                   ("rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst")])
def test_recentring_replaces_every_origin_column(names):
    """Tables without optics groups may have origins in Angstrom, which are read before those in pixels."""
    columns = {name: np.zeros(2) for name in names}
    table = ParticleTable.from_columns(columns | {"rlnImagePixelSize": np.full(2, 4.0)})
    new = recentred(table, np.array([[8.0, -4.0], [2.0, 0.0]]))
    for name in names:
        expected = np.array([8.0, 2.0] if "X" in name else [-4.0, 0.0])
        assert np.allclose(new.floats(name), expected if name.endswith("Angst") else expected / 4)
