"""The example runs are made once: reports do not write into them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for example_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    from example_runs import all_runs
    return all_runs(tmp_path_factory.mktemp("runs"))
