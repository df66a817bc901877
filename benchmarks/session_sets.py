"""Sets as microscope sessions make them: whether error bounds hold in every group of particles, and what is taken for junk.

Simulated (``simulate --like session``), matched to the map (``predict --refinement adaptive``, from an
untrained network, so that every pose is searched for), and compared with the truth. Junk is judged by the particle probability.

    python benchmarks/session_sets.py --work /tmp/session --model ribosome_30s --seed 401
    python benchmarks/session_sets.py --work /tmp/session --model map.mrc --symmetry d2 --snr 0.3 --seed 402
"""

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from cleanup import roc_area
from results_page import record

import cryoforum_core as cf
from cryoforum_core.catalogue import JUNK_KIND_COLUMN, NEIGHBOUR_COLUMN, STATE_COLUMN
from cryoforum_core.particles.table import ParticleTable

EMBEDDED = {"ribosome_30s": "ribosome_30s_4v4r.pdb.gz", "beta_galactosidase": "beta_galactosidase_5a1a.pdb.gz"}
KINDS = ("noise", "overlap", "ice", "carbon-edge")


def predicted(arguments: argparse.Namespace, model: Path) -> tuple[Path, dict]:
    """The truth, and the arrays of the predicted poses joined with the summary of their evaluation."""
    work = arguments.work / f"{arguments.name}_{arguments.seed}"
    made = cf.simulate(cf.SimulateConfig(
        out=work / "set", model=model, like="session", n_particles=arguments.n_particles, snr=arguments.snr,
        box_size_px=arguments.box_size_px, junk_fraction=arguments.junk_fraction, seed=arguments.seed))
    network = cf.train(cf.TrainConfig(out=work / "network", particles=made.particles, reference=made.map, max_steps=5,
                                      batch_size=16, symmetry=arguments.symmetry))
    run = cf.predict(cf.PredictConfig(out=work / "poses", particles=made.particles, model=network.path))
    known = cf.evaluate(cf.EvaluateConfig(out=work / "errors", particles=run.particles, truth=made.truth,
                                        symmetry=arguments.symmetry))
    with np.load(run.orientation_posterior, allow_pickle=False) as arrays:
        return made.truth, {**known.read_summary(), "predict": run.read_summary(), **dict(arrays)}


def figures(truth: ParticleTable, found: dict) -> dict:
    kind, probability = truth.strings(JUNK_KIND_COLUMN), found["particle_probability"]
    good, lost = kind == "none", probability < 0.5
    is_minor, has_neighbour = truth.integers(STATE_COLUMN) > 1, truth.integers(NEIGHBOUR_COLUMN) > 0
    held = {each["group"]: 100 * each["error_bound_held"] for each in found["by_group"]}
    percent = {name: 100 * lost[good & some].mean() for name, some in (
        ("lost", True), ("lost_minor", is_minor), ("lost_neighbour", has_neighbour))}
    return {"median_deg": found["median_error_deg"], "mean_deg": found["mean_error_deg"],
            "expected_deg": float(found["expected_error_deg"][good].mean()),
            "observed_deg": found["predict"]["particles_observed_error_deg"],
            "coverage": 100 * found["error_bound_held"], "coverage_minor": held["class 2"],
            "coverage_neighbour": held["with neighbour"], "coverage_worst": min(held.values()),
            "roc": [round(roc_area(probability[good], probability[kind == each]), 3) for each in KINDS],
            "removed": [round(100 * lost[kind == each].mean()) for each in KINDS],
            **{name: round(float(value), 1) for name, value in percent.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="ribosome_30s", help="a map, an atomic model, or one of " + ", ".join(EMBEDDED))
    parser.add_argument("--name", help="in the table; by default that of the model")
    parser.add_argument("--symmetry", default="c1")
    parser.add_argument("--n-particles", type=int, default=1500)
    parser.add_argument("--box-size-px", type=int)
    parser.add_argument("--junk-fraction", type=float, default=0.1)
    parser.add_argument("--snr", type=float)
    parser.add_argument("--seed", type=int, default=401)
    arguments = parser.parse_args()
    embedded = EMBEDDED.get(arguments.model)
    model = Path(arguments.model) if embedded is None else Path(str(files("cryoforum_core") / "data" / embedded))
    arguments.name = arguments.name or Path(arguments.model).name
    truth, found = predicted(arguments, model)
    row = {"set": arguments.name, "snr": "as measured" if arguments.snr is None else f"{arguments.snr:g}",
           "particles": arguments.n_particles, "junk_percent": 100 * arguments.junk_fraction,
           **figures(ParticleTable.read(truth), found)}
    print(row)
    record("session_sets", {"figures": row})


if __name__ == "__main__":
    main()
