"""Short runs of the hybrid method: what the tests share."""

import numpy as np

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.errors import NotConverged
from cryoforum_core.particles.dataset import load_particles

N, BOX = 600, 32
FAST = {"search_steps": 150, "seeds": 1, "train_minutes": 0.1, "device": "cpu"}


def stop(*_, **__):
    """In the place of a function: the run is stopped where it is called."""
    raise KeyboardInterrupt


def resumed(config: AbInitioConfig) -> AbInitioConfig:
    return config.model_copy(update={"resume": True})


def first_particles(data: cf.RunDirectory, n: int, path):
    """The first n particles of a simulated set."""
    load_particles(data.particles).subset(np.arange(n)).save(path)
    return path


def run_or_not_converged(config: AbInitioConfig) -> cf.RunDirectory:
    """For runs that are too short to converge."""
    try:
        return jobs.ab_initio(config)
    except NotConverged:
        return cf.RunDirectory(config.out)
