"""The job: the method that was asked for."""

from types import SimpleNamespace

import pytest

from cryoforum_core.ab_initio import run as job


@pytest.mark.parametrize("method", ["hybrid", "end-to-end"])
def test_the_method_asked_for_is_run_with_what_it_needs(method, monkeypatch):
    """The hybrid method has no use for figures of a training."""
    calls = []
    for function, name in (("hybrid", "hybrid"), ("end_to_end", "end-to-end")):
        monkeypatch.setattr(job, function, lambda *arguments, name=name: calls.append((name, arguments)) or {"of": name})
    plan, on_evaluate = SimpleNamespace(config=SimpleNamespace(method=method)), object()
    assert job.run_ab_initio(plan, "run", on_evaluate) == {"of": method}
    assert calls == [(method, (plan, "run") if method == "hybrid" else (plan, "run", on_evaluate))]
