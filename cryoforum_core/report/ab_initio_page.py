"""The page of a run of ab-initio."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..catalogue import STARTS_AGREE_DEG
from ..config import AbInitioConfig
from ..mrc import read_map
from ..results.pose_results import PoseResults
from .calibration_plots import error_calibration
from .map_page import fsc_picture, map_picture
from .micrograph_plots import micrograph_notes
from .page import (
    Assessment,
    NextStep,
    Page,
    Picture,
    Table,
    beside,
    command,
    degrees,
    duration,
    percent,
    significant,
    with_angstrom_sign,
)
from .population_plots import (
    other_molecule_notes,
    other_molecule_pictures,
    state_fact,
    state_notes,
    state_pictures,
)
from .prediction_page import missing_directions, observed_error, pose_pictures
from .reasons import junk_label_tables
from .run_files import RunFiles, angles_deg
from .training_page import training_curves
from .viewing_directions import view_density

METHODS = {"hybrid": "searches from random starts, refinement of half maps, training of a network, final projection "
                     "matching",
           "end-to-end": "network and map trained together"}
UNDETERMINED = "undetermined"
# an error of 12 degrees moves a detail 100 A from the axis by 21 A; chosen, not measured
_CERTAIN_BELOW_DEG = 12.0
# up to here the half sets share a start, so that wrong maps agree as well as right ones
_FEW_SHELLS = 8
# of the Nyquist frequency: beyond it, the pixel size may limit the resolution
_NEAR_NYQUIST = 0.9
# a network with larger errors is of no use to predict
_NETWORK_USEFUL_BELOW_DEG = 60.0
_SEEDS_AGREE_BELOW_DEG = STARTS_AGREE_DEG.value
# random starts of a second attempt, at least; after as many have failed, a longer search is suggested instead
_MORE_SEEDS = 4
# options that a repeated run does not take over
_OF_ONE_RUN = ("job", "out", "resume", "particles", "hand_reference")
# options that every method has
_OF_THE_PARTICLES = ("symmetry", "particle_diameter_angstrom", "max_shift_angstrom", "resolution_angstrom", "contrast",
                     "ctf_state", "pixel_size_angstrom")
# times the epochs of an end-to-end run that did not converge
_LONGER = 3
# key of the summary -> column of the table
_SEED_COLUMNS = {"score": "log-evidence per image, relative to noise alone (nats)",
                 "structure": "log-evidence gain over the spherically averaged map (nats)",
                 "explained": "signal power explained beyond the starting resolution of the search (fraction)",
                 "resolution_angstrom": "resolution (Å)"}


def ab_initio_page(files: RunFiles) -> Page:
    """Whether the run converged, its map, the uncertainty of the orientations, and the course of the run."""
    summary = files.summary
    volume, pixel_size_angstrom = read_map(files.run.map) if files.run.map.is_file() else (None, 0.0)
    results = files.results() if files.run.orientation_posterior.is_file() else None
    angles = angles_deg(files.table(files.run.particles))
    density = None if angles is None else view_density(*angles, files.symmetry)
    shells = None if volume is None else len(volume) * pixel_size_angstrom / summary["resolution_angstrom"]
    near_nyquist = shells is not None and shells > _NEAR_NYQUIST * len(volume) / 2
    coverage, calibration = error_calibration(files)
    labels = [] if results is None else junk_label_tables(results)
    tables = (*labels, *coverage, _seeds(summary), _rounds(summary), _stages(summary))
    return Page("Ab initio: initial map and orientations",
                _assessment(summary, results, density, shells, near_nyquist), _next_steps(files),
                _facts(summary, results) | state_fact(files), (*_pictures(files, volume, pixel_size_angstrom, results, density),
                                             *calibration),
                tuple(table for table in tables if table is not None), _notes(files))


def _facts(summary: dict, results: PoseResults | None) -> dict[str, str]:
    facts = {"resolution (FSC 0.143)": f"{significant(summary['resolution_angstrom'])} Å",
             "particles": f"{summary['n_particles']:,}"}
    if results is not None:
        facts["median expected error"] = degrees(np.median(results.errors.expected_error_deg))
    hand = "determined" if _hand_is_known(summary) else UNDETERMINED
    return facts | {"symmetry": summary.get("symmetry", "c1"), "hand": hand, "time": duration(summary["seconds"])}


def _hand_is_known(summary: dict) -> bool:
    return summary.get("hand", UNDETERMINED) != UNDETERMINED


def _assessment(summary: dict, results: PoseResults | None, density: np.ndarray | None,
             shells: float | None, near_nyquist: bool) -> Assessment:
    resolution = significant(summary["resolution_angstrom"])
    if not summary["converged"]:
        reason = with_angstrom_sign(str(summary.get("converged_reason") or "the run gives no reason")).rstrip(".")
        return Assessment("poor", (f"The run did not converge: {reason[:1].lower() + reason[1:]}.",
                                   f"All files were written, but neither the map (half maps agree to {resolution} Å) "
                                   "nor the orientations can be trusted."))
    sentences = [f"The run converged; its half maps agree to {resolution} Å (FSC 0.143)."]
    if near_nyquist:
        sentences.append("This is close to the Nyquist limit; images with a smaller pixel size may resolve more.")
    if (agreement := observed_error(summary)) is not None:
        sentences.append(agreement)
    warnings = list(_warnings(summary, results, density, shells))
    if not warnings:
        sentences.append("Check that the map shows the features your molecule must have, then take the steps below.")
    return Assessment("caution" if warnings else "good", (*sentences, *warnings))


def _warnings(summary: dict, results: PoseResults | None, density: np.ndarray | None, shells: float | None
              ) -> Iterator[str]:
    """Sentences about weaknesses of a converged map."""
    if shells is not None and shells < _FEW_SHELLS:
        yield "The resolution of the map is too low to distinguish a correct map from a wrong one."
    agreement = summary.get("seeds_agreement_deg")
    if agreement is not None and agreement > _SEEDS_AGREE_BELOW_DEG:
        yield (f"The poses of no other search agree with those of the best one (nearest: {degrees(agreement)}, median): "
               "another random start may give a different map.")
    if results is not None:
        median = float(np.median(results.errors.expected_error_deg))
        if median > _CERTAIN_BELOW_DEG:
            yield f"Half of the particles have an expected error above {degrees(median)}."
        missing = missing_directions(density, len(results.errors.expected_error_deg))
        if missing is not None:
            yield missing


def _next_steps(files: RunFiles) -> tuple[NextStep, ...]:
    if not files.summary["converged"]:
        return _again(files)
    selected, symmetry = beside(files.path, "select"), files.symmetry
    volume = shlex.quote(str(files.run.map.absolute()))
    return (NextStep("Look at the map", f"chimerax {volume}", "Analyze results of this run, Surface (ChimeraX)"),
            # first: everything done with the wrong hand has to be repeated
            *(() if _hand_is_known(files.summary) else _other_hand(files)),
            NextStep("Remove junk and uncertain orientations",
                     command("select", run=files.path, out=selected),
                     "cryoforum - uncertainty subset, with this run's outputParticles"),
            NextStep("Reconstruct the kept particles", command("reconstruct", particles=selected / "selected.star",
                                                            symmetry=symmetry, out=beside(files.path, "map")),
                     "relion - reconstruct, with outputParticles of the subset"),
            NextStep("Refine in RELION, starting from these orientations", _relion_refine(files),
                     "relion - 3D auto-refine with local searches, with outputParticles of the subset, and this run's "
                     "outputVolume as reference"))


def _other_hand(files: RunFiles) -> tuple[NextStep, ...]:
    """To a map and orientations of the opposite hand. Mirroring the map alone is not enough: local searches around the
    present orientations would start from wrong ones."""
    mirrored = files.run.map.absolute().with_name("map_mirrored.mrc")
    volume, output = shlex.quote(str(files.run.map.absolute())), shlex.quote(str(mirrored))
    return (NextStep("If the hand is wrong (left-handed alpha helices, if the map resolves them), correct it before "
                     "anything else: mirror the map",
                     f"relion_image_handler --i {volume} --o {output} --invert_hand"),
            NextStep("Then run again with the mirrored map as hand reference, because the orientations of this run do not "
                     "fit the mirrored map. Continue with the steps in the report of the new run",
                     command("ab-initio", particles=files.input_path("particles"), **_options_again(files),
                             hand_reference=mirrored, out=beside(files.path, "other_hand")),
                     "import volumes (the mirrored map), then cryoforum - ab initio again, with it as Hand reference"))


def _options_again(files: RunFiles) -> dict[str, object]:
    """The options of a run that differ from the defaults, for the hybrid method: the only one with a hand reference."""
    if files.config.get("method") == "end-to-end":
        return {name: files.config.get(name) for name in _OF_THE_PARTICLES if name in files.config}
    defaults = AbInitioConfig(out=Path(), particles=Path()).model_dump(mode="json")
    # earlier versions accepted options of the other method silently
    left_out = {*_OF_ONE_RUN, *AbInitioConfig.OPTIONS_OF["end-to-end"]}
    return {name: value for name, value in files.config.items()
            if name in defaults and name not in left_out and value != defaults[name]}


def _again(files: RunFiles) -> tuple[NextStep, ...]:
    config = files.config
    tried = files.summary.get("seeds")
    tried = len(tried) if isinstance(tried, list) else 1
    seeds = max(_MORE_SEEDS, 2 * config.get("seeds", 1))
    options = {name: config.get(name) for name in ("particle_diameter_angstrom", "max_shift_angstrom")}
    common = dict(particles=files.input_path("particles"), symmetry=files.symmetry, **options)
    end_to_end, longer = config.get("method") == "end-to-end", 2 * config.get("search_steps", 400)
    epochs = _LONGER * config.get("epochs", 10)
    steps = [NextStep("Search from several random starts, with the hybrid method" if end_to_end else
                      "Search from more random starts" if tried < _MORE_SEEDS else "Search longer",
                      command("ab-initio", **common, seeds=seeds,
                              # so many starts failed: more of the same would fail, too
                              **({} if tried < _MORE_SEEDS else {"search_steps": longer}),
                              out=beside(files.path, "again")),
                      "cryoforum - ab initio again, with "
                      f"{'Method hybrid and ' if end_to_end else ''}Random starts {seeds}"
                      f"{'' if tried < _MORE_SEEDS else f' and Search steps {longer}'}")]
    if end_to_end:
        steps.append(NextStep("Train longer", command(
            "ab-initio", **common, method="end-to-end", encoder=config.get("encoder"), head=config.get("head"),
            epochs=epochs, out=beside(files.path, "longer")), f"cryoforum - ab initio again, with Epochs {epochs}"))
    if config.get("symmetry", "c1").lower() != "c1":
        steps.append(NextStep("Run without symmetry, in case the given symmetry is wrong", command(
            "ab-initio", **(common | {"symmetry": "c1"}), seeds=seeds, out=beside(files.path, "c1")),
            f"cryoforum - ab initio again, with Symmetry c1 and Random starts {seeds}"))
    return tuple(steps)


def _relion_refine(files: RunFiles) -> str:
    resolution = max(files.summary["resolution_angstrom"] * 1.5, 15.0)
    selected, volume, folder = (shlex.quote(str(path.absolute())) for path in (
        beside(files.path, "select") / "selected.star", files.run.map, beside(files.path, "refine")))
    return " \\\n    ".join((
        f"mkdir -p {folder} && mpirun -n 3 relion_refine_mpi --auto_refine --split_random_halves",
        f"--i {selected}", f"--ref {volume}", f"--o {folder}/run",
        f"--firstiter_cc --ini_high {resolution:.0f} --ctf --sym {files.symmetry} --flatten_solvent --zero_mask",
        "--norm --scale --healpix_order 4 --auto_local_healpix_order 4 --sigma_ang 5 --offset_range 5",
        "--offset_step 2 --low_resol_join_halves 40"))


def _pictures(files: RunFiles, volume: np.ndarray | None, pixel_size_angstrom: float,
              results: PoseResults | None, density: np.ndarray | None) -> list[Picture]:
    pictures = [] if volume is None else [map_picture(volume, pixel_size_angstrom)]
    if (fsc := fsc_picture(files)) is not None:
        pictures.append(fsc)
    pictures += [*state_pictures(files), *other_molecule_pictures(files)]
    if results is not None:
        pictures += pose_pictures(files, results, files.table(files.run.particles), density)
    metrics = files.csv_columns(files.run.metrics.name)
    if metrics is not None and len(metrics.get("step", ())) > 1:
        pictures += training_curves(metrics)
    return pictures


def _seeds(summary: dict) -> Table | None:
    """The searches from random starts, best first; columns that are empty are left out."""
    found = summary.get("seeds")
    if not isinstance(found, list) or not found:
        return None
    found = sorted(found, key=lambda row: -_number(row.get("score")))
    columns = {"start": [str(row.get("seed", "-")) for row in found]}
    if any(row.get("symmetry_from_the_start") for row in found):
        columns["symmetry"] = ["from the start" if row.get("symmetry_from_the_start") else "none" for row in found]
    for name, title in _SEED_COLUMNS.items():
        if any(row.get(name) is not None for row in found):
            columns[title] = [significant(_number(row.get(name))) for row in found]
    columns["median angle to the poses of the chosen start (degrees)"] = [
        "chosen" if row.get("chosen") else significant(_number(row.get("angle_to_best_deg"))) for row in found]
    chosen = next((i for i, row in enumerate(found) if row.get("chosen")), None)
    caption = ("All values are of held-out images. Starts whose poses agree within a few degrees found the same map; a "
               "start that agrees with no other may be wrong. Correct maps usually explain at least 0.7 of the signal power "
               "beyond the starting resolution of the search, wrong ones less than 0.5; values in "
               "between are inconclusive.")
    return Table("Searches from random starts", caption, tuple(columns), tuple(zip(*columns.values(), strict=True)),
                 chosen, wide=True)


def _rounds(summary: dict) -> Table | None:
    """Resolution and pose changes of the rounds of half-map refinement."""
    rounds = summary.get("rounds")
    if not isinstance(rounds, list) or not rounds:
        return None
    rows = tuple((str(i), f"{significant(_number(row.get('resolution_angstrom')))} Å",
                  _angle(row.get("pose_change_deg"))) for i, row in enumerate(rounds, start=1))
    return Table("Refinement of the half maps", "The pose changes should decrease. Refinement stops when the "
                 "resolution no longer improves.", ("round", "resolution (FSC 0.143)", "median pose change"), rows)


def _angle(value) -> str:
    return "-" if value is None or not np.isfinite(value) else degrees(value)


def _number(value) -> float:
    return float("nan") if value is None else float(value)


def _stages(summary: dict) -> Table | None:
    """``stages`` of the summary: a dict stage -> seconds, or a list of dicts with ``stage`` and ``seconds``."""
    stages = summary.get("stages")
    if isinstance(stages, list):
        stages = {row.get("stage", row.get("name", "-")): row.get("seconds") for row in stages}
    if not stages:
        return None
    total = sum(filter(None, stages.values()))
    rows = tuple((name, "skipped" if seconds is None else duration(seconds),
                  "" if not seconds else percent(seconds / total)) for name, seconds in stages.items())
    return Table("Stages", "Time spent in each stage.", ("stage", "time", "share"), rows)


def _notes(files: RunFiles) -> tuple[str, ...]:
    notes = [*state_notes(files), *other_molecule_notes(files),
             f"Method: {METHODS.get(files.summary.get('method'), files.summary.get('method', '-'))}."]
    if not _hand_is_known(files.summary):
        notes.append("Hand: projections cannot distinguish a molecule from its mirror image, so the map may have either "
                     "hand. In the correct one alpha helices are right-handed, which can be seen only if the map resolves "
                     "them (about 5 Å or better). With a map of known hand (--hand-reference), the run determines the "
                     "hand itself. To use the orientations of this run with the mirrored map (relion_image_handler "
                     "--invert_hand), change the sign of rlnAngleRot and replace rlnAngleTilt by 180 minus rlnAngleTilt.")
    else:
        notes.append(f"Hand: {files.summary['hand']}.")
    choice = files.summary.get("symmetry_choice")
    if choice is not None:
        notes.append(f"Symmetry: {choice['sentence']}")
    near = files.summary.get("near_half_turn")
    if near is not None:
        notes.append(f"Pseudo-symmetry: the map is close to C2 (mean FSC {near['agreement']:.2f} with its copy rotated by "
                     "180° about the pseudo-symmetry axis). " + (
            "The images resolve it: each particle was given the better of its two orientations." if near["is_told_apart"]
            else "The images do not resolve it. If the molecule has a true two-fold axis, run again with its --symmetry. "
                 "Otherwise the difference is too small to see: the map is the average of both orientations, and each "
                 "particle's orientation may be wrong by this rotation."))
    error = files.summary.get("validation_median_error_deg")
    if error is not None:
        notes.append(f"Network: its median error on held-out images is {degrees(error)}. " + (
            "It can predict the orientations of further particles (cryoforum predict)." if error < _NETWORK_USEFUL_BELOW_DEG
            else "It is poorly trained; the orientations of this run come from matching. Train it longer "
                 "(--train-minutes) before you use it for further particles."))
    return (*notes, *micrograph_notes(files))
