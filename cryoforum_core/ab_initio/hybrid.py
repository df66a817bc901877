"""The hybrid method: search from a random start, half maps, network, and a last matching of every particle.

Each stage, each round of the half maps and each half set of the last matching leaves its result in ``stages/`` of the
run, so that ``--resume`` goes on with the next one, until the run's summary is written.
"""

import json
import logging
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.pose_posterior import PosePosterior
from ..geometry.poses import Poses
from ..geometry.rotations import compose, inverse
from ..imaging.fourier import low_pass_volume, resize_volume
from ..imaging.map_alignment import HALF_TURN_Z, align_to_reference
from ..imaging.resolution import resolution_angstrom
from ..imaging.symmetry_frame import NO_SYMMETRY_BELOW, symmetry_frame
from ..imaging.volume_frame import centre_of_mass_px, mirror_volume, move_volume
from ..inference.predict import finalise, write_predictions
from ..model.checkpoint import REFERENCE
from ..model.orientation_head import PoseEstimate
from ..mrc import write_map
from ..progress import format_duration
from ..reconstruction.reconstruct import HalfMaps, half_sets, reconstruct_halves, write_half_maps
from ..run_directory import RunDirectory, atomic_path
from ..saved_state import load_state, save_state
from ..uncertainty.calibration import Calibration, n_simulated
from ..uncertainty.match_posterior import bingham_from_information
from .final_stage import FinalMatching, write_final_gallery
from .half_maps import HalfMapPair, HalfSetRefinement, PoseTable, next_radius_px, pose_change_deg
from .live import LiveRun
from .near_symmetry import near_half_turn, told_apart
from .network_stage import NetworkAnswers, train_on_poses
from .plan import AbInitioPlan
from .search_stage import (
    LAST_RADIUS_PX,
    MAX_STARTS,
    SearchImages,
    SearchResult,
    agreement_deg,
    low_noise_spectrum,
    run_search,
    search_settings,
)

logger = logging.getLogger("cryoforum")

# the common start of both half sets knows nothing beyond this radius, so that what they agree in there is their own
COMMON_RADIUS_PX = 8.0
GLOBAL_STEP_DEG, GLOBAL_RADIUS_PX, GLOBAL_MAX_RADIUS_PX = 10.0, 10.0, 12.0
MIN_ROUNDS, MAX_ROUNDS, ROUNDS_TOLD_APART = 2, 6, 3
# half maps must agree so many shells beyond the common start
MIN_SHELLS_GAINED = 1.5
# part of the Fourier voxels that the views must reach: half of them need views up to 30 degrees from one; images of a
# single view reach 38 %, by the errors of their poses
MIN_SAMPLED_FRACTION = 0.5
# ``HalfSetRefinement.explained``: 0.13 to 0.43 for wrong maps, about 1 for right ones
MIN_EXPLAINED_FRACTION = 0.6
MIN_TRAIN_MINUTES, TRAIN_SHARE_OF_TIME_SPENT = 1.0, 0.5
AGREE_WITHIN_DEG = 20.0
# processor seconds, for the estimate at the start; a GPU counts as so many cores
SECONDS_OF_A_SEARCH_STEP, SECONDS_OF_AN_IMAGE, SECONDS_OF_A_KNOWN_IMAGE, CORES_OF_A_GPU = 0.15, 0.075, 0.055, 40
# relative lengths of the stages on a CPU, of 3,000 images of 64 px, for the estimate of the time left
SHARES = {"search": 2.0, "half maps": 1.6, "network": 1.8, "final matching": 3.7, "maps": 0.2}
# likewise of the parts of the final matching, where many poses were lost
FINAL_SHARES = {"matching all": 1.0, "maps with the poses that were found": 0.1, "matching all again": 0.8,
                "learning errors": 0.8, "last maps": 0.1}
# part of the images: particles whose pose the final matching finds, and the rounds of the half maps had lost
FEW_LOST = 0.01


def hybrid(plan: AbInitioPlan, run: RunDirectory) -> dict:
    """Runs all stages, writes all files of the run, and returns the summary, with ``converged`` and why."""
    return _HybridRun(plan, run).go()


@dataclass(frozen=True)
class SearchOutcome:
    """What the first stage leaves: the chosen map (b, b, b), in its final frame, and the figures of all starts."""

    volume: Tensor
    found_structure: bool
    structure: float
    structure_error: float
    starts: list[dict]
    agreement_deg: float | None
    symmetry_score: float | None
    hand: str


@dataclass(frozen=True)
class FinalOutcome:
    """What the last matching leaves: all arrays of the particles, the maps, how much of the images they explain, what the
    errors are learnt to be, and the part of the particles that each matching found again."""

    arrays: dict[str, np.ndarray]
    pair: HalfMapPair
    explained: float
    learnt: Calibration | None
    found_again: list[float]


class _HybridRun:
    """The stages of one run, in their order."""

    def __init__(self, plan: AbInitioPlan, run: RunDirectory):
        self.plan, self.run, self.config = plan, run, plan.config
        self.live = LiveRun(run, SHARES)
        self.run.stages.mkdir(exist_ok=True)
        self.halves, self.halves_source = half_sets(plan.particles, self.config.seed)
        self.skipped = frozenset(self.config.skip)
        if self.config.resume:
            # the network's time is a part of what was spent before
            self.live.go_on_after(json.loads(self._seconds_path.read_text()) if self._seconds_path.is_file() else {})

    @property
    def _seconds_path(self) -> Path:
        return self.run.stages / "seconds.json"

    @contextmanager
    def _stage(self, name: str):
        with self.live.stage(name):
            yield
        with atomic_path(self._seconds_path) as temporary:
            temporary.write_text(json.dumps(self.live.seconds))

    def go(self) -> dict:
        logger.info("Expect about %s on this device; the time left is shown as it goes.",
                    format_duration(estimated_seconds(self.plan)))
        with self._stage("search"):
            outcome = self._kept("search", SearchOutcome, self._search)
        with self._stage("half maps"):
            refinement, pair, rounds = self._half_maps(outcome)
        self.skipped = self._left_out(outcome, pair)
        with self._stage("network"):
            answers, figures = self._network(refinement)
        with self._stage("final matching"):
            final = self._final(refinement, pair, answers)
        with self._stage("maps"):
            maps = self._write(final.arrays)
            if "distillation" not in self.skipped:
                self._write_reference(final.pair)
            if final.learnt is not None:
                final.learnt.write(self.run)
                write_final_gallery(self.plan, refinement, final.pair, self.run.gallery, final.arrays)
        self.live.log_times()
        if final.learnt is not None:
            figures = figures | final.learnt.summary()
        summary = self._summary(outcome, final, maps, rounds, figures)
        self.live.show(1.0, message="finished" if summary["converged"] else "did not converge")
        return summary

    def _kept(self, name: str, kind: type, compute: Callable):
        """The result of a stage: from a stopped run, else computed and kept. Plain tensors and numbers only."""
        return kind(**self._kept_state(name, lambda: vars(compute())))

    def _kept_state(self, name: str, compute: Callable[[], dict]) -> dict:
        path = self.run.stages / f"{name.replace(' ', '_')}.pt"
        if self.config.resume and path.is_file():
            logger.info("%s: done before, going on after it", name)
            return load_state(path, self.plan.device)
        state = compute()
        save_state(path, state)
        return state

    # ---------------------------------------------------------------- search
    def _search(self) -> SearchOutcome:
        plan, box = self.plan, self.plan.particles.box_size_px
        last_radius_px = min(LAST_RADIUS_PX, plan.max_radius_px)
        images = SearchImages.prepare(plan.images, self.config.seed, last_radius_px)
        settings = search_settings(images, self.config.search_steps, plan.mask_radius_px / box,
                                   plan.max_displacement_px / box)
        results: list[SearchResult] = []
        while len(results) < self.config.seeds or (
                len(results) < max(MAX_STARTS, self.config.seeds) and not any(r.is_settled for r in results)):
            seed = self.config.seed + len(results)
            results.append(self._one_search(images, settings, seed, len(results)))
            logger.info("start %d: held-out log-evidence %.2f, of it structure %.2f +- %.2f; explains %.0f %%", seed,
                        results[-1].score, results[-1].structure, results[-1].structure_error,
                        100 * results[-1].explained)
        best = max(results, key=lambda result: result.score)
        volume, symmetry_score, hand, turn = self._framed(best.volume)
        # the group as it lies in the frame of the searches
        group = compose(compose(turn, plan.group), inverse(turn))
        angles = agreement_deg(results, group)
        starts = [{"seed": result.seed, "score": result.score, "structure": result.structure,
                   "explained": result.explained, "angle_to_best_deg": angles.get(result.seed, 0.0),
                   "chosen": result is best} for result in results]
        return SearchOutcome(volume, best.found_structure, best.structure, best.structure_error, starts,
                             min(angles.values()) if angles else None, symmetry_score, hand)

    def _one_search(self, images: SearchImages, settings, seed: int, number: int) -> SearchResult:
        state_path = self.run.stages / f"search_{seed}_state.pt"

        def show(search, log_evidence: float) -> None:
            self.live.map(search.volume(), images.pixel_size_angstrom)
            done = (number + search.step_number / settings.steps) / max(self.config.seeds, number + 1)
            self.live.show(done, f"random start {seed}, step {search.step_number} of {settings.steps}", log_evidence)

        return run_search(images, settings, seed, state_path, self.config.resume, show)

    def _framed(self, volume: Tensor) -> tuple[Tensor, float | None, str, Tensor]:
        """The map centred, turned to the symmetry's axes or to the reference, with the reference's hand; and the turn
        (4,) that brought it there from the frame of the searches, but for the hand: rotations ``turn g turn^-1`` of
        that frame are ``g`` here."""
        turn = torch.tensor([0.0, 0.0, 0.0, 1.0], device=volume.device)
        score, hand = None, "undetermined"
        if self.plan.hand_reference is not None:
            reference = resize_volume(self.plan.hand_reference.to(volume.device), len(volume))
            found = align_to_reference(volume, reference, COMMON_RADIUS_PX)
            if found.is_mirrored:
                # mirrored in z: a rotation about any axis is then the one about the axis turned by 180 degrees about z
                volume, turn = mirror_volume(volume), turn.new_tensor(HALF_TURN_Z)
            volume, hand = move_volume(volume, found.rotation, found.translation_px), "as in the reference"
            turn = compose(turn, found.rotation.to(turn))
        if len(self.plan.group) > 1:
            frame = symmetry_frame(volume, self.plan.group, GLOBAL_RADIUS_PX, self.config.seed)
            score = float(frame.score)
            logger.info("symmetry %s: the map agrees with its symmetrised copy to %.2f", self.plan.symmetry, score)
        if score is not None and score >= NO_SYMMETRY_BELOW:
            volume = move_volume(volume, frame.rotation, frame.translation_px)
            turn = compose(turn, frame.rotation.to(turn))
        elif self.plan.hand_reference is None:
            centre = centre_of_mass_px(volume, self.plan.mask_radius_px * len(volume) / self.plan.particles.box_size_px)
            volume = move_volume(volume, turn, -centre)
        return volume, score, hand, turn

    # ---------------------------------------------------------------- half maps
    def _half_maps(self, outcome: SearchOutcome) -> tuple[HalfSetRefinement, HalfMapPair, list[dict]]:
        plan, box = self.plan, self.plan.particles.box_size_px
        refinement = HalfSetRefinement(plan.images, self.halves, plan.group, plan.mask_radius_px / box,
                                       plan.max_displacement_px)
        refinement.progress = self._show_round
        background = low_noise_spectrum(plan.images, np.random.default_rng(self.config.seed).permutation(
            len(plan.particles)))
        kept = self._kept("half_maps", _KeptRounds, lambda: self._rounds(refinement, outcome, background))
        kept.put_into(refinement, background)
        pair = kept.pair()
        self._show_pair(pair)
        return refinement, pair, kept.rounds

    def _rounds(self, refinement: HalfSetRefinement, outcome: SearchOutcome, background: Tensor) -> "_KeptRounds":
        """Each round is kept as it ends; a stopped run goes on after the last."""
        path = self.run.stages / "rounds.pt"
        if self.config.resume and path.is_file():
            kept = _KeptRounds(**load_state(path, self.plan.device))
            kept.put_into(refinement, background)
            logger.info("half maps: %d rounds done before, going on after them", len(kept.rounds))
        else:
            kept = self._first_round(refinement, outcome, background)
            save_state(path, vars(kept))
        while "refinement" not in self.config.skip and self._goes_on(kept.rounds):
            kept = self._next_round(refinement, kept)
            save_state(path, vars(kept))
        return kept if "refinement" in self.config.skip else self._told_apart(refinement, kept)

    def _told_apart(self, refinement: HalfSetRefinement, kept: "_KeptRounds") -> "_KeptRounds":
        """Where half a turn lays the molecule nearly on itself: each image the right way round, and rounds after that."""
        turn = near_half_turn(kept.pair(), refinement.box_size_px) if len(self.plan.group) == 1 else None
        if turn is None:
            return kept
        logger.info("half a turn lays the map nearly on itself (FSC %.2f): each image has two orientations that it hardly "
                    "tells apart", turn.agreement)
        self.live.show(0.95, "telling apart the two orientations of each image")
        is_turned = told_apart(refinement, kept.pair(), turn, self.plan.max_radius_px, self.config.seed)
        figures = {"agreement": turn.agreement, "is_told_apart": is_turned is not None}
        if is_turned is not None:
            own = refinement.poses.best()
            other = turn.other(*own)
            is_turned = is_turned[:, None]
            chosen, left = ([torch.where(is_turned, x, y) for x, y in zip(*pair, strict=True)]
                            for pair in ((other, own), (own, other)))
            refinement.poses.put(chosen, left)
            pair = refinement.reconstruct(kept.noise_spectrum, next_radius_px(kept.pair(), self.plan.max_radius_px))
            kept = _KeptRounds.of(refinement.poses, pair, kept.rounds)
            for _ in range(ROUNDS_TOLD_APART):
                kept = self._next_round(refinement, kept)
        return replace(kept, rounds=[*kept.rounds[:-1], kept.rounds[-1] | {"near_half_turn": figures}])

    def _first_round(self, refinement: HalfSetRefinement, outcome: SearchOutcome, background: Tensor) -> "_KeptRounds":
        refinement.set_noise(background)
        start = low_pass_volume(outcome.volume, COMMON_RADIUS_PX)
        radius = min(self.plan.max_radius_px, GLOBAL_MAX_RADIUS_PX)
        self._round_number = 0
        pair = refinement.global_round((start, start), background, radius, GLOBAL_STEP_DEG,
                                       min(GLOBAL_RADIUS_PX, radius))
        return _KeptRounds.of(refinement.poses, pair, [self._round_figures(pair, radius, None)])

    def _next_round(self, refinement: HalfSetRefinement, kept: "_KeptRounds") -> "_KeptRounds":
        self._round_number = len(kept.rounds)
        before, radius = refinement.poses.best()[0].clone(), next_radius_px(kept.pair(), self.plan.max_radius_px)
        pair = refinement.local_round(_outlined(kept.pair()), radius)
        figures = self._round_figures(pair, radius, pose_change_deg(before, refinement.poses.best()[0]))
        self._show_pair(pair)
        return _KeptRounds.of(refinement.poses, pair, [*kept.rounds, figures])

    @staticmethod
    def _goes_on(rounds: list[dict]) -> bool:
        """Until two rounds in a row bring no shell more."""
        if len(rounds) <= MIN_ROUNDS:
            return True
        radii = [figures["resolution_radius_px"] for figures in rounds]
        return len(rounds) <= MAX_ROUNDS and max(radii[-2:]) > max(radii[:-2])

    def _round_figures(self, pair: HalfMapPair, radius: float, change_deg: float | None) -> dict:
        figures = {"max_radius_px": radius, "resolution_radius_px": pair.resolution_radius_px,
                   "resolution_angstrom": self._extent_angstrom / pair.resolution_radius_px,
                   "pose_change_deg": change_deg}
        change = "" if change_deg is None else f", poses moved by {change_deg:.2f} degrees (median)"
        logger.info("half maps agree to %.3g A (shell %.0f)%s", figures["resolution_angstrom"],
                    pair.resolution_radius_px, change)
        return figures

    @property
    def _extent_angstrom(self) -> float:
        return self.plan.particles.box_size_px * self.plan.particles.pixel_size_angstrom

    def _show_round(self, done: float, label: str) -> None:
        rounds = MAX_ROUNDS + 2
        # the first, global round takes as long as three others
        before = 0 if self._round_number == 0 else 2 + self._round_number
        length = 3 if self._round_number == 0 else 1
        # further ones, of a map that half a turn lays nearly on itself, are not foreseen
        self.live.show(min(0.99, (before + length * done) / (rounds + 2)), f"round {self._round_number + 1}: {label}")

    def _show_pair(self, pair: HalfMapPair) -> None:
        box = len(pair.reference[0])
        self.live.map(pair.mean_reference, self._extent_angstrom / box,
                      {"half maps": pair.fsc}, self._extent_angstrom / pair.resolution_radius_px)

    # ---------------------------------------------------------------- network
    def _left_out(self, outcome: SearchOutcome, pair: HalfMapPair) -> frozenset[str]:
        """The stages that the user skips; where there is nothing to refine, network and last matching."""
        if outcome.found_structure or pair.resolution_radius_px >= self._gained_radius_px:
            return frozenset(self.config.skip)
        logger.warning("Neither images that the search had not seen nor the half maps show a structure: the network and "
                       "the last matching are left out.")
        return frozenset(self.config.skip) | {"distillation", "refinement"}

    def _network(self, refinement: HalfSetRefinement) -> tuple[PoseEstimate | None, dict]:
        if "distillation" in self.skipped:
            return None, {}
        answers = self._kept("network", NetworkAnswers, lambda: self._train(refinement))
        return answers.estimate, answers.figures

    def _train(self, refinement: HalfSetRefinement) -> NetworkAnswers:
        spent = sum(self.live.seconds.values()) / 60
        minutes = self.config.train_minutes or max(MIN_TRAIN_MINUTES, TRAIN_SHARE_OF_TIME_SPENT * spent)
        logger.info("training the network for %.1f minutes", minutes)
        self.live.show(0.01, f"training for {minutes:.1f} minutes; the curve is in the report at the end")
        return train_on_poses(self.plan, self.run, self._posterior(refinement.poses), minutes)

    def _poses(self, refinement: HalfSetRefinement) -> Poses:
        quaternion, displacement_px = refinement.poses.best()
        return Poses(quaternion, -displacement_px * self.plan.particles.pixel_size_angstrom)

    def _posterior(self, poses: PoseTable) -> PosePosterior:
        return PosePosterior(poses.quaternion, -poses.displacement_px * self.plan.particles.pixel_size_angstrom,
                             poses.weight, poses.information)

    # ---------------------------------------------------------------- end
    def _final(self, refinement: HalfSetRefinement, pair: HalfMapPair, answers: PoseEstimate | None) -> FinalOutcome:
        found_again, learnt = [], None
        if "refinement" in self.skipped:
            matched, explained = self._unmatched(refinement, pair, answers)
        else:
            matching, pair, found_again = self._match_finally(refinement, pair, answers)
            matched, learnt = matching.learn(self._shown_as("learning errors"))
            pair = self._rebuilt(refinement, pair, "last maps")
            matched = self._as_believed_now(refinement, matched, learnt)
            explained = refinement.explained(pair, COMMON_RADIUS_PX)
        said = answers or PoseEstimate(torch.from_numpy(matched["quaternion"]), torch.from_numpy(matched["bingham"]),
                                       torch.from_numpy(matched["shift_angstrom"]))
        matched["network_quaternion"] = said.quaternion.cpu().numpy()
        matched["network_eigenvalues"] = torch.linalg.eigvalsh(said.bingham).cpu().numpy()
        arrays = finalise(matched, self.plan.group.cpu(), learnt and learnt.model, self.config.coverage)
        return FinalOutcome(arrays, pair, explained, learnt, found_again)

    def _unmatched(self, refinement: HalfSetRefinement, pair: HalfMapPair, answers: PoseEstimate | None
                   ) -> tuple[dict[str, np.ndarray], float]:
        """The rounds' poses as they are, or what the network alone says, with nothing known about their errors; and what
        the half maps explain."""
        explained = refinement.explained(pair, COMMON_RADIUS_PX)
        pixel_size_angstrom = self.plan.particles.pixel_size_angstrom
        if answers is not None:
            refinement.poses = PoseTable.of(answers.quaternion.to(self.plan.device),
                                            -answers.shift_angstrom.to(self.plan.device) / pixel_size_angstrom)
        (quaternion, displacement_px), n = refinement.poses.best(), len(refinement.halves)
        nothing = np.full(n, np.nan, dtype=np.float32)
        flat = np.broadcast_to(np.eye(4, dtype=np.float32), (n, 4, 4)).copy()
        return {"quaternion": quaternion.cpu().numpy(), "bingham": flat, "fit": nothing, "residual": nothing,
                "searched": np.zeros(n, dtype=bool),
                "shift_angstrom": -displacement_px.cpu().numpy() * pixel_size_angstrom}, explained

    def _match_finally(self, refinement: HalfSetRefinement, pair: HalfMapPair, answers: PoseEstimate | None
                       ) -> tuple[FinalMatching, HalfMapPair, list[float]]:
        """All particles matched; the maps that they were matched to; what each matching found again.

        Maps that held many lost poses are better without them, and errors learnt with the poorer maps are not those of
        the end (``docs/decisions/0043-second-final-matching.md``): then all are matched to the better maps once more.
        """
        matching = self._all_matched(refinement, pair, answers, "matching all")
        found_again = [matching.found_again]
        logger.info("%.1f %% of the images are particles whose pose was lost before", 100 * found_again[0])
        if found_again[0] > FEW_LOST:
            pair = self._rebuilt(refinement, pair, "maps with the poses that were found")
            matching = self._all_matched(refinement, pair, answers, "matching all again")
            found_again.append(matching.found_again)
        return matching, pair, found_again

    def _all_matched(self, refinement: HalfSetRefinement, pair: HalfMapPair, answers: PoseEstimate | None, part: str
                     ) -> FinalMatching:
        """Each half set is kept as it ends."""
        return FinalMatching(self.plan, refinement, _outlined(pair), answers, self._shown_as(part),
                             lambda half, compute: self._kept_state(f"{part} {half}", compute))

    def _rebuilt(self, refinement: HalfSetRefinement, pair: HalfMapPair, part: str) -> HalfMapPair:
        """Half maps from the poses as they have become, then those of a local round against them."""
        show = self._shown_as(part)
        refinement.progress = lambda done, label: show(done)
        pair = refinement.reconstruct(pair.noise_spectrum, next_radius_px(pair, self.plan.max_radius_px))
        return refinement.local_round(_outlined(pair), next_radius_px(pair, self.plan.max_radius_px))

    def _shown_as(self, part: str) -> Callable[[float], None]:
        """Shows how much of a part of the last stage is done."""
        parts = list(FINAL_SHARES)
        before, whole = sum(FINAL_SHARES[name] for name in parts[:parts.index(part)]), sum(FINAL_SHARES.values())
        return lambda done: self.live.show((before + FINAL_SHARES[part] * done) / whole, part)

    def _as_believed_now(self, refinement: HalfSetRefinement, matched: dict, learnt: Calibration) -> dict:
        """The poses of the round after the last matching, and what is believed about them.

        That is the round's, too: the maps that images were matched to before, brought to the images' amplitude with their
        noise, know the poses too well (``docs/decisions/0045-pose-errors.md``). The errors were learnt with the spreads as
        they were stated before: in that unit they stay, so that the median is the same.
        """
        poses, information = self._poses(refinement), refinement.poses.information.double()
        deviation = torch.linalg.eigvalsh(information).clamp_min(0.1).rsqrt().float()
        before, now = (float(np.median(np.linalg.norm(spread, axis=1))) for spread in (
            matched["local_deviation_rad"], deviation.cpu().numpy()))
        logger.info("errors are %.2f times what the last round says, from %s", learnt.model.scale * before / now,
                    learnt.source)
        bingham = bingham_from_information(poses.quaternion, information.float() * (now / before) ** 2)
        return matched | {"quaternion": poses.quaternion.cpu().numpy(),
                          "shift_angstrom": poses.shift_angstrom.cpu().numpy(), "bingham": bingham.cpu().numpy(),
                          "local_deviation_rad": deviation.cpu().numpy() * (before / now)}

    def _write(self, arrays: dict[str, np.ndarray]) -> HalfMaps:
        plan, particles = self.plan, self.plan.particles
        poses = Poses(torch.from_numpy(arrays["quaternion"]).float(), torch.from_numpy(arrays["shift_angstrom"]).float())
        maps = reconstruct_halves(replace(particles, poses=poses), plan.images.transforms, self.halves,
                                  plan.group, plan.max_radius_px, plan.mask_radius_px, device=plan.device)
        write_half_maps(self.run, maps, particles.pixel_size_angstrom)
        write_predictions(self.run, particles, arrays, {"rlnRandomSubset": self.halves.astype(int)})
        self.live.map(maps.both, particles.pixel_size_angstrom, {"half maps": maps.fsc}, self._resolution(maps))
        return maps

    def _write_reference(self, pair: HalfMapPair) -> None:
        """The map that further particles are matched to, in place of that of the network's labels, which is older."""
        volume = _outlined(pair).mean_reference
        write_map(self.run.checkpoint / REFERENCE, volume.cpu().numpy(), self._extent_angstrom / len(volume))

    def _resolution(self, maps: HalfMaps) -> float:
        return resolution_angstrom(maps.fsc, self.plan.particles.box_size_px, self.plan.particles.pixel_size_angstrom)

    def _summary(self, outcome: SearchOutcome, final: FinalOutcome, maps: HalfMaps, rounds: list[dict],
                 figures: dict) -> dict:
        resolution, explained = self._resolution(maps), final.explained
        problems = self._problems(outcome, final.pair, explained, self._extent_angstrom / resolution)
        reason = " ".join(problems) or (
            f"Two half sets, refined apart, agree to {resolution:.3g} A, beyond the {self._common_angstrom:.3g} A of "
            "their common start, and held-out images confirm the structure.")
        return {"converged": not problems, "converged_reason": reason, "resolution_angstrom": resolution,
                "method": "hybrid", "symmetry": self.plan.symmetry, "hand": outcome.hand,
                "n_particles": len(self.plan.particles), "half_sets": self.halves_source,
                "median_expected_error_deg": float(np.median(final.arrays["expected_error_deg"])),
                "seeds": outcome.starts, "seeds_agreement_deg": outcome.agreement_deg,
                "held_out_structure": outcome.structure, "held_out_structure_error": outcome.structure_error,
                "symmetry_score": outcome.symmetry_score, "sampled_fraction": final.pair.sampled_fraction,
                "explained_fraction": explained if math.isfinite(explained) else None,
                "rounds": rounds, "near_half_turn": rounds[-1].get("near_half_turn"),
                "found_again_fraction": final.found_again,
                "stages": {name: round(s, 1) for name, s in self.live.seconds.items()},
                "search_seconds": round(self.live.seconds["search"], 1), **figures, **self.plan.state.to_dict()}

    @property
    def _common_angstrom(self) -> float:
        return self._extent_angstrom / COMMON_RADIUS_PX

    @property
    def _gained_radius_px(self) -> float:
        """What half maps reach at least that have found something which their common start did not hold."""
        return min(COMMON_RADIUS_PX + MIN_SHELLS_GAINED, self.plan.max_radius_px - 1)

    def _problems(self, outcome: SearchOutcome, pair: HalfMapPair, explained: float,
                  resolution_radius_px: float) -> list[str]:
        problems = []
        if not outcome.found_structure:
            problems.append(f"Images that the search had not seen fit its map no better than a featureless ball "
                            f"(log-evidence {outcome.structure:.2f} +- {outcome.structure_error:.2f} per image).")
        if resolution_radius_px < self._gained_radius_px:
            problems.append(f"The half maps agree to {self._extent_angstrom / resolution_radius_px:.3g} A only, hardly "
                            f"beyond their common start ({self._common_angstrom:.3g} A).")
        if explained < MIN_EXPLAINED_FRACTION:
            problems.append(f"Beyond {self._common_angstrom:.3g} A the half maps explain {max(explained, 0.0):.0%} of what "
                            "they should in the images of the other half: they agree in a wrong map. "
                            "Run again with another --seed, more --seeds or more --search-steps.")
        if pair.sampled_fraction < MIN_SAMPLED_FRACTION:
            problems.append(f"The views reach {pair.sampled_fraction:.0%} of the map's frequencies: the images show the "
                            "particle from too few sides.")
        if outcome.symmetry_score is not None and outcome.symmetry_score < NO_SYMMETRY_BELOW:
            problems.append(f"The map that was found without symmetry has none of {self.plan.symmetry} (it agrees with its "
                            f"symmetrised copy to {outcome.symmetry_score:.2f}): use c1, or the right group.")
        # of two starts one may fail; where three find three maps the data do not choose
        if len(outcome.starts) > 2 and outcome.agreement_deg > AGREE_WITHIN_DEG:
            problems.append(f"No two starts found the same map (best agreement {outcome.agreement_deg:.0f} degrees).")
        return problems


@dataclass(frozen=True)
class _KeptRounds:
    """What the rounds leave; plain tensors and numbers."""

    quaternion: Tensor
    displacement_px: Tensor
    score: Tensor
    weight: Tensor
    information: Tensor
    raw_first: Tensor
    raw_second: Tensor
    reference_first: Tensor
    reference_second: Tensor
    fsc: Tensor
    noise_spectrum: Tensor
    sampled_fraction: float
    rounds: list[dict]

    @classmethod
    def of(cls, poses: PoseTable, pair: HalfMapPair, rounds: list[dict]) -> "_KeptRounds":
        return cls(poses.quaternion, poses.displacement_px, poses.score, poses.weight, poses.information, *pair.raw,
                   *pair.reference, pair.fsc, pair.noise_spectrum, pair.sampled_fraction, rounds)

    def put_into(self, refinement: HalfSetRefinement, background: Tensor) -> None:
        refinement.poses = PoseTable(self.quaternion, self.displacement_px, self.score, self.weight, self.information)
        refinement.set_noise(background, self.noise_spectrum)

    def pair(self) -> HalfMapPair:
        return HalfMapPair((self.raw_first, self.raw_second), (self.reference_first, self.reference_second), self.fsc,
                           self.noise_spectrum, self.sampled_fraction)


def estimated_seconds(plan: AbInitioPlan) -> float:
    """How long a run takes, from what runs took (``benchmarks/RESULTS.md``, Ab initio): the search's steps cost the
    same for any set, the rest grows with the images, those that errors are learnt from included, and with the square of
    the box."""
    config, n = plan.config, len(plan.particles)
    cores = torch.get_num_threads() if plan.device.type == "cpu" else CORES_OF_A_GPU
    search = SECONDS_OF_A_SEARCH_STEP * config.search_steps * config.seeds
    images = SECONDS_OF_AN_IMAGE * n + SECONDS_OF_A_KNOWN_IMAGE * n_simulated(n, config.coverage)
    without_network = (search + images * max(1.0, (plan.particles.box_size_px / 64) ** 2)) / cores
    if "distillation" in config.skip:
        return without_network
    minutes = config.train_minutes or max(MIN_TRAIN_MINUTES, TRAIN_SHARE_OF_TIME_SPENT * without_network / 60)
    return without_network + 60 * minutes


def _outlined(pair: HalfMapPair) -> HalfMapPair:
    """Without solvent, once the half maps agree in an outline that is not that of their common start."""
    return pair.without_solvent() if pair.resolution_radius_px > COMMON_RADIUS_PX + 3 else pair
