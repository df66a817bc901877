"""Junk labels and other reasons to reject an image, counted and explained."""

import numpy as np

from cryoforum_core.config import JUNK_REASONS
from cryoforum_core.report.prediction_page import prediction_page
from cryoforum_core.report.reasons import MEANINGS, REASON_HEADER, junk_label_tables, reason_rows
from cryoforum_core.report.run_files import RunFiles
from cryoforum_core.results.pose_results import PoseResults

from .example_runs import predict_run


def test_junk_of_a_prediction_is_counted(tmp_path):
    run = predict_run(tmp_path / "run")[0]
    with np.load(run.orientation_posterior) as arrays:
        posterior = dict(arrays)
    n = len(posterior["particle_id"])

    def table(reason):
        np.savez(run.orientation_posterior, **posterior, reason=np.array(reason))
        return next(table for table in prediction_page(RunFiles(run)).tables if table.title == "Junk and ambiguous images")

    rows = table(["none"] * (n - 12) + ["off-centre"] * 4 + ["ambiguous-orientation"] * 8).rows
    assert [row[:2] for row in rows] == [("ambiguous orientation", "8"), ("off centre", "4")]
    assert "All images are classified as particles" in table(["none"] * n).caption


def test_every_junk_label_has_a_meaning_and_a_remedy():
    assert set(JUNK_REASONS) <= set(MEANINGS)
    assert all(meaning and remedy for meaning, remedy in MEANINGS.values())


def test_reasons_come_most_frequent_first_with_their_share():
    rows = reason_rows({"off-centre": 5, "not-a-particle": 1200}, 12000)
    assert [row[:3] for row in rows] == [("not a particle", "1,200", "10 %"), ("off centre", "5", "0.042 %")]
    assert rows[0][3:] == MEANINGS["not-a-particle"] and len(rows[0]) == len(REASON_HEADER)


def test_runs_without_junk_labels_have_no_table():
    assert junk_label_tables(PoseResults.from_arrays({"quaternion": np.zeros((2, 4))})) == []
