"""Short supervised trainings on the small molecule: their configurations and runs."""

from cryoforum_core.config import TrainConfig
from cryoforum_core.particles.image_state import ImageState
from cryoforum_core.run_directory import RunDirectory
from cryoforum_core.training.supervised import train

KNOWN = ImageState()


def config(tmp_path, **options) -> TrainConfig:
    defaults = {"out": tmp_path / "run", "particles": "unused.star", "width": 12, "batch_size": 64, "max_steps": 40}
    return TrainConfig(**{**defaults, **options})


def run_training(settings: TrainConfig, particles) -> tuple[dict, RunDirectory]:
    run = RunDirectory(settings.out)
    run.prepare(settings, settings.resume)
    return train(settings, run, particles, state=KNOWN), run
