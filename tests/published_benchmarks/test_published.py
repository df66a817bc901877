"""The published numbers, and the molecule that reproduces them."""

import gzip

import numpy as np
import pytest
import torch

from cryoforum_core.geometry.rotations import quaternion_to_matrix
from cryoforum_core.published_benchmarks.published import CRYOPOSENET, MODEL, NEAR_SYMMETRY

HALF_TURN = torch.nn.functional.normalize(torch.tensor(NEAR_SYMMETRY, dtype=torch.float64), dim=0)


def test_pseudo_symmetry_superposes_the_chains():
    """Kabsch's rotation of the alpha carbons of chain A onto those of chain B, about the common centre."""
    chains = {"A": [], "B": []}
    for line in gzip.open(MODEL, "rt"):
        if line.startswith("ATOM") and line[12:16].strip() == "CA":
            chains[line[21]].append([float(line[start:start + 8]) for start in (30, 38, 46)])
    first, second = (np.array(chains[name]) for name in "AB")
    assert len(first) == len(second) == 214
    first, second = first - first.mean(0), second - second.mean(0)
    u, _, vt = np.linalg.svd(second.T @ first)
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    ours = quaternion_to_matrix(HALF_TURN).numpy()
    between = np.degrees(np.arccos((np.trace(rotation.T @ ours) - 1) / 2))
    assert between < 3, f"{between:.2f} degrees"


def test_the_table_is_the_published_one():
    assert [CRYOPOSENET[name].snr_db for name in "ABCDEFG"] == [None, 10, 5, 0, -5, -10, 0]
    assert [name for name, one in CRYOPOSENET.items() if one.has_ctf] == ["G"]
    assert CRYOPOSENET["F"].snr == pytest.approx(0.1) and CRYOPOSENET["A"].snr == float("inf")
    assert CRYOPOSENET["F"].label == "\N{MINUS SIGN}10 dB" and CRYOPOSENET["G"].label == "0 dB, CTF"
