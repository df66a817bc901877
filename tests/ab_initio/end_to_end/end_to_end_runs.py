"""Short runs of the end-to-end method: what the tests share."""

import pytest
import torch

from cryoforum_core.ab_initio.end_to_end.run import end_to_end
from cryoforum_core.ab_initio.plan import plan_ab_initio
from cryoforum_core.cli import main
from cryoforum_core.config import AbInitioConfig
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.run_directory import RunDirectory

BOX, PIXEL, N_SHORT = 16, 6.0, 400
# one value of the contrast transfer function everywhere: 1
NO_CTF = {"amplitude_contrast": 1.0, "spherical_aberration_mm": 0.0, "defocus_min_angstrom": 0.0,
          "defocus_max_angstrom": 0.0, "astigmatism_angstrom": 0.0}
CPU = torch.device("cpu")


def molecule() -> torch.Tensor:
    """A map (16, 16, 16) of six blobs that looks different from all sides."""
    axis = (torch.arange(BOX) - BOX // 2).float() / BOX
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    blobs = (((0.25, 0, 0), 1.5), ((-0.12, 0.05, 0), 1.0), ((-0.22, -0.1, 0.05), 0.8), ((0.02, 0.22, 0.08), 1.2),
             ((-0.05, -0.02, 0.25), 0.7), ((0.1, -0.1, -0.15), 0.9))
    return sum(w * torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * 0.06 ** 2)) for (a, b, c), w in blobs)


def cryoforum(*arguments) -> int:
    """The command line, within this process (loading torch takes seconds); returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def config(tmp_path, particles, **options) -> AbInitioConfig:
    defaults = {"method": "end-to-end", "encoder": "compact", "batch_size": 32, "shifts": False, "ctf_state": "raw",
                "contrast": "bright", "epochs": 10}
    return AbInitioConfig(out=tmp_path / "run", particles=particles, device="cpu", **{**defaults, **options})


def run_end_to_end(settings: AbInitioConfig, particles=None) -> tuple[dict, RunDirectory]:
    run = RunDirectory(settings.out)
    run.prepare(settings, settings.resume)
    particles = particles or load_particles(settings.particles, settings)
    return end_to_end(plan_ab_initio(settings, particles, CPU), run), run
