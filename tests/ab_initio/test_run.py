"""The job: the method that was asked for."""

from types import SimpleNamespace

import pytest

from cryoforum_core.ab_initio import run as job


@pytest.mark.parametrize("method", ["hybrid", "end-to-end"])
def test_the_method_asked_for_is_run_with_what_it_needs(method, monkeypatch):
    """The hybrid method has no use for figures of a training."""
    calls = []
    monkeypatch.setattr(job, "hybrid", lambda *arguments: calls.append(("hybrid", arguments)) or {"of": "hybrid"})
    monkeypatch.setattr(job, "end_to_end", lambda *arguments: calls.append(("end-to-end", arguments)) or {"of": "end-to-end"})
    plan, on_evaluate = SimpleNamespace(config=SimpleNamespace(method=method)), object()
    assert job.run_ab_initio(plan, "run", on_evaluate) == {"of": method}
    assert calls == [(method, (plan, "run") if method == "hybrid" else (plan, "run", on_evaluate))]
