"""Checkpoints: what is written comes back; what is none is refused with a sentence, not a traceback."""

import json

import numpy as np
import pytest
import torch

from cryoforum_core.errors import InputError
from cryoforum_core.model.checkpoint import (
    METADATA,
    REFERENCE,
    WEIGHTS,
    CheckpointMetadata,
    load_checkpoint,
    save_checkpoint,
)
from cryoforum_core.model.network import NetworkConfig, OrientationNetwork
from cryoforum_core.mrc import read_map, write_map


@pytest.fixture
def checkpoint(tmp_path):
    """A run directory with a checkpoint, and what was saved."""
    torch.manual_seed(0)
    network = OrientationNetwork(NetworkConfig(16, 5.0, width=8, head="qcqp-psd")).eval()
    write_map(tmp_path / "map.mrc", np.random.default_rng(0).normal(size=(16, 16, 16)), 5.0)
    metadata = CheckpointMetadata(network.config, "d2", {"box_size_px": 16}, [1.0, 2.0], 0.5, {"steps": 7},
                                  tmp_path / "map.mrc")
    save_checkpoint(tmp_path / "run" / "checkpoint", network, metadata)
    return tmp_path / "run", network, metadata


@pytest.mark.parametrize("inside", ["", "checkpoint"])
def test_what_was_saved_comes_back_from_run_or_checkpoint_directory(checkpoint, inside):
    run, network, metadata = checkpoint
    loaded, found = load_checkpoint(run / inside)
    images, ctf = torch.randn(3, 16, 16), torch.randn(3, 16, 9)
    with torch.no_grad():
        assert torch.equal(loaded(images, ctf).bingham, network(images, ctf).bingham)
    assert not loaded.training and loaded.config == network.config
    assert (found.symmetry, found.noise_spectrum, found.signal_scale, found.training) == (
        "d2", [1.0, 2.0], 0.5, {"steps": 7})
    assert np.array_equal(read_map(found.reference)[0], read_map(metadata.reference)[0])
    assert found.reference == run / "checkpoint" / REFERENCE


def test_no_file_is_a_pickle(checkpoint):
    run, _, _ = checkpoint
    for path in (run / "checkpoint").iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"PK", b"\x80\x02", b"\x80\x04")), path


def test_saving_again_replaces(checkpoint):
    run, network, metadata = checkpoint
    with torch.no_grad():
        network.head.log_scale.fill_(5.0)
    found = load_checkpoint(run)[1]
    save_checkpoint(run / "checkpoint", network, found)
    assert load_checkpoint(run)[0].head.log_scale.item() == 5.0


@pytest.mark.parametrize("what", ["missing", "file", "empty directory"])
def test_a_path_without_checkpoint_is_refused(tmp_path, what):
    path = tmp_path / "somewhere"
    if what == "file":
        path.write_text("weights")
    elif what == "empty directory":
        path.mkdir()
    with pytest.raises(InputError, match="cryoforum train"):
        load_checkpoint(path)


def damage(directory, what: str) -> None:
    metadata, weights = directory / METADATA, directory / WEIGHTS
    if what == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "no weights":
        weights.unlink()
    elif what == "not JSON":
        metadata.write_text("{")
    elif what == "JSON of something else":
        metadata.write_text("[1, 2]")
    elif what == "weights of another network":
        content = json.loads(metadata.read_text())
        content["network"]["width"] = 4
        metadata.write_text(json.dumps(content))
    elif what == "newer":
        metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "format": 99}))


@pytest.mark.parametrize("what, says", [
    ("weights cut short", "weights"), ("no weights", "weights"), ("not JSON", "damaged"),
    ("JSON of something else", "damaged"), ("weights of another network", "weights"), ("newer", "Update cryoforum")])
def test_a_damaged_checkpoint_is_refused_with_a_remedy(checkpoint, what, says):
    run, _, _ = checkpoint
    damage(run / "checkpoint", what)
    with pytest.raises(InputError, match=says) as caught:
        load_checkpoint(run)
    assert len(caught.value.problems) == 1 and str(run) in caught.value.problems[0]
