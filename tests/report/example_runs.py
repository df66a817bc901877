"""Run directories with invented but realistic values, made in a moment."""

import csv
import json

import numpy as np

from cryoforum_core.mrc import write_map, write_stack
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.run_directory import RunDirectory
from cryoforum_core.selection.measures import measures_of
from cryoforum_core.selection.selection import select, write_selection

N, N_JUNK, BOX, PIXEL = 600, 90, 32, 6.0
JUNK_KINDS = ("noise", "off-centre", "overlap", "other-molecule", "blank")


def make_run(path, job: str, config: dict, summary: dict) -> RunDirectory:
    path.mkdir(parents=True)
    run = RunDirectory(path)
    run.config.write_text(json.dumps({"job": job, "out": str(path), "seed": 0} | config))
    run.write_summary({"job": job, "version": "0.1.0", "seconds": 61.0} | summary)
    return run


def molecule() -> np.ndarray:
    """A lopsided body of three blobs (BOX, BOX, BOX)."""
    z, y, x = np.indices((BOX,) * 3) - BOX // 2
    blobs = [(0, 0, 0, 5.0, 1.0), (6, 3, -4, 3.0, 0.9), (-5, 6, 3, 2.5, 0.7)]
    return sum(a * np.exp(-((x - i) ** 2 + (y - j) ** 2 + (z - k) ** 2) / (2 * s**2)) for i, j, k, s, a in blobs)


def particle_columns(rng: np.random.Generator, preferred: float = 0.0) -> dict:
    n_preferred = int(preferred * N)
    tilt = np.rad2deg(np.arccos(rng.uniform(-1, 1, N)))
    tilt[:n_preferred] = rng.uniform(0, 20, n_preferred)
    defocus = rng.uniform(8000, 20000, N)
    return {"rlnImageName": [f"{i + 1:06d}@particles.mrcs" for i in range(N)], "rlnParticleId": np.arange(1, N + 1),
            "rlnOpticsGroup": np.ones(N, int), "rlnDefocusU": defocus + 100, "rlnDefocusV": defocus - 100,
            "rlnAngleRot": rng.uniform(-180, 180, N), "rlnAngleTilt": tilt, "rlnAnglePsi": rng.uniform(-180, 180, N),
            "rlnOriginXAngst": rng.normal(0, 12, N), "rlnOriginYAngst": rng.normal(0, 12, N)}


def junk_kinds(rng: np.random.Generator) -> np.ndarray:
    kinds = np.full(N, "none", dtype="<U14")
    kinds[rng.permutation(N)[:N_JUNK]] = np.repeat(JUNK_KINDS, N_JUNK // len(JUNK_KINDS))
    return kinds


OPTICS = {"rlnOpticsGroup": [1], "rlnVoltage": [300.0], "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1],
          "rlnImagePixelSize": [PIXEL], "rlnImageSize": [BOX], "rlnImageDimensionality": [2]}


def simulate_run(path) -> RunDirectory:
    rng = np.random.default_rng(0)
    kinds = junk_kinds(rng)
    run = make_run(path, "simulate", {"n_particles": N}, {
        "n_particles": N, "box_size_px": BOX, "pixel_size_angstrom": PIXEL, "snr": 0.1, "n_junk": N_JUNK,
        "junk": dict.fromkeys(JUNK_KINDS, N_JUNK // len(JUNK_KINDS)), "symmetry": "c1"})
    images = molecule().sum(0) + rng.normal(0, 3, (N, BOX, BOX))
    images[kinds == "blank"] = 1.0
    write_stack(run.path / "particles.mrcs", images, PIXEL)
    columns = particle_columns(rng)
    poses = {name for name in columns if "Angle" in name or "Origin" in name}
    ParticleTable.from_columns({name: value for name, value in columns.items() if name not in poses}, OPTICS).write(
        run.particles)
    ParticleTable.from_columns(columns | {"rlnCryoforumJunkKind": kinds}, OPTICS).write(run.truth)
    write_map(run.map, molecule(), PIXEL)
    return run


def train_run(path, final_median: float = 6.5, overfits: bool = False) -> RunDirectory:
    run = make_run(path, "train", {"particles": "data/particles.star", "reference": "data/map.mrc", "symmetry": "c1"},
                   {"validation_median_error_deg": final_median, "validation_mean_error_deg": 2.2 * final_median,
                    "seconds": 905.0, "steps": 4000})
    rng = np.random.default_rng(1)
    with open(run.metrics, "w", newline="") as file:
        columns = ("step", "progress", "seconds", "learning_rate", "loss", "orientation", "bingham", "shift",
                   "validation_loss", "validation_median_error_deg", "validation_mean_error_deg")
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for i in range(1, 201):
            t = i / 200
            falling = np.exp(-4 * t)
            row = {"step": 20 * i, "progress": t, "seconds": 4.5 * i, "learning_rate": 1e-3 * (1 - t),
                   "loss": 0.2 + 1.5 * falling + 0.03 * rng.normal(), "orientation": 0.1 + 1.2 * falling,
                   "bingham": 1.5 * falling - 0.5, "shift": 0.05 + 0.2 * falling}
            if i % 8 == 0:
                median = final_median * (1 + 12 * falling) * (1 + (6 * max(t - 0.5, 0) if overfits else 0))
                row |= {"validation_loss": 0.25 + 1.5 * falling, "validation_median_error_deg": median,
                        "validation_mean_error_deg": 2.2 * median}
            writer.writerow(row)
    return run


def predict_run(path, preferred: float = 0.0, applies: bool = True, matched: bool = True, clustered_junk: bool = False,
                poor_direction: bool = False, with_images: bool = False) -> tuple[RunDirectory, dict]:
    """The run, and what is true of it: ``error_deg`` (N,) and ``kinds`` (N,).

    clustered_junk: all junk has one viewing direction. poor_direction: particles within 40 degrees of the pole are
    uncertain.
    """
    rng = np.random.default_rng(2)
    kinds, columns = junk_kinds(rng), particle_columns(rng, preferred)
    junk, misassigned = kinds != "none", rng.random(N) < 0.05
    if clustered_junk:
        columns["rlnAngleRot"][junk], columns["rlnAngleTilt"][junk] = 30.0, 100.0
    if poor_direction:
        misassigned |= columns["rlnAngleTilt"] < 40
    expected = np.where(junk | misassigned, np.exp(rng.normal(np.log(40), 0.5, N)), np.exp(rng.normal(np.log(1.5), 0.4, N)))
    error = np.where(junk | misassigned, 180 * rng.random(N), expected * np.sqrt(rng.chisquare(3, N) / 3))
    score = np.where(junk, -10 * np.exp(rng.normal(0, 0.8, N)), rng.normal(0, 1.0, N))
    score = score if matched else np.full(N, np.nan)
    precision = (3 / np.deg2rad(expected) ** 2)[:, None]
    run = make_run(path, "predict", {"particles": "data/particles.star", "model": "run_train", "symmetry": "c1"}, {
        "n_particles": N, "images_per_second": 182.4, "median_expected_error_deg": float(np.median(expected)),
        "model_applies": applies, "model_applies_cause": "none" if applies else "another-molecule",
        "refinement": "adaptive",
        "model_applies_reason": "the matched map explains 92 % of the signal's amplitude" if applies else
        "the images contain particles, but the map explains only 3 % of the expected power: another molecule"})
    arrays = {"particle_id": np.arange(1, N + 1), "quaternion": np.tile([0.0, 0, 0, 1], (N, 1)),
              "bingham": np.zeros((N, 4, 4)), "eigenvalues": precision * np.array([0.0, 1, 1.2, 1.5]),
              "expected_error_deg": expected, "error_bound_deg": 1.8 * expected, "match_score": score,
              "figure_of_merit": np.exp(-expected / 30),
              "shift_angstrom": np.stack([columns["rlnOriginXAngst"], columns["rlnOriginYAngst"]], -1)}
    np.savez(run.orientation_posterior, **arrays)
    measured = {"rlnCryoforumExpectedError": expected} | ({"rlnCryoforumMatchScore": score} if matched else {})
    ParticleTable.from_columns(columns | measured, OPTICS).write(run.particles)
    if with_images:
        write_stack(run.path / "particles.mrcs", rng.normal(0, 1, (N, BOX, BOX)), PIXEL)
    if matched:
        _gallery(run, rng, expected, score)
    # an in-plane rotation changes a pose by exactly its angle
    known = columns | {"rlnAnglePsi": columns["rlnAnglePsi"] + error, "rlnCryoforumJunkKind": kinds,
                       "rlnOriginXAngst": columns["rlnOriginXAngst"] + rng.normal(0, 2, N)}
    ParticleTable.from_columns(known, OPTICS).write(run.path / "known.star")
    return run, {"error_deg": error, "kinds": kinds, "columns": columns}


def _gallery(run: RunDirectory, rng: np.random.Generator, expected: np.ndarray, score: np.ndarray) -> None:
    order = np.argsort(-score)
    rows = np.concatenate([order[:8], order[N // 2 - 4:N // 2 + 4], order[-8:]])
    volume = molecule()
    projections = np.stack([volume.sum(i % 3) for i in range(24)])
    images = projections + rng.normal(0, 3, projections.shape)
    np.savez(run.path / "gallery.npz", images=images, projections=projections,
             kind=np.repeat(["best", "median", "worst"], 8), particle_id=rows + 1, match_score=score[rows],
             expected_error_deg=expected[rows])


def select_run(path, predicted: RunDirectory, **criteria) -> RunDirectory:
    with np.load(predicted.orientation_posterior) as arrays:
        measures, particle_id = measures_of(PoseResults.from_arrays(arrays)), arrays["particle_id"]
    selection = select(measures, **criteria)
    run = make_run(path, "select", {"run": str(predicted.path)}, selection.summary())
    write_selection(selection, measures, particle_id, ParticleTable.read(predicted.particles), run)
    return run


def fsc_rows(resolution_angstrom: float) -> list[tuple]:
    shells = np.arange(BOX // 2 + 1)
    frequency = shells / (BOX * PIXEL)
    fsc = 1 / (1 + np.exp(60 * (frequency - 1 / resolution_angstrom) + 1.79))
    return [(i, BOX * PIXEL / max(i, 1), max(value, 0.02)) for i, value in zip(shells, fsc)]


def write_fsc(run: RunDirectory, resolution_angstrom: float) -> None:
    with open(run.fsc, "w", newline="") as file:
        csv.writer(file).writerows([("shell", "resolution_angstrom", "fsc"), *fsc_rows(resolution_angstrom)])


def reconstruct_run(path, resolution_angstrom: float = 14.2) -> RunDirectory:
    run = make_run(path, "reconstruct", {"particles": "run_select/selected.star", "symmetry": "c1"},
                   {"resolution_angstrom": resolution_angstrom, "n_particles": 510})
    write_map(run.map, molecule() + np.random.default_rng(3).normal(0, 0.01, (BOX,) * 3), PIXEL)
    write_fsc(run, resolution_angstrom)
    return run


def evaluate_run(path, predicted: RunDirectory, truth: dict) -> RunDirectory:
    error, junk = truth["error_deg"], truth["kinds"] != "none"
    good = error[~junk]
    run = make_run(path, "evaluate", {"particles": str(predicted.particles), "truth": "truth.star"}, {
        "median_error_deg": float(np.median(good)), "mean_error_deg": float(good.mean()),
        "fraction_below_5deg": float((good < 5).mean()), "fraction_below_10deg": float((good < 10).mean()),
        "median_shift_error_angstrom": 1.3, "with_junk": {"mean_error_deg": float(error.mean())},
        "resolution_angstrom": 13.1, "n_compared": int((~junk).sum())})
    shift = np.abs(np.random.default_rng(4).normal(0, 1.5, N)) * np.where(error > 20, 8, 1)
    with open(run.path / "errors.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("particle", "error_deg", "shift_error_angstrom", "is_junk"))
        writer.writerows((i + 1, f"{error[i]:.4f}", f"{shift[i]:.4f}", int(junk[i])) for i in range(N))
    write_fsc(run, 13.1)
    return run


SEEDS = [{"seed": i, "score": 100.0 - 7 * i, "resolution_angstrom": 18.0 + 4 * i, "angle_to_best_deg": 5.0 * i,
          "chosen": i == 0} for i in range(3)]


def ab_initio_run(path, method: str = "hybrid", converged: bool = True, hand: str = "undetermined",
                  symmetry: str = "c1", **summary) -> RunDirectory:
    """A run of ab-initio with the files of predict and reconstruct; end-to-end has a training and no match scores."""
    hybrid = method == "hybrid"
    predicted, _ = predict_run(path, matched=hybrid)
    rounds = [{"resolution_angstrom": 24.0, "pose_change_deg": None}, {"resolution_angstrom": 14.2,
                                                                       "pose_change_deg": 3.1}]
    of_method = {"rounds": rounds, "seeds_agreement_deg": 5.0, "search_seconds": 70.0,
                 "median_expected_error_deg": 1.8, "seeds": SEEDS,
                 "stages": {"search": 70.0, "half maps": 20.0, "network": 60.0, "refinement": 40.0}} if hybrid else {}
    predicted.config.write_text(json.dumps({"job": "ab-initio", "out": str(path), "particles": "data/particles.star",
                                            "method": method, "symmetry": symmetry, "seeds": 3}))
    predicted.write_summary({"job": "ab-initio", "version": "0.1.0", "seconds": 200.0, "converged": converged,
                             "converged_reason": "" if converged else "The two best searches differ by 61 degrees.",
                             "resolution_angstrom": 14.2 if converged else 55.0, "method": method,
                             "symmetry": symmetry, "hand": hand, "n_particles": N} | of_method | summary)
    write_map(predicted.map, molecule(), PIXEL)
    write_fsc(predicted, predicted.read_summary()["resolution_angstrom"])
    if not hybrid:
        with open(predicted.metrics, "w", newline="") as file:
            csv.writer(file).writerows([("step", "loss")] + [(i, 1 + np.exp(-i / 20)) for i in range(100)])
    return predicted


def all_runs(folder) -> dict[str, RunDirectory]:
    """One run of each job with a page, and one of a job without."""
    predicted, truth = predict_run(folder / "run_predict")
    other = make_run(folder / "run_other", "other", {"particles": "p.star"}, {"resolution_angstrom": 21.0})
    write_map(other.map, molecule(), PIXEL)
    return {"simulate": simulate_run(folder / "run_simulate"), "train": train_run(folder / "run_train"),
            "predict": predicted, "select": select_run(folder / "run_select", predicted),
            "reconstruct": reconstruct_run(folder / "run_map"), "ab-initio": ab_initio_run(folder / "run_ab_initio"),
            "end-to-end": ab_initio_run(folder / "run_end_to_end", "end-to-end"), "other": other,
            "evaluate": evaluate_run(folder / "run_evaluate", predicted, truth)}
