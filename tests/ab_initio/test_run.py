"""The job: the method that was asked for."""

import pytest
import torch

from cryoforum_core.ab_initio import run as job
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.run_directory import RunDirectory


@pytest.mark.parametrize("method", ["hybrid", "end-to-end"])
def test_the_method_asked_for_is_run_with_what_it_needs(method, clean_data, tmp_path, monkeypatch):
    """The hybrid method has no use for figures of a training."""
    calls = []
    for function, name in (("hybrid", "hybrid"), ("end_to_end", "end-to-end")):
        monkeypatch.setattr(job, function, lambda *arguments, name=name: calls.append((name, arguments)) or {"of": name})
    config = AbInitioConfig(out=tmp_path, particles=clean_data.particles, method=method, contrast="bright", ctf_state="raw",
                            device="cpu")
    plan, run = plan_ab_initio(config, load_particles(clean_data.particles), torch.device("cpu")), RunDirectory(tmp_path)

    def on_evaluate(model, images, rows):
        return {}

    assert job.run_ab_initio(plan, run, on_evaluate) == {"of": method}
    assert calls == [(method, (plan, run) if method == "hybrid" else (plan, run, on_evaluate))]
