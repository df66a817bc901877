"""The methods of the table, as options of ab-initio, and the errors of poses while the end-to-end ones train."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..config import AbInitioConfig, BenchmarkConfig, BenchmarkMethod
from ..geometry.poses import Poses
from ..training.autoencoder import AutoEncoder
from ..training.image_batches import PreparedImages
from .data_sets import DataSet, box_size_px
from .published import NEAR_SYMMETRY, SCALES
from .truth_comparison import PoseAlignment

# the images of CryoPoseNet are centred, and its method estimates no shifts
_OPTIONS: dict[BenchmarkMethod, dict] = {
    "hybrid": {"method": "hybrid"},
    "end-to-end": {"method": "end-to-end", "shifts": False},
    "end-to-end-aided": {"method": "end-to-end", "shifts": False, "random_pose_weight": 1.0, "encoder": "polar"},
    "per-image": {"method": "end-to-end", "shifts": False, "poses": "per-image"},
    "known": {"method": "end-to-end", "shifts": False, "poses": "known"},
}
_WITHOUT_ENCODER = {"per-image", "known"}
_N_EVALUATED = 500


def has_encoder(method: BenchmarkMethod) -> bool:
    return method not in _WITHOUT_ENCODER


def refinement(method: BenchmarkMethod) -> str:
    """The ``--refinement`` of ``predict`` for held-out images, which corresponds to the method."""
    return "adaptive" if method == "hybrid" else "none"


def ab_initio_config(config: BenchmarkConfig, method: BenchmarkMethod, data: DataSet, seed: int, out: Path
                     ) -> AbInitioConfig:
    """The configuration for one method, set and seed."""
    options = dict(_OPTIONS[method])
    if method == "hybrid":
        options["train_minutes"] = config.network_minutes
        if config.search_steps is not None:
            options["search_steps"] = config.search_steps
    else:
        scale = SCALES[config.scale]
        options["train_minutes"] = config.minutes or scale.minutes
        if config.particles_of is None:
            options["network_box_size_px"] = min(scale.network_box_size_px, box_size_px(config))
    particles = data.train_truth if method == "known" else data.train
    return AbInitioConfig(out=out, particles=particles, device=config.device, seed=seed, resume=out.is_dir(),
                          ctf_state=data.ctf_state, **options)


def errors_on_evaluate(truth: Poses, seed: int) -> Callable[[AutoEncoder, PreparedImages, np.ndarray], dict[str, float]]:
    """Pose errors (degrees) of some training images against the known poses (N), after alignment of the frame."""
    @torch.no_grad()
    def on_evaluate(model: AutoEncoder, images: PreparedImages, rows: np.ndarray) -> dict[str, float]:
        some = np.sort(np.random.default_rng(seed).permutation(rows)[:_N_EVALUATED])
        model.eval()
        transform = model.volume.transform()
        found = torch.cat([model.poses(batch, transform)[0].quaternion for batch in images.batches(some)]).cpu()
        nothing = torch.zeros(len(some), 2)
        known = truth[torch.from_numpy(some)]
        alignment = PoseAlignment.of(Poses(found, nothing), Poses(known.quaternion, nothing), NEAR_SYMMETRY)
        figures = alignment.errors(found, known.quaternion)
        return {f"training_{name}": value for name, value in figures.items()}

    return on_evaluate
