"""Short runs of the hybrid method: what the tests share."""

from contextlib import contextmanager

import numpy as np
import pytest

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.errors import NotConverged
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.training import autoencoder, supervised
from cryoforum_core.training.loop import train_network

N, BOX = 600, 32
# of the set without junk
N_CLEAN = 400
FAST = {"search_steps": 150, "seeds": 1, "train_minutes": 0.1, "device": "cpu"}


class StepClock:
    """Seconds that pass with each look at the clock, three in a step of a short training."""

    SECONDS_PER_LOOK = 0.08

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self.SECONDS_PER_LOOK
        return self.now


@contextmanager
def trainings_by_steps():
    """Within it, the minutes that a run gives its network are a number of steps, whatever the machine's speed."""
    def by_steps(*arguments):
        return train_network(*arguments, clock=StepClock())

    with pytest.MonkeyPatch.context() as patch:
        for module in (supervised, autoencoder):
            patch.setattr(module, "train_network", by_steps)
        yield


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
