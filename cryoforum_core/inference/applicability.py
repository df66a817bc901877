"""Whether a model applies to a set of particles, and if not, why: from the images themselves.

The log-likelihood that the map gains in a sample of the images is compared with its gain in simulated images of the map
itself (the expected gain) and with the gain of a scrambled map (chance). The right map gains about what is expected;
another molecule's gains no more than chance. Where it gains too little, the same images are matched under other assumptions
(contrast, CTF, pixel size); one that reaches the expected gain is the cause. The hand cannot be tested: a map and its mirror
image have the same projections.
"""

import logging
import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..imaging.fourier import ifft_image, radius_px
from ..imaging.masks import soft_circle
from ..particles.image_preparation import ImagePreparation
from ..particles.image_state import ImageState
from .sample_matching import Assumption, Gain, SampleMatching

logger = logging.getLogger("cryoforum")

Cause = Literal["none", "noise-only", "contrast", "ctf-state", "pixel-size", "another-molecule", "poses",
                "symmetry"]

# images of the first sample
N_SAMPLE = 96
# of the second one, where the first cannot decide
N_LARGEST_SAMPLE = 512
# images whose power in the middle is compared with that in the corners
N_FOR_EXCESS = 512
# Gain over the expected gain, both above chance: right maps 1.03 to 1.26, more where the background holds delocalised
# signal; other molecules of the same size -0.02 to 0.03, with delocalised signal 0.36 (SNR 0.05 and 0.1).
MIN_RELATIVE_GAIN = 0.5
# in standard deviations of a mean over the sample: by chance once in 30,000 sets
SIGNIFICANT = 4.0
# significance of the power within the particle's circle above that in the corners
EXCESS_ABOVE = 4.0
# smaller errors of the pixel size are within what a sample of this size can measure
PIXEL_SIZE_TOLERANCE = 0.025
# pixel sizes that are tried, over the one stated: what calibrations are off by
PIXEL_SIZE_FACTORS = (0.9, 0.95, 1.0, 1.05, 1.1)
# regressed amplitude over that of the images' power: below, the poses are wrong
EXPLAINED_AMPLITUDE_ABOVE = 0.6
# without the lowest, which subtracting a background empties in the corners, up to where particles have most power
_EXCESS_SHELLS = (1.5, 12.0)
# radius of the middle, in boxes
_INSIDE = 0.3
# radius beyond which corners begin, in boxes
_OUTSIDE = 0.42


@dataclass(frozen=True)
class Applicability:
    """Whether a model applies; else what is wrong (``cause``) and, in a sentence, what was found and what to do."""

    applies: bool
    cause: Cause
    reason: str
    figures: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict:
        """As ``summary.json`` has it."""
        return {"model_applies": self.applies, "model_applies_cause": self.cause, "model_applies_reason": self.reason,
                **self.figures}


def assess(images: ImagePreparation, volume: Float[Tensor, "b b b"], group: Float[Tensor, "g 4"], max_radius_px: float,
           max_displacement_px: float, seed: int = 0) -> Applicability:
    """Whether a map, on the grid of ``images``, is that of the particles, all settings being right."""
    draw = np.random.default_rng([seed, 0xA1]).permutation(len(images.particles))
    excess = excess_z(images, np.sort(draw[:N_FOR_EXCESS]))
    if excess < EXCESS_ABOVE:
        return Applicability(False, "noise-only", _NOISE_ONLY, {"signal_excess_z": excess})

    def assessment(n: int) -> _Assessment:
        sample = SampleMatching(images, np.sort(draw[:n]), volume, group, max_radius_px, max_displacement_px, seed)
        return _Assessment(sample, excess)

    first = assessment(N_SAMPLE)
    wanted = min(first.images_wanted(), len(draw), N_LARGEST_SAMPLE)
    return (assessment(wanted) if wanted > 1.2 * len(first.sample.rows) else first).result()


_NOISE_ONLY = ("the images have no more power where the particle should be than in the corners: noise only, or a particle "
               "that fills the box. Check the picking and the box, or leave these images out")


def excess_z(images: ImagePreparation, rows: Int[np.ndarray, " n"]) -> float:
    """How significantly images hold more power in their middle than in their corners: a t score over the images.

    Stationary noise of any spectrum has the same variance everywhere. The lowest shells are left out: subtracting the
    background's mean or slope empties them in the corners.
    """
    device, box = images.device, images.box_size_px
    radius = radius_px(box, device)
    band = (radius > _EXCESS_SHELLS[0]) & (radius <= min(_EXCESS_SHELLS[1], box / 2 - 1))
    inside = soft_circle(box, _INSIDE * box, 0.0, device)
    outside = 1 - soft_circle(box, _OUTSIDE * box, 0.0, device)
    excess = []
    for part in np.array_split(rows, -(-len(rows) // 128)):
        power = ifft_image(images.transforms(part)[0] * band).square()
        excess.append((power * inside).sum((1, 2)) / inside.sum() - (power * outside).sum((1, 2)) / outside.sum())
    return significance(torch.cat(excess))


def significance(values: Float[Tensor, " n"]) -> float:
    """Mean of n values over its standard error; 0 where all are 0."""
    spread = float(values.std()) / math.sqrt(len(values))
    return float(values.mean()) / spread if spread > 0 else 0.0


def _typical(gain: Gain) -> float:
    """Mean of the better half: junk, of which many sets have some, must not speak for the particles."""
    return float(gain.per_image.topk(max(1, len(gain.per_image) // 2)).values.mean())


def _apart(first: Gain, second: Gain) -> float:
    """Difference of the means over two samples of different images, in standard deviations."""
    a, b = first.per_image, second.per_image
    return float((a.mean() - b.mean()) / torch.sqrt(a.var() / len(a) + b.var() / len(b)).clamp_min(1e-12))


def assess_poses(map_applies: Applicability, explained_amplitude: float) -> Applicability:
    """The assessment of a map that applies, with what it explains of the images at the predicted poses.

    ``explained_amplitude``: the map's amplitude regressed on these, over the one that the images' power asks for.
    """
    figures = map_applies.figures | {"explained_amplitude": explained_amplitude}
    undecided = map_applies.figures["promise_significance"] < SIGNIFICANT
    if explained_amplitude >= EXPLAINED_AMPLITUDE_ABOVE or undecided:
        return replace(map_applies, figures=figures)
    return Applicability(False, "poses", "the map fits these particles when their poses are searched for, but explains only "
                         f"{100 * explained_amplitude:.0f} % of the signal's amplitude at the poses found from those of "
                         "the network. Use --refinement adaptive, or train the network longer", figures)


class _Assessment:
    """The steps from the gains of one sample to a result."""

    def __init__(self, sample: SampleMatching, excess: float):
        self.sample = sample
        self.stated, self.expected, self.chance = (sample.stated_gain(), sample.expected_gain(), sample.chance_gain())
        self.figures = {"signal_excess_z": excess, "promise_kept": self.relative_gain(self.stated),
                        "promise_significance": _apart(self.expected, self.chance)}

    def images_wanted(self) -> int:
        """As many as are needed to distinguish the map from a scrambled one, with a margin."""
        significance_of_expected = max(self.figures["promise_significance"], 1.0)
        return math.ceil(len(self.sample.rows) * (2 * SIGNIFICANT / significance_of_expected) ** 2)

    def relative_gain(self, gain: Gain) -> float:
        """The gain over the expected one, both above chance: 1 for the right map, 0 for chance."""
        chance = _typical(self.chance)
        # an expected gain no better than chance decides nothing
        expected = max(_typical(self.expected) - chance, 0.01 * abs(chance), 1e-6)
        return (_typical(gain) - chance) / expected

    def result(self) -> Applicability:
        too_small = self.relative_gain(self.stated) < MIN_RELATIVE_GAIN and _apart(self.expected, self.stated) > SIGNIFICANT
        found = self._cause_of_small_gain() if too_small else self._small_errors()
        return replace(found, figures=self.figures | found.figures)

    def _cause_of_small_gain(self) -> Applicability:
        """Which other assumption reaches the expected gain; another molecule where none does."""
        stated = self.sample.stated.state
        found, best = stated, self.stated
        for state in _other_states(stated):
            gain = self.sample.gain(Assumption(state))
            # simple ones come first: where two are as good (a CTF without zeros has one state), it is the simpler
            if self._is_better(gain, best):
                found, best = state, gain
        if found != stated and self._is_large_enough(best):
            return _wrong_state(stated, found)
        for factor in (PIXEL_SIZE_FACTORS[0], PIXEL_SIZE_FACTORS[-1]):
            gain = self.sample.gain(Assumption(stated, factor))
            if self._is_large_enough(gain):
                return self._pixel_size(gain.poses)
        return Applicability(False, "another-molecule", self._another_molecule())

    def _is_large_enough(self, gain: Gain) -> bool:
        return self.relative_gain(gain) >= MIN_RELATIVE_GAIN and self._is_better(gain, self.stated)

    def _another_molecule(self) -> str:
        return ("the images hold particles, but the map fits them only "
                f"{100 * max(self.relative_gain(self.stated), 0):.0f} % as well as simulated projections of itself "
                "(corrected for chance); no other contrast, CTF state or pixel size does "
                "better: another molecule, or mostly junk. Train a network for these particles, or look at the "
                "example images in the report and remove the junk")

    def _is_better(self, gain: Gain, than: Gain) -> bool:
        return significance(gain.per_image - than.per_image) > SIGNIFICANT

    def _small_errors(self) -> Applicability:
        """What the poses found already tell of CTF and pixel size, where the map is right on the whole."""
        pixel_size = self._pixel_size(self.stated.poses)
        if not pixel_size.applies:
            return pixel_size
        stated = self.sample.local_gain(self.sample.stated, self.stated.poses)
        for state in _other_states(self.sample.stated.state):
            if state.contrast == self.sample.stated.state.contrast:
                other = self.sample.local_gain(Assumption(state), self.stated.poses)
                if self._is_better(other, stated):
                    return _wrong_state(self.sample.stated.state, state)
        return Applicability(True, "none", self._applies(), pixel_size.figures)

    def _applies(self) -> str:
        if self.figures["promise_significance"] < SIGNIFICANT:
            return ("no mismatch was found, but at this noise level a sample of "
                    f"{len(self.sample.rows)} images can hardly distinguish one molecule from another")
        percent = 100 * min(self.relative_gain(self.stated), 1.0)
        return f"the map fits the images {percent:.0f} % as well as simulated projections of itself (corrected for chance)"

    def _pixel_size(self, poses) -> Applicability:
        """The pixel size at which the map fits best, from given poses."""
        state = self.sample.stated.state
        limits = PIXEL_SIZE_FACTORS[0], self.sample.pass_band_px(poses)
        gains = [self.sample.local_gain(Assumption(state, factor), poses, *limits)
                 for factor in PIXEL_SIZE_FACTORS]
        middle = PIXEL_SIZE_FACTORS.index(1.0)
        best = max(range(len(gains)), key=lambda i: float(gains[i].per_image.mean()))
        factor = _peak([float(gain.per_image.mean()) for gain in gains], best)
        pixel_size = factor * self.sample.images.particles.pixel_size_angstrom
        figures = {"estimated_magnification": 1 / factor, "estimated_pixel_size_angstrom": pixel_size}
        if best == middle or abs(factor - 1) < PIXEL_SIZE_TOLERANCE or not self._is_better(gains[best], gains[middle]):
            return Applicability(True, "none", "", figures)
        fixed = self.sample.local_gain(Assumption(state, PIXEL_SIZE_FACTORS[best], ctf_follows=False), poses, *limits)
        whose = significance(gains[best].per_image - fixed.per_image)
        return Applicability(False, "pixel-size", self._pixel_size_reason(factor, whose), figures)

    def _pixel_size_reason(self, factor: float, whose: float) -> str:
        stated = self.sample.images.particles.pixel_size_angstrom
        particles = (f"the particles' is wrong: correct it (rlnImagePixelSize, or --pixel-size-angstrom "
                     f"{stated * factor:.3g})")
        map_ = f"the map's is wrong: multiply the one in its header by {1 / factor:.3f}, and train again"
        if abs(whose) < SIGNIFICANT:
            advice = f"either {particles}, or {map_}"
        else:
            advice = f"by their CTFs, {particles if whose > 0 else map_}"
        return (f"the particles fit the map best with pixels of {stated * factor:.3g} A, {factor:.3f} times the "
                f"{stated:.4g} A stated; {advice}")


def _peak(values: list[float], best: int) -> float:
    """The factor at the top of the parabola through the best value and its neighbours."""
    step = PIXEL_SIZE_FACTORS[1] - PIXEL_SIZE_FACTORS[0]
    if not 0 < best < len(values) - 1:
        return PIXEL_SIZE_FACTORS[best]
    left, middle, right = values[best - 1:best + 2]
    return PIXEL_SIZE_FACTORS[best] + step * 0.5 * (left - right) / min(left - 2 * middle + right, -1e-12)


def _other_states(state: ImageState) -> list[ImageState]:
    """States that differ in one thing, then those that differ in two."""
    contrasts = (state.contrast, "dark" if state.contrast == "bright" else "bright")
    # of all states only the signs differ here: those of multiplied images are those of flipped ones
    ctf_states = (state.ctf_state, "phase-flipped" if state.ctf_state == "raw" else "raw")
    return [replace(state, contrast=contrast, ctf_state=ctf_state) for contrast, ctf_state in (
        (contrasts[1], ctf_states[0]), (contrasts[0], ctf_states[1]), (contrasts[1], ctf_states[1]))]


def _wrong_state(stated: ImageState, found: ImageState) -> Applicability:
    wrong = []
    if found.contrast != stated.contrast:
        wrong.append(f"protein is {found.contrast} in these images, not {stated.contrast}: give --contrast "
                     f"{found.contrast}")
    if found.ctf_state != stated.ctf_state:
        right = "raw" if found.ctf_state == "raw" else "phase-flipped (or multiplied, if so)"
        was = "not flipped" if found.ctf_state == "raw" else "flipped (or multiplied by the CTF) already"
        wrong.append(f"the CTF's phases are {was}, and the images were taken as {stated.ctf_state}: give --ctf-state "
                     f"{right}")
    cause = "contrast" if found.contrast != stated.contrast else "ctf-state"
    return Applicability(False, cause, "; ".join(wrong))
