"""From a trained network, and a map, to each particle's pose and what is believed about it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import DEFAULT_COVERAGE, PredictConfig
from ..geometry.orientation_posterior import OrientationPosterior
from ..geometry.poses import Poses
from ..geometry.symmetry import symmetric_distance_rad
from ..imaging.fourier import ifft_image
from ..imaging.noise import noise_power_spectrum
from ..junk.classifier import VERDICT_ARRAYS, is_junk, simulated_like, strongest_rival, verdict_arrays
from ..junk.features import PowerMap
from ..junk.simulation import JunkSimulation
from ..matching.matcher import Matcher, Matches, NetworkPoses
from ..matching.matching_model import MatchingModel
from ..model.orientation_head import PoseEstimate
from ..particles.dataset import Particles
from ..particles.fields import pose_columns
from ..particles.image_stack import save_table
from ..particles.image_state import BACKGROUND_RADIUS_FRACTION
from ..particles.preparation import ImagePreparation
from ..progress import Progress
from ..results.gallery import write_gallery
from ..run_directory import RunDirectory, atomic_path
from ..selection.measures import MEASURES
from ..uncertainty.calibration import Calibration, calibration, evidence_of, simulated_calibration, standardised
from ..uncertainty.error_model import ErrorModel
from ..uncertainty.match_posterior import (
    belief,
    bingham_from_information,
    rotation_information,
    shift_deviation_px,
    uniform_angles_rad,
)
from ..uncertainty.simulated_images import ImageSource
from .applicability import Applicability, judge, judge_poses
from .mismatch import broken_symmetry

logger = logging.getLogger("cryoforum")

# an eighth of the set, within these limits: an exhaustive search of them must not cost more than the prediction
MIN_CALIBRATION_IMAGES, MAX_CALIBRATION_IMAGES = 64, 256
SHARD_IMAGES = 2048
N_POWER_IMAGES = 64


@dataclass(frozen=True)
class PredictionSetup:
    """What predicts: the network, how images are prepared, and the map to match (None for the network alone)."""

    network: Callable[[Tensor, Tensor], PoseEstimate]
    images: ImagePreparation
    volume: Tensor | None
    """(b, b, b) at the matching box"""
    group: Tensor
    """(G, 4) rotations of the point group ``symmetry``"""
    symmetry: str
    labelled: ImagePreparation | None = None
    """particles with known poses, to learn the errors from"""
    doubts: tuple[str, ...] = ()
    """what differs from the network's training, in sentences"""
    shift_rms_angstrom: float | None = None
    """standard deviation of the displacements that the network was trained for"""

    @property
    def pixel_size_angstrom(self) -> float:
        """Of the matching box."""
        return self.images.pixel_size_angstrom


def predict(config: PredictConfig, run: RunDirectory, particles: Particles, setup: PredictionSetup) -> dict:
    """Predicts every particle and writes the run's files; returns the summary (see ``design``: command line).

    Finished parts are kept in ``parts/`` until the run's summary is written: ``--resume`` goes on after them.
    """
    for doubt in setup.doubts:
        logger.warning(doubt)
    start = time.monotonic()
    simulating = None if setup.volume is None else _calibrated_matcher(config, particles, setup)
    matcher = simulating if config.refinement != "none" else None
    verdict = applicability(config, setup)
    if matcher is not None and verdict.applies:
        verdict = judge_poses(verdict, matcher.explained)
    if not verdict.applies:
        logger.warning("This model does not apply to these particles (%s): %s.", verdict.cause, verdict.reason)
    run.parts.mkdir(exist_ok=True)
    power_map = _power_map(matcher, setup)
    done = _predict_parts(config, particles, setup, matcher, power_map, run.parts)
    seconds = time.monotonic() - start
    raw = _read_parts(run.parts, len(particles))
    source = None if simulating is None else ImageSource.like(setup.images, simulating.model,
                                                              simulating.contrast_deviation, config.seed)
    learnt = _calibration(config, setup, source, raw, lambda images, rows: _predict_rows(
        replace(setup, images=images), matcher, rows, config.batch_size))
    if power_map is not None:
        simulation = JunkSimulation(setup.images, source, setup.volume, power_map, matcher)
        raw = _judged(raw, simulation, lambda rows: _predict_rows(
            setup, matcher, rows, config.batch_size, power_map, search_all=True))
    arrays = finalise(raw, setup.group, learnt and learnt.model, config.coverage)
    write_predictions(run, particles, arrays)
    if learnt is not None:
        learnt.write(run)
    if matcher is not None:
        write_gallery(run.gallery, setup.images, matcher.model, arrays)
    return {"n_particles": len(particles), "images_per_second": done / max(seconds, 1e-9),
            "median_expected_error_deg": float(np.median(arrays["expected_error_deg"])),
            **verdict.summary(), **_match_figures(arrays), "model_applies_doubts": list(setup.doubts),
            "refinement": config.refinement,
            "symmetry": setup.symmetry,
            "searched_fraction": float(arrays["searched"].mean()), "seconds": seconds,
            **(learnt.summary() if learnt is not None else {})}


def _calibration(config: PredictConfig, setup: PredictionSetup, source: ImageSource | None,
                 arrays: dict[str, np.ndarray], predict_rows) -> Calibration | None:
    """Of the labelled particles that were given, else of images of the map; None where there is neither."""
    if setup.labelled is not None:
        known = setup.labelled.particles
        return calibration(predict_rows(setup.labelled, np.arange(len(known))), known.poses, known.ctf.defocus_u_angstrom,
                           setup.group, config.coverage, f"{len(known)} labelled particles")
    if source is None or not config.calibrate:
        return None
    # matching finds displacements whatever the network was trained for
    shift_rms_angstrom = setup.shift_rms_angstrom if config.refinement == "none" else None
    return simulated_calibration(setup.images, source, arrays, predict_rows, setup.group, config.coverage, config.seed,
                                 shift_rms_angstrom)


def _predict_rows(setup: PredictionSetup, matcher: Matcher | None, rows: np.ndarray, batch_size: int,
                  power_map: PowerMap | None = None, search_all: bool = False) -> dict[str, np.ndarray]:
    """All rows, without parts on the disk."""
    batches = []
    with Progress(len(rows), "search again" if search_all else "learn errors") as progress:
        for batch in np.array_split(rows, -(-len(rows) // batch_size)):
            batches.append(_predict_batch(setup, matcher, power_map, batch, search_all))
            progress.update(len(batch))
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def _judged(raw: dict[str, np.ndarray], simulation: JunkSimulation, searched: Callable[[np.ndarray], dict[str, np.ndarray]]
            ) -> dict[str, np.ndarray]:
    """The arrays with verdicts. No image is junk because its pose is wrong: what would be junk by a pose that nobody
    searched for is searched for, until there is none.

    A wrong pose that a network is sure of can match better than chance, and no worse than particles of poor contrast do.
    """
    raw, simulated = {name: values.copy() for name, values in raw.items()}, simulated_like(raw, simulation)
    while simulated and len(rows := np.flatnonzero(is_junk(raw["junk_statistics"], simulated) & ~raw["searched"])):
        again = searched(rows)
        for name in raw:
            raw[name][rows] = again[name]
    return raw | verdict_arrays(raw, np.arange(len(raw["quaternion"])), simulation, simulated)


def _network_poses(setup: PredictionSetup, rows: np.ndarray) -> NetworkPoses:
    with torch.no_grad():
        estimate = setup.network(*setup.images.network_input(rows))
    # shifts have RELION's sign; a displacement is minus that
    return NetworkPoses(estimate.quaternion.float(), estimate.bingham.float(),
                        -estimate.shift_angstrom.float() / setup.pixel_size_angstrom)


def _limits_px(config: PredictConfig, setup: PredictionSetup) -> tuple[float, float]:
    """Finest frequency in cycles per box, and largest displacement in pixels."""
    box, pixel_size_angstrom = setup.images.box_size_px, setup.pixel_size_angstrom
    finest = box / 2 - 1
    if config.resolution_angstrom is not None:
        finest = min(finest, box * pixel_size_angstrom / config.resolution_angstrom)
    return finest, (config.max_shift_angstrom or box * pixel_size_angstrom / 8) / pixel_size_angstrom


def applicability(config: PredictConfig, setup: PredictionSetup) -> Applicability:
    """Whether the map applies to the particles, before any of their poses is predicted."""
    if setup.volume is None:
        return Applicability(True, "none", "not judged: the network alone was used, without matching to a map")
    broken = broken_symmetry(setup.volume, setup.group, setup.symmetry)
    if broken is not None:
        return Applicability(False, "symmetry", broken)
    return judge(setup.images, setup.volume, setup.group, *_limits_px(config, setup), config.seed)


def _calibrated_matcher(config: PredictConfig, particles: Particles, setup: PredictionSetup) -> Matcher:
    n_sample = min(max(len(particles) // 8, MIN_CALIBRATION_IMAGES), MAX_CALIBRATION_IMAGES)
    # a stream of its own: a simulated set may have drawn its junk from the same seed
    draw = np.random.default_rng([config.seed, 0x5A3])
    rows = np.sort(draw.choice(len(particles), min(n_sample, len(particles)), replace=False))
    images_ft, ctf = setup.images.transforms(rows)
    box, pixel_size_angstrom = setup.images.box_size_px, setup.pixel_size_angstrom
    spectrum = noise_power_spectrum(ifft_image(images_ft), BACKGROUND_RADIUS_FRACTION * box)
    finest, max_shift_px = _limits_px(config, setup)
    model = MatchingModel.estimate(setup.volume, images_ft, ctf, spectrum, setup.group, finest, max_shift_px)
    # the network alone is not asked for poses here: images are simulated with the contrast that matches show
    matcher = Matcher(model, adaptive=config.refinement != "local", seed=config.seed)
    matcher.calibrate(images_ft, ctf, _network_poses(setup, rows))
    logger.info("Matching at %d px of %.3g A, to %.3g A; learnt from %d images: the map explains %.0f %% of the "
                "signal's amplitude.", box, pixel_size_angstrom, box * pixel_size_angstrom / finest, len(rows),
                100 * matcher.explained)
    return matcher


def _power_map(matcher: Matcher | None, setup: PredictionSetup) -> PowerMap | None:
    """None where poses are not searched for: an image that does not match says nothing then, its pose may be wrong."""
    if matcher is None or not matcher.adaptive:
        return None
    rows = np.unique(np.linspace(0, len(setup.images.particles) - 1, N_POWER_IMAGES).round().astype(int))
    return PowerMap.build(matcher.model, setup.images.transforms(rows)[1])


def _predict_parts(config: PredictConfig, particles: Particles, setup: PredictionSetup, matcher: Matcher | None,
                   power_map: PowerMap | None, directory: Path) -> int:
    """Predicts the parts that are not in ``directory`` yet; returns how many images that were."""
    starts = range(0, len(particles), SHARD_IMAGES)
    missing = [start for start in starts if not (directory / f"{start:010d}.npz").is_file()]
    n_missing = sum(min(SHARD_IMAGES, len(particles) - start) for start in missing)
    with Progress(len(particles), "predict", initial=len(particles) - n_missing) as progress:
        for start in missing:
            rows = np.arange(start, min(start + SHARD_IMAGES, len(particles)))
            batches = []
            for batch in np.array_split(rows, -(-len(rows) // config.batch_size)):
                batches.append(_predict_batch(setup, matcher, power_map, batch))
                progress.update(len(batch))
            joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
            with atomic_path(directory / f"{start:010d}.npz") as temporary:
                np.savez(temporary, **joined)
    return n_missing


def _predict_batch(setup: PredictionSetup, matcher: Matcher | None, power_map: PowerMap | None, rows: np.ndarray,
                   search_all: bool = False) -> dict[str, np.ndarray]:
    network = _network_poses(setup, rows)
    if matcher is None:
        result = _network_result(network, setup)
    else:
        transforms = setup.images.transforms(rows)
        matches = matcher.match(*transforms, network, search_all)
        result = matched_arrays(matches, setup)
        result["network_angle_rad"] = symmetric_distance_rad(network.quaternion, result["quaternion"], setup.group)
        if power_map is not None:
            result |= power_map.statistics(matcher.model.images(*transforms), matches.hypotheses[:, 0])
    result["network_quaternion"] = network.quaternion
    result["network_eigenvalues"] = torch.linalg.eigvalsh(network.bingham)
    result["row"] = torch.from_numpy(rows)
    return {name: value.cpu().numpy() for name, value in result.items()}


def _network_result(network: NetworkPoses, setup: PredictionSetup) -> dict[str, Tensor]:
    n = len(network.quaternion)
    nothing = torch.full((n,), torch.nan)
    return {"quaternion": network.quaternion, "bingham": network.bingham, "fit": nothing, "residual": nothing,
            "shift_angstrom": -network.displacement_px * setup.pixel_size_angstrom,
            "searched": torch.zeros(n, dtype=torch.bool)}


def matched_arrays(matches: Matches, setup: PredictionSetup) -> dict[str, Tensor]:
    """What ``finalise`` needs of n matched images, network's answers excepted; lengths in Angstrom."""
    best, beliefs = matches.hypotheses[:, 0], belief(matches.hypotheses, setup.group)
    return {"quaternion": best.quaternion,
            "bingham": bingham_from_information(best.quaternion, rotation_information(best.information)),
            "fit": matches.quality.fit, "residual": matches.quality.residual, "searched": matches.searched,
            "shift_angstrom": -best.displacement_px * setup.pixel_size_angstrom,
            "shift_deviation_angstrom": shift_deviation_px(best.information.double()).float() * setup.pixel_size_angstrom,
            "alternative_quaternion": strongest_rival(matches.hypotheses, beliefs),
            "weight": beliefs.weight, "rival_angle_rad": beliefs.rival_angle_rad,
            "local_deviation_rad": beliefs.local_deviation_rad}


def _read_parts(directory: Path, n: int) -> dict[str, np.ndarray]:
    parts: list[dict] = []
    for path in sorted(directory.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            parts.append(dict(file))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not np.array_equal(arrays.pop("row"), np.arange(n)):
        raise RuntimeError(f"the parts in {directory} do not cover the {n} particles once each")
    return arrays


def finalise(arrays: dict[str, np.ndarray], group: Tensor, learnt: ErrorModel | None = None,
             coverage: float = DEFAULT_COVERAGE) -> dict[str, np.ndarray]:
    """Figures that need the whole population: expected error, bound, figure of merit and match score.

    ``learnt``: of particles with known poses; without it the errors are those that matches, or the network's matrices,
    say themselves. ``match_score``: the poorer of two standardised figures, the fit of the pose and the absence of
    anything else in the image; 0 for a usual particle, below -4 hardly ever one. NaN for the network alone.
    """
    bingham = torch.from_numpy(arrays["bingham"])
    if learnt is not None:
        # the spreads are that many times wider than they say
        bingham = bingham / learnt.scale ** 2
    is_matched = "weight" in arrays
    evidence = evidence_of(arrays)
    model = learnt or ErrorModel.unlearnt(uniform_angles_rad(group.cpu()), coverage)
    if is_matched or learnt is not None:
        expected, bound = (x.numpy() for x in model.expected_error_deg(evidence))
    else:
        posterior = OrientationPosterior.from_bingham(bingham, torch.from_numpy(arrays["quaternion"]), coverage)
        expected, bound = posterior.expected_error_deg.numpy(), posterior.error_bound_deg.numpy()
    more = {}
    if is_matched:
        lost = model.chance_lost(evidence)
        merit = (evidence.belief.weight[:, 0] * (1 - lost)).float().numpy()
        score = np.minimum(evidence.fit.numpy(), -standardised(arrays["residual"], better_is_higher=False))
        more = dict(zip(("expected_shift_error_angstrom", "shift_error_bound_angstrom"),
                        (x.numpy() for x in model.expected_shift_error_angstrom(evidence)), strict=True))
    else:
        merit, score = np.exp(-expected / 30.0), arrays["fit"]
    return {"quaternion": arrays["quaternion"], "bingham": bingham.numpy(),
            "eigenvalues": torch.linalg.eigvalsh(bingham).numpy(), "expected_error_deg": expected,
            "error_bound_deg": bound, "shift_angstrom": arrays["shift_angstrom"], "figure_of_merit": merit,
            "match_score": score, "fit": arrays["fit"], "residual": arrays["residual"],
            "network_quaternion": arrays["network_quaternion"], "network_eigenvalues": arrays["network_eigenvalues"],
            "searched": arrays["searched"], **more,
            **({name: arrays[name] for name in VERDICT_ARRAYS} if "reason" in arrays else {})}


def write_predictions(run: RunDirectory, particles: Particles, arrays: dict[str, np.ndarray],
                      more_columns: dict[str, np.ndarray] | None = None) -> None:
    """particles.star, with ``more_columns`` (N,), and orientation_posterior.npz, from the arrays of ``finalise``."""
    poses = Poses(torch.from_numpy(arrays["quaternion"]).double(), torch.from_numpy(arrays["shift_angstrom"]).double())
    columns = {"rlnCryoforumExpectedError": arrays["expected_error_deg"],
               "rlnCryoforumErrorBound": arrays["error_bound_deg"],
               "rlnCryoforumFigureOfMerit": arrays["figure_of_merit"]}
    for name, column in (("expected_shift_error_angstrom", "rlnCryoforumExpectedShiftError"),
                         ("shift_error_bound_angstrom", "rlnCryoforumShiftErrorBound")):
        if name in arrays:
            columns[column] = arrays[name]
    if np.isfinite(arrays["match_score"]).all():
        columns["rlnCryoforumMatchScore"] = arrays["match_score"]
    if "reason" in arrays:
        columns |= {"rlnCryoforumReason": arrays["reason"],
                    "rlnCryoforumParticleProbability": arrays["particle_probability"]}
    columns |= more_columns or {}
    of_poses = pose_columns(particles.table, poses, particles.pixel_size_angstrom)
    save_table(particles.table.with_columns({**of_poses, **columns}), run.particles)
    with atomic_path(run.orientation_posterior) as temporary:
        np.savez(temporary, particle_id=particles.particle_id, **arrays)


def _match_figures(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Distribution of the fit over the whole set, which is 0 with deviation 1 for what the model promises."""
    fit, score = arrays["fit"], arrays["match_score"]
    if not np.isfinite(score).any():
        return {}
    low, median, high = np.percentile(fit, [16, 50, 84])
    return {"fit_median": float(median), "fit_deviation": float(high - low) / 2,
            "poor_match_fraction": float((score < MEASURES["match-score"].usual_limit).mean())}
