"""The parts of benchmarks/ab_initio.py, simulated_sets.py and others.py, on cases whose answer is known."""

import importlib
import pickle
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cryoforum_core as cf
from cryoforum_core.ab_initio.random_starts import SearchImages
from cryoforum_core.geometry.poses import Poses
from cryoforum_core.geometry.rotations import compose, inverse, mirror_hand, quaternion_to_matrix, random_quaternions
from cryoforum_core.matching.whitened_images import WhitenedImages
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import load_particles

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PIXEL = 6.0


sys.path.insert(0, str(BENCHMARKS))
benchmark, sets, others = (importlib.import_module(name) for name in ("ab_initio", "simulated_sets", "others"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """300 images of 32 px as a set of the benchmark."""
    folder = tmp_path_factory.mktemp("set")
    run = cf.simulate(cf.SimulateConfig(out=folder / "made", n_particles=300, box_size_px=32, snr=1.0, shift_rms_px=1.0))
    shutil.copytree(run.path, folder, dirs_exist_ok=True)
    shutil.move(folder / "particles.star", folder / "input.star")
    shutil.move(folder / "truth.star", folder / "particles.star")
    np.savez(folder / "truth.npz", sigma=np.full(300, 2.0), signal_var=4.0, map=str(folder / "map.mrc"))
    return sets.SimulatedSet(folder)


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_frame_hand_and_centre_are_taken_out(is_mirrored):
    generator = torch.Generator().manual_seed(1)
    truth = Poses(random_quaternions(200, generator).double(), torch.randn(200, 2, generator=generator).double())
    rotation, translation = random_quaternions(1, generator)[0].double(), torch.tensor([5.0, -9.0, 3.0]).double()
    quaternion = compose(truth.quaternion, inverse(rotation))
    shift = truth.shift_angstrom - (quaternion_to_matrix(truth.quaternion) @ translation)[:, :2]
    shift[:20] += 30  # wrong in their shifts
    found = sets.InTrueFrame.of(Poses(mirror_hand(quaternion) if is_mirrored else quaternion, shift), truth)
    figures = found.figures(PIXEL)
    assert figures["is_mirrored"] == is_mirrored and figures["median_deg"] < 0.05 and figures["misassigned"] == 0
    assert figures["shift_px"] < 0.01 and figures["off_centre_px"] == pytest.approx(float(translation.norm()) / PIXEL, 0.01)


def test_the_images_that_assess_a_search_are_those_of_the_job(data, tmp_path):
    plan = benchmark.ab_initio_plan(data, tmp_path, seed=3)
    images = SearchImages.prepare(plan.images, 3, 14.0)
    rows = benchmark.held_out_rows(len(plan.particles), 3)
    expected = WhitenedImages.from_transforms(*plan.images.transforms(rows), torch.ones(17), 14.0)
    correlation = torch.nn.functional.cosine_similarity(images.held_out.data.abs(), expected.data.abs())
    assert len(rows) == len(images.held_out) and correlation.min() > 0.9


def test_searches_are_assessed_once_and_counted(data, tmp_path):
    rows = benchmark.reliability([data], tmp_path, seeds=1, steps=3)
    assert len(rows) == 1 and 0 < rows[0]["median_deg"] <= 180 and rows[0]["processor"] > 0
    assert benchmark.reliability([data], tmp_path, seeds=1, steps=3) == rows
    rows = [rows[0] | {"converged": True}, rows[0] | {"seed": 1, "converged": False}]
    assert "| map | 1 | 1 of 2 |" in benchmark.reliability_table(rows)


def test_processor_time_is_counted_and_limited(tmp_path):
    """Programs that end by their own processor time: however busy the machine is, they have had that much."""
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"]
    cost = sets.measured(busy, tmp_path / "log")
    assert cost.exit_code == 0 and min(cost.processor, cost.wall) > 0.45
    endless = [sys.executable, "-c", "while True: pass"]
    cost = sets.measured(endless, tmp_path / "log", max_processor_seconds=1)
    assert cost.exit_code == -signal.SIGXCPU and cost.processor > 0.6


@pytest.mark.skipif(shutil.which("relion_reconstruct") is None, reason="no RELION")
def test_map_of_relion_with_true_poses(data, tmp_path):
    known = torch.from_numpy(read_map(data.path / "map.mrc")[0])
    volume = sets.relion_map(data, None, tmp_path / "true")
    assert sets.resolutions(volume, known, read_map(data.path / "map.mrc")[1])[1] < 8 * read_map(data.path / "map.mrc")[1]


def test_poses_of_others(data, tmp_path):
    truth = load_particles(data.truth, require_poses=True)
    with open(tmp_path / "pose.pkl", "wb") as file:
        pickle.dump((quaternion_to_matrix(truth.poses.quaternion).numpy(),
                     truth.poses.shift_angstrom.numpy() / truth.pixel_size_angstrom), file)
    found = others.cryodrgn_poses(tmp_path / "pose.pkl", truth.pixel_size_angstrom)
    figures = sets.InTrueFrame.of(found, truth.poses).figures(PIXEL)
    assert figures["mean_deg"] < 0.1 and figures["shift_px"] < 0.01
    shuffled = truth.table.subset(np.random.default_rng(0).permutation(len(truth)))
    shuffled.write(tmp_path / "run_data.star")
    assert torch.allclose(others.relion_poses(tmp_path / "run_data.star").quaternion.abs(), truth.poses.quaternion.abs(),
                          atol=1e-5)
