"""The data sets of the table: simulated, or made by another program."""

import json
import shutil

import numpy as np
import pytest

from cryoforum_core.config import BenchmarkConfig
from cryoforum_core.errors import InputError
from cryoforum_core.jobs import simulate
from cryoforum_core.particles.dataset import load_particles
from cryoforum_core.particles.image_stack import save_table
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.published_benchmarks.data_sets import box_size_px, check_options, prepared_set

from .conftest import benchmark, rows_of


def test_sets_match_the_published_table(out):
    clean, with_ctf = (load_particles(out / f"sets/{name}/train_truth.star", require_poses=True) for name in "AG")
    assert len(clean) == len(with_ctf) == 216 and len(load_particles(out / "sets/A/test.star")) == 24
    assert not clean.ctf.has_effect and not clean.poses.shift_angstrom.any()
    defocus = with_ctf.ctf.mean_defocus_angstrom
    assert 4000 <= defocus.min() and defocus.max() <= 12000
    assert (with_ctf.ctf.defocus_u_angstrom == with_ctf.ctf.defocus_v_angstrom).all()
    assert load_particles(out / "sets/G/train.star").poses is None
    with_noise, without = (json.loads((out / f"sets/{name}/simulated/summary.json").read_text())["snr"] for name in "GA")
    assert with_noise == pytest.approx(1.0, rel=0.05) and without is None


def test_sets_made_by_another_program(out, tmp_path, capsys):
    """Tables without CTF columns, for images projected without CTF."""
    external = tmp_path / "sets"
    for name in "AG":
        made = out / f"sets/{name}/simulated"
        (external / name).mkdir(parents=True)
        for source, target in (("particles.star", "input.star"), ("truth.star", "particles.star")):
            table = ParticleTable.read(made / source)
            if name == "A":
                blocks = tuple(without_ctf(block) for block in table.blocks)
                table = ParticleTable(blocks, table.path)
            save_table(table, external / name / target)
        np.savez(external / name / "truth.npz", map=str(made / "map.mrc"))
    arguments = ("--particles-of", external, "--methods", "known", "--minutes", 0.02)
    assert benchmark("--out", tmp_path / "run", "--sets", "A", "G", *arguments) == 0
    rows = rows_of(tmp_path / "run")
    assert max(float(rows[name, "known"]["mean_error_deg"]) for name in "AG") < 1e-2
    assert float(rows["A", "known"]["ceiling_0143_angstrom"]) < 10
    shutil.rmtree(external / "G")
    np.savez(external / "A/truth.npz", map="/nowhere/map.mrc")
    capsys.readouterr()
    assert benchmark("--out", tmp_path / "other", "--sets", "A", "G", *arguments) == 2
    error = capsys.readouterr().err
    assert "lacks input.star, particles.star, truth.npz" in error and "/nowhere/map.mrc" in error
    assert not (tmp_path / "other").exists()


def without_ctf(block):
    dropped = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnVoltage", "rlnAmplitudeContrast")
    return type(block)(block.name, {name: values for name, values in block.columns.items() if name not in dropped},
                       block.is_loop, block.comments)


def test_all_problems_of_the_options_are_reported_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        check_options(BenchmarkConfig(table="cryoposenet", out=tmp_path / "x", methods=(), sets=("A",), box_size_px=31,
                                      particles_of=tmp_path / "nowhere"))
    text = str(caught.value)
    assert len(caught.value.problems) == 3 and all(words in text for words in ("--methods", "31", "nowhere"))


def test_the_box_is_that_of_the_scale_unless_another_one_is_asked_for(tmp_path):
    assert box_size_px(BenchmarkConfig(table="cryoposenet", out=tmp_path, scale="small")) == 64
    assert box_size_px(BenchmarkConfig(table="cryoposenet", out=tmp_path, scale="full")) == 128
    assert box_size_px(BenchmarkConfig(table="cryoposenet", out=tmp_path, box_size_px=24)) == 24


def test_the_last_tenth_is_the_test_set_and_a_set_that_exists_is_not_split_again(tmp_path):
    config = BenchmarkConfig(table="cryoposenet", out=tmp_path / "run", n_particles=40, box_size_px=16)
    found = prepared_set(config, "A", tmp_path / "set", simulate)
    everything = load_particles(tmp_path / "set/simulated/truth.star", require_ctf=False).particle_id.tolist()
    train, test = (load_particles(path, require_ctf=False).particle_id.tolist()
                   for path in (found.train_truth, found.test_truth))
    assert len(test) == 4 and train + test == everything and found.ctf_state == "none"
    before = found.test.stat().st_mtime_ns
    assert prepared_set(config, "A", tmp_path / "set", simulate).test.stat().st_mtime_ns == before
