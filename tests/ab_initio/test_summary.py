"""The summary of a run."""

import csv

import pytest
import torch

from cryoforum_core.imaging.resolution import resolution_angstrom
from cryoforum_core.mrc import read_map

from .hybrid_runs import N


def test_the_summary_says_what_was_found_and_how_it_is_known(run):
    summary = run.read_summary()
    assert summary["converged"] and "half sets" in summary["converged_reason"]
    assert summary["method"] == "hybrid" and summary["hand"] == "undetermined" and summary["n_particles"] == N
    assert summary["held_out_structure"] > 5 * summary["held_out_structure_error"]
    assert set(summary["stages"]) == {"search", "half maps", "network", "final matching", "maps"}
    assert summary["rounds"][-1]["resolution_angstrom"] < summary["rounds"][0]["resolution_angstrom"]
    assert [start["chosen"] for start in summary["seeds"]] == [True]
    assert summary["near_half_turn"] is None  # of the ribosome


def test_the_summary_repeats_the_assessment_of_the_maps(run):
    """Resolution and explained fraction are those of the files and of the last half maps."""
    summary = run.read_summary()
    fsc = torch.tensor([float(row["fsc"]) for row in csv.DictReader(run.fsc.read_text().splitlines())])
    volume, pixel_size_angstrom = read_map(run.map)
    expected = resolution_angstrom(fsc, len(volume), pixel_size_angstrom)
    assert summary["resolution_angstrom"] == pytest.approx(expected, rel=1e-3)
    assert summary["explained_fraction"] > 0.6 and summary["sampled_fraction"] > 0.9
    assert summary["error_bound_coverage"] == 0.9 and summary["steps"] > 0
    assert summary["search_seconds"] == summary["stages"]["search"]
