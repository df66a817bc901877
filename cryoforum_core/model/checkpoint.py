"""A trained network on disk: weights in safetensors, everything else in one JSON file; neither can hold code.

Directory ``checkpoint/``: ``model.safetensors`` (weights), ``checkpoint.json`` (what rebuilds the network and what it
was trained for), ``reference.mrc`` (the map it was trained with, where there is one). The only module that imports
safetensors.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..errors import InputError
from ..run_directory import RunDirectory, atomic_path
from .network import NetworkConfig, OrientationNetwork

FORMAT = 2
"""1: without ``CheckpointMetadata.images``; still read."""
# files of the directory, as above
WEIGHTS = "model.safetensors"
METADATA = "checkpoint.json"
REFERENCE = "reference.mrc"


@dataclass(frozen=True)
class CheckpointMetadata:
    """What is known of a network beside its weights; everything is JSON."""

    network: NetworkConfig
    symmetry: str = "c1"
    preprocessing: dict = field(default_factory=dict)
    """Settings of ``particles.image_preparation``: prediction prepares images as training did."""
    noise_spectrum: list[float] | None = None
    """Noise power per Fourier shell of the prepared images, (B // 2 + 1,) of the network's box."""
    signal_scale: float | None = None
    """Prepared images are this times the CTF-modulated projection of the reference, plus noise."""
    training: dict = field(default_factory=dict)
    """Summary of the training."""
    reference: Path | None = None
    """The map beside the weights; None where there is none."""
    images: dict = field(default_factory=dict)
    """Of the particles it was trained for: ``box_size_px``, ``pixel_size_angstrom``, ``contrast`` and ``ctf_state``, as
    they came; empty in checkpoints of format 1."""


def save_checkpoint(directory: Path, network: OrientationNetwork, metadata: CheckpointMetadata) -> None:
    """Writes a checkpoint; a stop at any time leaves the earlier one or the new one.

    ``metadata.reference``, a map anywhere, is copied into the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if metadata.reference is not None and Path(metadata.reference).resolve() != (directory / REFERENCE).resolve():
        with atomic_path(directory / REFERENCE) as temporary:
            shutil.copyfile(metadata.reference, temporary)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_path(directory / WEIGHTS) as temporary:
        safetensors.torch.save_file(weights, temporary)
    content = {"format": FORMAT, **asdict(metadata), "reference": None if metadata.reference is None else REFERENCE}
    with atomic_path(directory / METADATA) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def find_checkpoint(path: Path | str) -> Path:
    """The checkpoint directory of a run or of itself. Raises InputError where there is none."""
    path = Path(path)
    for directory in (path, RunDirectory(path).checkpoint):
        if (directory / METADATA).is_file():
            return directory
    what = "does not exist" if not path.exists() else (
        "has no finished training in it" if path.is_dir() else "is not a directory")
    raise InputError(f"A model must be a run of `cryoforum train` or its checkpoint directory; {path} {what}. "
                     "Check the path, or finish the training with --resume.")


def load_checkpoint(path: Path | str,
                    device: torch.device | str = "cpu") -> tuple[OrientationNetwork, CheckpointMetadata]:
    """The network, ready to predict, and what it was trained for, from a run or checkpoint directory.

    Raises InputError where ``path`` holds no checkpoint, a damaged one, or one of a newer version.
    """
    directory = find_checkpoint(path)
    metadata = _read_metadata(directory)
    network = OrientationNetwork(metadata.network)
    try:
        network.load_state_dict(safetensors.torch.load_file(directory / WEIGHTS))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"A checkpoint must contain the weights of its network; {directory / WEIGHTS} is missing, cut "
                         f"short or of another network ({str(error).splitlines()[0]}). Copy the checkpoint again, or "
                         "train again.") from error
    return network.to(device).eval(), metadata


def _read_metadata(directory: Path) -> CheckpointMetadata:
    path = directory / METADATA
    try:
        content = json.loads(path.read_text())
        version = content.pop("format")
        if version > FORMAT:
            raise InputError(f"A checkpoint must not be newer than the software; {path} has format {version}, and this "
                             f"version reads {FORMAT}. Update cryoforum.")
        content["network"] = NetworkConfig(**content["network"])
        if content["reference"] is not None:
            content["reference"] = directory / content["reference"]
        return CheckpointMetadata(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"A checkpoint must describe its network; {path} is damaged ({error}). Copy the checkpoint "
                         "again, or train again.") from error
