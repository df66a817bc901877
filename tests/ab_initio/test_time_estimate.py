"""How long a run is expected to take."""

import numpy as np
import torch

from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.ab_initio.time_estimate import estimated_seconds
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.particles.dataset import load_particles


def test_the_estimate_grows_with_the_set(folder, data):
    particles = load_particles(data.particles)
    config = AbInitioConfig(out=folder / "x", particles=data.particles, device="cpu")
    plan = plan_ab_initio(config, particles, torch.device("cpu"))
    fewer = plan_ab_initio(config, particles.subset(np.arange(300)), torch.device("cpu"))
    assert estimated_seconds(plan) > estimated_seconds(fewer) > 10
