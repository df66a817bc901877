"""The example runs are made once: reports do not write into them."""

import pytest

from .example_runs import all_runs
from .page_texts import page_of


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return all_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def pages(runs, tmp_path_factory) -> dict[str, tuple[str, dict]]:
    """Text and summary of each run's report."""
    folder = tmp_path_factory.mktemp("reports")
    return {job: page_of(run, folder / f"{job}.html") for job, run in runs.items()}
