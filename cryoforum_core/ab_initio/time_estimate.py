"""How long a run takes, before it starts and for the training of its network (``benchmarks/RESULTS.md``, Ab initio)."""

import torch

from ..config import AbInitioConfig
from ..uncertainty.calibration import n_simulated
from .plan import AbInitioPlan

# of the network's training, where no time is given: a part of what the run took before
TRAIN_SHARE_OF_TIME_SPENT = 0.5
# the least that teaches it
MIN_TRAIN_MINUTES = 1.0
# processor seconds of one step of a search, for a set of any size
SECONDS_OF_A_SEARCH_STEP = 0.15
# of a search that has the point group from the start, for each step of one in c1: half as many, to higher frequencies
SECONDS_OF_A_SYMMETRIC_STEP = 0.15
# of all rounds and matchings of one particle
SECONDS_OF_AN_IMAGE = 0.075
# of one simulated image that errors are calibrated on
SECONDS_OF_A_SIMULATED_IMAGE = 0.055
# box of the images whose seconds these are
_BOX_PX = 64
# a GPU counts as so many cores
CORES_OF_A_GPU = 40


def training_minutes(config: AbInitioConfig, seconds_before: float) -> float:
    """Of the network, in a run whose stages before took so long."""
    return config.train_minutes or max(MIN_TRAIN_MINUTES, TRAIN_SHARE_OF_TIME_SPENT * (seconds_before / 60))


def estimated_seconds(plan: AbInitioPlan) -> float:
    """How long a run of the hybrid method takes, from what runs took: the search's steps cost the same for any set, the rest
    grows with the images, the simulated ones included, and with the square of the box."""
    config, n = plan.config, len(plan.particles)
    cores = torch.get_num_threads() if plan.device.type == "cpu" else CORES_OF_A_GPU
    of_a_step = SECONDS_OF_A_SEARCH_STEP + (SECONDS_OF_A_SYMMETRIC_STEP if len(plan.group) > 1 else 0.0)
    search = of_a_step * config.search_steps * config.seeds
    images = SECONDS_OF_AN_IMAGE * n + SECONDS_OF_A_SIMULATED_IMAGE * n_simulated(n, config.coverage)
    without_network = (search + images * max(1.0, (plan.particles.box_size_px / _BOX_PX) ** 2)) / cores
    if "distillation" in config.skip:
        return without_network
    return without_network + 60 * training_minutes(config, without_network)
