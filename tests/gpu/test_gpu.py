"""Every job on a GPU that is pretended: all tensors are where they are used (``pretend_gpu``)."""

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, pretended_gpu

import cryoforum_core as cf
from cryoforum_core import jobs
from cryoforum_core.ab_initio import matching_to_half_maps
from cryoforum_core.ab_initio import plan as ab_initio
from cryoforum_core.config import (
    AbInitioConfig,
    EvaluateConfig,
    PredictConfig,
    ReconstructConfig,
    SelectConfig,
    SimulateConfig,
    TrainConfig,
)
from cryoforum_core.errors import NotConverged
from cryoforum_core.particles.dataset import load_particles


def test_the_pretence_refuses_what_a_gpu_refuses():
    with pretended_gpu():
        there, here, number = torch.ones(3, device="cuda"), torch.ones(3), torch.tensor(2.0)
        assert there.device == (number * there).device == there[here.bool()].device == GPU and here.device.type == "cpu"
        assert there.cpu().numpy().sum() == 3 and here[there.argmax()] == 1
        layer = torch.nn.Linear(3, 2).to("cuda")
        assert layer(there).device == layer.weight.device == GPU
        there[0] = number
        for wrong in (lambda: there + here, lambda: there.numpy(), lambda: np.asarray(there), lambda: here[there.bool()],
                      lambda: torch.stack([number, there[0]]), lambda: layer(here),
                      lambda: torch.randn(2, device="cuda", generator=torch.Generator())):
            with pytest.raises((RuntimeError, TypeError), match=r"different devices|\.cpu\(\) first|a generator on"):
                wrong()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """220 images of the embedded ribosome subunit, 10 % junk."""
    return cf.simulate(SimulateConfig(out=tmp_path_factory.mktemp("gpu") / "set", n_particles=220, box_size_px=24, snr=2.0,
                                      shift_rms_px=1.0, junk_fraction=0.1, junk_kinds=("noise", "blank"), seed=2))


@pytest.fixture(scope="module")
def network(data):
    with pretended_gpu():
        return jobs.train(TrainConfig(out=data.path.parent / "network", particles=data.truth, width=8, batch_size=64,
                                      max_steps=10, device="cuda"))


def test_training_from_a_map_and_from_a_checkpoint_and_resuming(data, network):
    options = {"out": data.path.parent / "further", "particles": data.particles, "reference": data.map, "batch_size": 64,
               "from_checkpoint": network.path, "max_steps": 6, "device": "cuda"}
    with pretended_gpu():
        further = jobs.train(TrainConfig(**options))
        assert further.read_summary()["steps"] == 6
        # its state lies there as it does after a stop
        further.summary.unlink()
        assert jobs.train(TrainConfig(**options, resume=True)).read_summary()["steps"] == 6


@pytest.mark.parametrize("refinement", ["none", "local"])
def test_orientations_are_predicted_selected_and_evaluated(data, network, refinement):
    folder = data.path.parent / refinement
    with pretended_gpu():
        found = jobs.predict(PredictConfig(out=folder / "found", particles=data.particles, model=network.path,
                                           reference=data.map, refinement=refinement, device="cuda"))
        if refinement == "local":
            selected = jobs.select(SelectConfig(out=folder / "selected", run=found.path, auto=True, device="cuda"))
            jobs.reconstruct(ReconstructConfig(out=folder / "maps", particles=selected.path / "selected.star", device="cuda"))
            jobs.evaluate(EvaluateConfig(out=folder / "judged", particles=found.particles, truth=data.truth, align_frame=True))
            assert (folder / "maps" / "map.mrc").is_file()
    assert len(load_particles(found.particles)) == 220


@pytest.mark.parametrize("options", [
    {"search_steps": 15, "seeds": 1, "train_minutes": 0.03},
    {"method": "end-to-end", "encoder": "compact", "epochs": 2, "n_heads": 2, "symmetric_loss": True, "random_pose_weight": 1.0,
     "per_image_after_epoch": 1},
], ids=["hybrid", "end-to-end"])
def test_ab_initio(data, options, monkeypatch):
    """The hybrid method ends with the search of every pose that ``predict --refinement adaptive`` does, too."""
    # the same work for fewer images
    monkeypatch.setattr(matching_to_half_maps, "n_simulated", lambda *_: 40)
    monkeypatch.setattr(ab_initio, "MIN_PARTICLES", 60)
    run = data.path.parent / options.get("method", "hybrid")
    few = data.path / "few.star"
    load_particles(data.particles).subset(np.arange(60)).save(few)
    with pretended_gpu():
        try:
            jobs.ab_initio(AbInitioConfig(out=run, particles=few, device="cuda", **options))
        except NotConverged:
            pass  # so few steps need not
    assert (run / "summary.json").is_file() and (run / "map.mrc").is_file() and (run / "checkpoint").is_dir()
