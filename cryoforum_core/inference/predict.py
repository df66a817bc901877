"""From a trained network, and a map, to each particle's pose and its uncertainty."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..config import PredictConfig
from ..geometry.poses import displacement_px, shift_angstrom
from ..imaging.fourier import ifft_image
from ..imaging.noise_spectrum import noise_power_spectrum
from ..junk.classifier import classify
from ..junk.features import FEATURES, PowerMap
from ..junk.labelling import junk_labels, simulated_features
from ..junk.simulation import JunkSimulation
from ..matching.matcher import Matcher, StartingPoses
from ..matching.matching_model import MatchingModel
from ..model.orientation_head import PoseEstimate
from ..particles.dataset import Particles
from ..particles.image_preparation import ImagePreparation
from ..particles.image_state import BACKGROUND_RADIUS_FRACTION
from ..progress import Progress
from ..results import pose_results
from ..results.pose_results import PoseResults
from ..results.write import poses_of, write_gallery, write_micrographs, write_results
from ..run_directory import RunDirectory
from ..selection.measures import MEASURES
from ..states.maps import state_figures
from ..uncertainty.calibration import Calibration, calibrate, error_figures, simulated_calibration, with_errors
from ..uncertainty.simulated_images import ImageSource
from .applicability import Applicability, assess, assess_poses
from .match_results import match_results
from .mismatch import broken_symmetry
from .particle_states import MatchedSet

logger = logging.getLogger("cryoforum")

# an eighth of the set adapts the matcher, between these two: an exhaustive search of them must not cost more than the rest
MIN_CALIBRATION_IMAGES = 64
MAX_CALIBRATION_IMAGES = 256
# images in a part that --resume goes on after
PART_IMAGES = 2048
# sphere in which the half maps of a state are compared, in boxes; as the default of reconstruct
_MASK_RADIUS_BOXES = 0.45
# CTFs that the power of a particle is averaged over, for junk features
N_POWER_IMAGES = 64


@dataclass(frozen=True)
class PredictionSetup:
    """What predicts: the network, how images are prepared, and the map to match (None for the network alone)."""

    network: Callable[[Tensor, Tensor], PoseEstimate]
    images: ImagePreparation
    volume: Float[Tensor, "b b b"] | None
    """at the matching box"""
    group: Float[Tensor, "g 4"]
    """rotations of the point group ``symmetry``"""
    symmetry: str
    labelled: ImagePreparation | None = None
    """particles with known poses, to calibrate the errors on"""
    mismatches: tuple[str, ...] = ()
    """what differs from the network's training, in sentences"""
    shift_rms_angstrom: float | None = None
    """standard deviation of the shifts that the network was trained for"""

    @property
    def pixel_size_angstrom(self) -> float:
        """Of the matching box."""
        return self.images.pixel_size_angstrom


def predict(config: PredictConfig, run: RunDirectory, particles: Particles, setup: PredictionSetup,
            look_further: Callable[[PoseResults], dict] | None = None) -> dict:
    """Predicts every particle and writes the run's files; returns the summary. ``look_further``: at the results of a matched
    set, with their evidence, for more figures of the summary.

    Finished parts are kept in ``parts/`` until the run's summary is written: ``--resume`` goes on after them.
    """
    for mismatch in setup.mismatches:
        logger.warning(mismatch)
    start = time.monotonic()
    simulating = None if setup.volume is None else _calibrated_matcher(config, particles, setup)
    matcher = simulating if config.refinement != "none" else None
    applicable = applicability(config, setup)
    if matcher is not None and applicable.applies:
        applicable = assess_poses(applicable, matcher.explained_amplitude)
    if not applicable.applies:
        logger.warning("Network or map does not fit these particles (%s): %s.", applicable.cause, applicable.reason)
    run.parts.mkdir(exist_ok=True)
    power_map = _power_map(matcher, setup)
    predictor = Predictor(setup, matcher, power_map, config.batch_size)
    done = predictor.write_parts(run.parts)
    seconds = time.monotonic() - start
    results = _read_parts(run.parts, particles)
    source = None if simulating is None else ImageSource.like(setup.images, simulating.model,
                                                              simulating.contrast_deviation, config.seed)
    if power_map is not None:
        results = _labelled(results, JunkSimulation(setup.images, source, setup.volume, power_map, matcher), predictor)
    states = None
    if power_map is not None:
        results, states = MatchedSet(setup.images, setup.volume, matcher, setup.group, results).in_states(config.seed)
    # after the labels: what junk shows beside a particle is no noise of good ones
    calibration = _calibration(config, setup, source, results, predictor)
    results = with_errors(results, setup.group, calibration and calibration.model, config.coverage)
    write_results(run, particles, results)
    more = write_micrographs(run, setup.images, results)
    posed = replace(particles, poses=poses_of(results, torch.float32).to(setup.images.device))
    more |= state_figures(run, states, posed, replace(setup.images, box_size_px=particles.box_size_px).transforms, setup.group,
                          _MASK_RADIUS_BOXES * particles.box_size_px, setup.images.device)
    if look_further is not None and power_map is not None:
        more |= look_further(results)
    if calibration is not None:
        calibration.write(run)
    if matcher is not None:
        write_gallery(run.gallery, setup.images, matcher.model, results)
    searched = 0.0 if results.match is None else float(results.match.searched.mean())
    return {"n_particles": len(particles), "images_per_second": done / max(seconds, 1e-9),
            **error_figures(results), **applicable.summary(), **_match_figures(results), "model_applies_doubts": list(setup.mismatches),
            "refinement": config.refinement, "symmetry": setup.symmetry, "searched_fraction": searched, "seconds": seconds,
            **more, **(calibration.summary() if calibration is not None else {})}


def _calibration(config: PredictConfig, setup: PredictionSetup, source: ImageSource | None, results: PoseResults,
                 predictor: "Predictor") -> Calibration | None:
    """On the labelled particles that were given, else on images of the map; None where there is neither."""
    def predict_rows(images: ImagePreparation, rows: np.ndarray) -> PoseResults:
        return replace(predictor, setup=replace(setup, images=images), power_map=None).rows(rows, "calibrating errors")

    if setup.labelled is not None:
        known = setup.labelled.particles
        return calibrate(predict_rows(setup.labelled, np.arange(len(known))), known.poses, known.ctf.defocus_u_angstrom,
                         setup.group, config.coverage, f"{len(known)} labelled particles")
    if source is None or not config.calibrate:
        return None
    # matching finds shifts whatever the network was trained for
    shift_rms_angstrom = setup.shift_rms_angstrom if config.refinement == "none" else None
    return simulated_calibration(setup.images, source, results, predict_rows, setup.group, config.coverage, config.seed,
                                 shift_rms_angstrom)


def _labelled(results: PoseResults, simulation: JunkSimulation, predictor: "Predictor") -> PoseResults:
    """Results with junk labels. No image is junk because its pose is wrong: what would be junk at a pose that was not
    searched for is searched for, until there is none.

    A wrong pose that a network is sure of can match better than chance, and no worse than particles of poor contrast do.
    """
    all_rows = np.arange(len(results))
    simulated = simulated_features(results, all_rows, simulation)
    while simulated is not None and len(rows := np.flatnonzero(
            classify(results.evidence.junk_features, simulated).is_junk & ~results.match.searched)):
        results = results.put(rows, predictor.rows(rows, "search again", search_all=True))
    return replace(results, junk=junk_labels(results, all_rows, simulation, simulated))


@dataclass(frozen=True)
class Predictor:
    """Predicts rows of the setup's images; ``matcher`` None: by the network alone, ``power_map`` None: without junk
    features."""

    setup: PredictionSetup
    matcher: Matcher | None
    power_map: PowerMap | None
    batch_size: int

    def write_parts(self, directory: Path) -> int:
        """Predicts the parts that are not in ``directory`` yet; returns how many images that were."""
        n = len(self.setup.images.particles)
        missing = [start for start in range(0, n, PART_IMAGES) if not _is_done(_part(directory, start))]
        n_missing = sum(min(PART_IMAGES, n - start) for start in missing)
        with Progress(n, "predict", initial=n - n_missing) as progress:
            for start in missing:
                part = self._batches(np.arange(start, min(start + PART_IMAGES, n)), progress)
                part.save(_part(directory, start), with_evidence=True)
        return n_missing

    def rows(self, rows: Int[np.ndarray, " n"], label: str, search_all: bool = False) -> PoseResults:
        """All ``rows``, shown as ``label``; ``search_all``: see ``Matcher.match``."""
        with Progress(len(rows), label) as progress:
            return self._batches(rows, progress, search_all)

    def _batches(self, rows: np.ndarray, progress: Progress, search_all: bool = False) -> PoseResults:
        batches = []
        for batch in np.array_split(rows, -(-len(rows) // self.batch_size)):
            batches.append(self._batch(batch, search_all))
            progress.update(len(batch))
        return PoseResults.concatenate(batches)

    def _batch(self, rows: np.ndarray, search_all: bool) -> PoseResults:
        setup, matcher = self.setup, self.matcher
        network, particle_id = network_estimate(setup, rows), setup.images.particles.particle_id[rows]
        if matcher is None:
            # by way of pixels, as with matching: the last digit of earlier results
            shifts = shift_angstrom(displacement_px(network.shift_angstrom, setup.pixel_size_angstrom),
                                    setup.pixel_size_angstrom)
            results = PoseResults(particle_id, *(x.cpu().numpy() for x in (network.quaternion, shifts, network.bingham)))
        else:
            transforms = setup.images.transforms(rows)
            matches = matcher.match(*transforms, starting_poses(setup, network, matcher.seed), search_all)
            features = None if self.power_map is None else self.power_map.features(
                matcher.model.images(*transforms), matches.hypotheses[:, 0], matches.contrast)
            results = match_results(matches, particle_id, setup.group, setup.pixel_size_angstrom, network.quaternion,
                                    features)
        return replace(results, network=pose_results.NetworkPoses(
            torch.linalg.eigvalsh(network.bingham).cpu().numpy(), network.quaternion.cpu().numpy()))


def network_estimate(setup: PredictionSetup, rows: Int[np.ndarray, " n"]) -> PoseEstimate:
    """What the network says of ``rows``, in single precision."""
    with torch.no_grad():
        estimate = setup.network(*setup.images.network_input(rows))
    return PoseEstimate(estimate.quaternion.float(), estimate.bingham.float(), estimate.shift_angstrom.float())


def starting_poses(setup: PredictionSetup, network: PoseEstimate, seed: int) -> StartingPoses:
    """The network's rotations and samples of its posterior, for a matcher with that seed."""
    return StartingPoses.of_network(network.quaternion, network.bingham,
                                    displacement_px(network.shift_angstrom, setup.pixel_size_angstrom), seed)


def _part(directory: Path, start: int) -> Path:
    return directory / f"{start:010d}.npz"


def _is_done(path: Path) -> bool:
    """Whether a part is there, with the features that this version finds junk by; earlier versions had others."""
    if not path.is_file():
        return False
    with np.load(path, allow_pickle=False) as file:
        found = [file[name] for name in ("evidence_junk_features", "junk_statistics") if name in file.files]
    return all(features.shape[1] == len(FEATURES) for features in found)


def _load_part(path: Path, particles: Particles) -> PoseResults:
    """A part of this run; those of earlier versions hold rows in the place of particle ids."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if "row" in arrays:
        arrays["particle_id"] = particles.particle_id[arrays["row"]]
    return PoseResults.from_arrays(arrays)


def _read_parts(directory: Path, particles: Particles) -> PoseResults:
    results = PoseResults.concatenate([_load_part(path, particles) for path in sorted(directory.glob("*.npz"))])
    if not np.array_equal(results.particle_id, particles.particle_id):
        raise RuntimeError(f"the parts in {directory} do not cover the {len(particles)} particles once each")
    return results


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
    return assess(setup.images, setup.volume, setup.group, *_limits_px(config, setup), config.seed)


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
    matcher.calibrate(images_ft, ctf, starting_poses(setup, network_estimate(setup, rows), config.seed))
    logger.info("Matching at %d px of %.3g A, to %.3g A; adapted on %d images: the map explains %.0f %% of the "
                "signal's amplitude.", box, pixel_size_angstrom, box * pixel_size_angstrom / finest, len(rows),
                100 * matcher.explained_amplitude)
    return matcher


def _power_map(matcher: Matcher | None, setup: PredictionSetup) -> PowerMap | None:
    """None where poses are not searched for: a poor match is then no evidence of junk, since the pose may be wrong."""
    if matcher is None or not matcher.adaptive:
        return None
    rows = np.unique(np.linspace(0, len(setup.images.particles) - 1, N_POWER_IMAGES).round().astype(int))
    return PowerMap.build(matcher.model, setup.images.transforms(rows)[1])


def _match_figures(results: PoseResults) -> dict[str, float]:
    """Distribution of the fit over the whole set, which is 0 with deviation 1 where the model is right."""
    if results.match is None:
        return {}
    low, median, high = np.percentile(results.match.fit, [16, 50, 84])
    poor = results.match.match_score < MEASURES["match-score"].usual_limit
    return {"fit_median": float(median), "fit_deviation": float(high - low) / 2, "poor_match_fraction": float(poor.mean())}
