"""The page of a run of ab-initio."""

import shlex
from pathlib import Path

import numpy as np

from ..catalogue import STARTS_AGREE_DEG
from ..config import AbInitioConfig
from ..mrc import read_map
from .map_page import fsc_picture, map_picture
from .page import NextStep, Page, Picture, Table, Verdict, beside, command, degrees, duration, percent, significant
from .prediction_page import pose_pictures, unseen_views
from .promise_pictures import promises
from .reasons import judged_table
from .run_files import RunFiles, angles_deg
from .training_page import training_curves
from .view_coverage import view_density

METHODS = {"hybrid": "search, then network and refinement", "end-to-end": "network and map learnt together"}
UNDETERMINED = "undetermined"
_SURE_BELOW_DEG, _FEW_SHELLS, _NEAR_NYQUIST = 12.0, 8, 0.9
# a network that is worse than this is no start for predict
_NETWORK_USEFUL_BELOW_DEG = 60.0
_SEEDS_AGREE_BELOW_DEG = STARTS_AGREE_DEG.value
_MORE_SEEDS = 4
# options that another run of the same set does not take over, and those that any method needs
_OF_ONE_RUN = ("job", "out", "resume", "particles", "hand_reference")
_OF_THE_PARTICLES = ("symmetry", "particle_diameter_angstrom", "max_shift_angstrom", "resolution_angstrom", "contrast",
                     "ctf_state", "pixel_size_angstrom")
_LONGER = 3
_SEED_FIGURES = (("score", "score", ""), ("structure", "of it structure", ""),
                 ("explained", "finer details explained", ""),
                 ("resolution_angstrom", "resolution", " Å"))


def ab_initio_page(files: RunFiles) -> Page:
    """Whether a map was found, what it is, how sure the orientations are, and how the run got there."""
    summary = files.summary
    volume, pixel_size_angstrom = read_map(files.run.map) if files.run.map.is_file() else (None, 0.0)
    posterior = files.posterior() if files.run.orientation_posterior.is_file() else None
    angles = angles_deg(files.table(files.run.particles))
    density = None if angles is None else view_density(*angles, files.symmetry)
    shells = None if volume is None else len(volume) * pixel_size_angstrom / summary["resolution_angstrom"]
    near_nyquist = shells is not None and shells > _NEAR_NYQUIST * len(volume) / 2
    promised, tested = promises(files)
    judged = [] if posterior is None else judged_table(posterior)
    tables = (*judged, *promised, _seeds(summary), _rounds(summary), _stages(summary))
    return Page("Ab initio: a first map and orientations",
                _verdict(summary, posterior, density, shells, near_nyquist), _next_steps(files),
                _facts(summary, posterior), (*_pictures(files, volume, pixel_size_angstrom, posterior, density), *tested),
                tuple(table for table in tables if table is not None), _notes(files))


def _facts(summary: dict, posterior: dict[str, np.ndarray] | None) -> dict[str, str]:
    facts = {"resolution (FSC 0.143)": f"{significant(summary['resolution_angstrom'])} Å",
             "particles": f"{summary['n_particles']:,}"}
    if posterior is not None:
        facts["median expected error"] = degrees(np.median(posterior["expected_error_deg"]))
    hand = "known" if _hand_is_known(summary) else "unknown"
    return facts | {"symmetry": summary.get("symmetry", "c1"), "hand": hand, "time": duration(summary["seconds"])}


def _hand_is_known(summary: dict) -> bool:
    return summary.get("hand", UNDETERMINED) != UNDETERMINED


def _verdict(summary: dict, posterior: dict[str, np.ndarray] | None, density: np.ndarray | None,
             shells: float | None, near_nyquist: bool) -> Verdict:
    resolution = significant(summary["resolution_angstrom"])
    if not summary["converged"]:
        reason = str(summary.get("converged_reason") or "the run gives no reason").rstrip(".")
        return Verdict("poor", (f"No map was found: {reason[:1].lower() + reason[1:]}.",
                                f"The files are complete, but neither the map ({resolution} Å between its halves) nor "
                                "the orientations are to be relied on."))
    sentences = [f"A map was found; its half maps agree to {resolution} Å (FSC 0.143)."]
    if near_nyquist:
        sentences.append("This is the limit of the pixel size; particles with smaller pixels would show more.")
    doubts = list(_doubts(summary, posterior, density, shells))
    if not doubts:
        sentences.append("Look in it for what the molecule must have, then go on from its orientations.")
    return Verdict("caution" if doubts else "good", (*sentences, *doubts))


def _doubts(summary: dict, posterior: dict[str, np.ndarray] | None, density: np.ndarray | None, shells: float | None):
    """Sentences about what makes a map that was found less than it seems."""
    if shells is not None and shells < _FEW_SHELLS:
        yield "That is a blob, with little detail to tell a right map from a wrong one."
    agreement = summary.get("seeds_agreement_deg")
    if agreement is not None and agreement > _SEEDS_AGREE_BELOW_DEG:
        yield (f"The best two searches differ by {degrees(agreement)} (median): another random start may find another "
               "map.")
    if posterior is not None:
        median = float(np.median(posterior["expected_error_deg"]))
        if median > _SURE_BELOW_DEG:
            yield f"Half of the particles are expected to be off by more than {degrees(median)}."
        unseen = unseen_views(density, len(posterior["expected_error_deg"]))
        if unseen is not None:
            yield unseen


def _next_steps(files: RunFiles) -> tuple[NextStep, ...]:
    if not files.summary["converged"]:
        return _again(files)
    selected, symmetry = beside(files.path, "select"), files.symmetry
    volume = shlex.quote(str(files.run.map.absolute()))
    return (NextStep("Look at the map", f"chimerax {volume}", "Analyze results of this run, Surface (ChimeraX)"),
            # first of all: whatever is done with the wrong hand has to be done again
            *(() if _hand_is_known(files.summary) else _other_hand(files)),
            NextStep("Leave out junk and orientations that cannot be trusted",
                     command("select", run=files.path, out=selected),
                     "cryoforum - uncertainty subset, with this run's outputParticles"),
            NextStep("Make a map of what was kept", command("reconstruct", particles=selected / "selected.star",
                                                            symmetry=symmetry, out=beside(files.path, "map")),
                     "relion - reconstruct, with outputParticles of the subset"),
            NextStep("Refine it in RELION, from these orientations", _relion_refine(files),
                     "relion - 3D auto-refine with local searches, with outputParticles of the subset, and this run's "
                     "outputVolume as reference"))


def _other_hand(files: RunFiles) -> tuple[NextStep, ...]:
    """To a map and orientations of the other hand. The map alone is not enough: a refinement that starts from the
    orientations that are there would search around wrong ones."""
    mirrored = files.run.map.absolute().with_name("map_mirrored.mrc")
    volume, output = shlex.quote(str(files.run.map.absolute())), shlex.quote(str(mirrored))
    return (NextStep("If features are mirrored (helices turn to the left), do this before all else: mirror the map",
                     f"relion_image_handler --i {volume} --o {output} --invert_hand"),
            NextStep("Then run again with the mirrored map as the hand: orientations change with it, and those of this "
                     "run do not fit it. Go on from the new run's report",
                     command("ab-initio", particles=files.input_path("particles"), **_options_again(files),
                             hand_reference=mirrored, out=beside(files.path, "other_hand")),
                     "import volumes (the mirrored map), then cryoforum - ab initio again, with it as Hand reference"))


def _options_again(files: RunFiles) -> dict[str, object]:
    """What a run was told, where that is not the default, for the hybrid method: the one that takes a hand."""
    if files.config.get("method") == "end-to-end":
        return {name: files.config.get(name) for name in _OF_THE_PARTICLES if name in files.config}
    defaults = AbInitioConfig(out=Path(), particles=Path()).model_dump(mode="json")
    # earlier versions took options of the other method without a word
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
    learnt, longer = config.get("method") == "end-to-end", 2 * config.get("search_steps", 400)
    epochs = _LONGER * config.get("epochs", 10)
    steps = [NextStep("Search from several random starts, by the hybrid method" if learnt else
                      "Search from more random starts" if tried < _MORE_SEEDS else "Search longer",
                      command("ab-initio", **common, seeds=seeds,
                              # as many starts in vain: more of the same would end alike
                              **({} if tried < _MORE_SEEDS else {"search_steps": longer}),
                              out=beside(files.path, "again")),
                      "cryoforum - ab initio again, with "
                      f"{'Method hybrid and ' if learnt else ''}Random starts {seeds}"
                      f"{'' if tried < _MORE_SEEDS else f' and Search steps {longer}'}")]
    if learnt:
        steps.append(NextStep("Train longer", command(
            "ab-initio", **common, method="end-to-end", encoder=config.get("encoder"), head=config.get("head"),
            epochs=epochs, out=beside(files.path, "longer")), f"cryoforum - ab initio again, with Epochs {epochs}"))
    if config.get("symmetry", "c1").lower() != "c1":
        steps.append(NextStep("Without symmetry, which may be another than was given", command(
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
              posterior: dict[str, np.ndarray] | None, density: np.ndarray | None) -> list[Picture]:
    pictures = [] if volume is None else [map_picture(volume, pixel_size_angstrom)]
    if (fsc := fsc_picture(files)) is not None:
        pictures.append(fsc)
    if posterior is not None:
        pictures += pose_pictures(files, posterior, files.table(files.run.particles), density)
    metrics = files.csv_columns(files.run.metrics.name)
    if metrics is not None and len(metrics.get("step", ())) > 1:
        pictures += training_curves(metrics)
    return pictures


def _seeds(summary: dict) -> Table | None:
    """The searches from their random starts, best first; figures that none of them has are left out."""
    found = summary.get("seeds")
    if not isinstance(found, list) or not found:
        return None
    found = sorted(found, key=lambda row: -_number(row.get("score")))
    columns = {"start": [str(row.get("seed", "-")) for row in found]}
    for name, title, unit in _SEED_FIGURES:
        if any(row.get(name) is not None for row in found):
            columns[title] = [significant(_number(row.get(name))) + unit for row in found]
    columns["angle to the best"] = ["chosen" if row.get("chosen") else _angle(row.get("angle_to_best_deg"))
                                    for row in found]
    chosen = next((i for i, row in enumerate(found) if row.get("chosen")), None)
    caption = ("Starts that agree within a few degrees found the same map; one that stands alone may be wrong. Right maps "
               "explain 0.7 and more of the finer details in images that the search had not seen, wrong ones less than 0.5.")
    return Table("Searches from random starts", caption, tuple(columns), tuple(zip(*columns.values(), strict=True)),
                 chosen)


def _rounds(summary: dict) -> Table | None:
    """How the half maps came to their resolution."""
    rounds = summary.get("rounds")
    if not isinstance(rounds, list) or not rounds:
        return None
    rows = tuple((str(i), f"{significant(_number(row.get('resolution_angstrom')))} Å",
                  _angle(row.get("pose_change_deg"))) for i, row in enumerate(rounds, start=1))
    return Table("Half maps, round by round", "Poses should move less and less; the resolution ends where no round "
                 "improves it.", ("round", "resolution", "poses moved by"), rows)


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
    return Table("Stages", "What the time was spent on.", ("stage", "time", "share"), rows)


def _notes(files: RunFiles) -> tuple[str, ...]:
    notes = [f"Method: {METHODS.get(files.summary.get('method'), files.summary.get('method', '-'))}."]
    if not _hand_is_known(files.summary):
        notes.append("Hand: projections do not tell a molecule from its mirror image, so that the map is one of the "
                     "two. Helices turn to the right in the true one. With a map of known hand (--hand-reference) "
                     "the run decides by itself. A map that is mirrored afterwards needs other orientations: with that "
                     "of relion_image_handler --invert_hand go rlnAngleRot of opposite sign and 180 minus "
                     "rlnAngleTilt.")
    else:
        notes.append(f"Hand: {files.summary['hand']}.")
    near = files.summary.get("near_half_turn")
    if near is not None:
        notes.append(f"Near symmetry: half a turn lays the map nearly on itself (FSC {near['agreement']:.2f} on average). " + (
            "Each image was put the right way round by what differs between both." if near["is_told_apart"] else
            "The images do not tell their two orientations apart. Either the molecule has a two-fold axis: run again with "
            "its --symmetry; or the difference is too small: then the map is the mean of both ways round, and "
            "orientations hold up to the half turn."))
    error = files.summary.get("validation_median_error_deg")
    if error is not None:
        notes.append(f"Network: on images it has not seen it is off by {degrees(error)} (median). " + (
            "It can find the orientations of more particles (cryoforum predict)." if error < _NETWORK_USEFUL_BELOW_DEG
            else "It has learnt little; the orientations here come from the matching. Give it more --train-minutes "
                 "before it is to find those of more particles."))
    return tuple(notes)
