"""Names and limits that command line, files, reports and Scipion's forms share: each is written here and nowhere else.

``script/engine_names.py`` writes what the Scipion plugin, which cannot import this package, shows of them. Nothing here
imports more than Python itself.

To add a kind of junk: its record in ``JUNK`` (and in ``SIMULATED_JUNK`` where ``simulate`` makes it), how images of it
are made for the classifier in ``junk/simulation.py``, and how ``simulate`` makes them in ``particles/simulate.py``.
To add an encoder: its record in ``ENCODERS``, and its layers in ``model/encoder.py``.
Then run ``python script/engine_names.py``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# -- choices without a record of their own, in the order in which --help shows them

LOSSES = ("pairwise-to-own", "own", "pairwise", "chordal")
POOLINGS = ("auto", "gem", "average", "max", "flatten")
ACTIVATIONS = ("auto", "prelu", "relu", "silu")
PRECISIONS = ("auto", "float32", "bfloat16")
HALF_SETS = ("all", "1", "2")
REFINEMENTS = ("none", "local", "adaptive")
AB_INITIO_METHODS = ("hybrid", "end-to-end")
CONTRASTS = ("auto", "bright", "dark")
CTF_STATES = ("auto", "raw", "phase-flipped", "multiplied", "none")


# -- junk

NOT_A_PARTICLE, OVERLAP, OFF_CENTRE, OTHER_OBJECT = (
    "not-a-particle", "overlapping-neighbour", "off-centre", "another-object")
AMBIGUOUS, BEYOND_LIMIT, NO_REASON = "ambiguous-orientation", "error-beyond-limit", "none"


@dataclass(frozen=True)
class Reason:
    """Why an image can be left out: because it is junk of some kind, or for its orientation."""

    label: str
    """In rlnCryoforumReason, and on the command line (``--reasons``)."""
    meaning: str
    remedy: str
    question: str | None = None
    """Label in Scipion's form, where one can choose it."""
    form_name: str | None = None
    """Name of that parameter, under which Scipion's projects keep the choice."""
    is_junk: bool = True


# in the order of the classifier's output
JUNK = (
    Reason(NOT_A_PARTICLE, "No signal above the noise, or signal that does not look like a particle: ice contamination, "
           "carbon, an edge, or an empty image.", "Leave it out.", "Images without a particle?", "rejectNoParticle"),
    Reason(OVERLAP, "The particle matches, but a neighbour overlaps it.", "Leave it out, or mask tightly.",
           "Overlapping neighbours?", "rejectOverlap"),
    Reason(OFF_CENTRE, "Nothing matches at the centre of the box; a particle lies off-centre.",
           "Extract it again with the origins of recentre.star.", "Off-centre particles?", "rejectOffCentre"),
    Reason(OTHER_OBJECT, "There is an object at the centre, but it is not this molecule in any orientation.",
           "Reconstruct these to see whether they are another conformation or another molecule.", "Other objects?",
           "rejectOtherObject"),
)
OTHER_REASONS = (
    Reason(AMBIGUOUS, "A good match, but another orientation is about as likely. This is not junk.",
           "Keep it unless errors must be small; the other orientation is in orientation_posterior.npz "
           "(alternative_quaternion).",
           "Ambiguous orientations?", "rejectAmbiguous", is_junk=False),
    Reason(BEYOND_LIMIT, "A good match, but its expected error is above the limit that was set.",
           "Keep it if a map at lower resolution is enough.", is_junk=False),
)
REASONS = {reason.label: reason for reason in (*JUNK, *OTHER_REASONS)}
JUNK_REASONS = tuple(reason.label for reason in JUNK)
CHOSEN_REASONS = tuple(label for label, reason in REASONS.items() if reason.form_name)


@dataclass(frozen=True)
class SimulatedJunk:
    """A kind of junk that ``simulate`` makes."""

    name: str
    """In ``--junk-kinds`` and rlnCryoforumJunkKind."""
    reason: str
    """What the classifier should call it."""
    meaning: str


# simulated images take their kinds in this order: another one would change the images of a seed
SIMULATED_JUNK = {kind.name: kind for kind in (
    SimulatedJunk("noise", NOT_A_PARTICLE, "noise without a particle"),
    SimulatedJunk("off-centre", OFF_CENTRE, "the particle lies far from the centre of the box"),
    SimulatedJunk("overlap", OVERLAP, "a second particle overlaps the first"),
    SimulatedJunk("other-molecule", OTHER_OBJECT, "a particle of another molecule"),
    SimulatedJunk("blank", NOT_A_PARTICLE, "constant image (all pixels equal)"),
    SimulatedJunk("ice", NOT_A_PARTICLE, "ice contamination"),
    SimulatedJunk("carbon-edge", NOT_A_PARTICLE, "edge of the carbon film"),
)}
# columns of a simulated set's truth.star: the kind of junk, and what is known of a session's particles; the state is RELION's
# class
JUNK_KIND_COLUMN = "rlnCryoforumJunkKind"
STATE_COLUMN = "rlnClassNumber"
NEIGHBOUR_COLUMN = "rlnCryoforumNeighbour"
NOISE_LEVEL_COLUMN = "rlnCryoforumNoiseLevel"
# those of a simulated set by default: a clean one, and one like a microscope session
JUNK_KINDS = ("noise", "off-centre", "overlap", "other-molecule", "blank")
SESSION_JUNK_KINDS = ("noise", "overlap", "ice", "carbon-edge")


# -- networks

@dataclass(frozen=True)
class Encoder:
    """The part of a network that reads the image, and what its paper, or our measurement
    (``docs/decisions/0020-polar-encoder.md``), chose for it."""

    name: str
    meaning: str
    pooling: str | None
    """None where there is none to choose."""
    activation: str
    width: int
    """Channels of the first block."""
    gpu_width: int
    """A GPU has the time for a larger network than minutes on a CPU."""
    learning_rate: float = 3e-3
    end_to_end_learning_rate: float = 1e-3
    """of training without labels, together with a map"""


ENCODERS = {encoder.name: encoder for encoder in (
    Encoder("polar", "convolutions in polar coordinates about the particle's centre, which it finds itself; equivariant to "
            "in-plane rotation and mirroring, so it needs the least training", None, "relu", width=64, gpu_width=128,
            learning_rate=6e-3, end_to_end_learning_rate=3e-3),
    Encoder("compact", "a plain, fast convolutional network", "flatten", "relu", width=24, gpu_width=64),
    Encoder("cryoforum", "low-pass filter channels and a VGG-like network (Chung 2023)", "gem", "prelu", width=32,
            gpu_width=32),
    Encoder("cryoposenet", "three blocks of 3x3 convolutions (Nashed 2021)", "flatten", "relu", width=32, gpu_width=32),
)}


@dataclass(frozen=True)
class Head:
    """A rotation parametrisation: the numbers from which the network's rotation is made."""

    name: str
    meaning: str


HEADS = {head.name: head for head in (
    Head("qcqp", "a symmetric 4x4 matrix: the eigenvector of its smallest eigenvalue is the rotation, its eigenvalues give "
         "the uncertainty (Chung 2023)"),
    Head("qcqp-psd", "the same, with a positive semi-definite matrix"),
    Head("s2s2", "two 3-vectors, made orthonormal (Nashed 2021)"),
    Head("quaternion", "a quaternion"),
    Head("euler", "three Euler angles"),
)}


def meanings(records: Mapping[str, Encoder | Head | SimulatedJunk]) -> str:
    """``name: meaning; name: meaning`` for a help text."""
    return "; ".join(f"{name}: {record.meaning}" for name, record in records.items())


# -- measures of trust

PARTICLE_PROBABILITY, MATCH_SCORE, EXPECTED_ERROR, ERROR_BOUND = (
    "particle-probability", "match-score", "expected-error", "error-bound")


@dataclass(frozen=True)
class Measure:
    """A number per particle that tells how far its orientation can be trusted. What is computed with it is in
    ``selection/measures.py``."""

    name: str
    """On the command line."""
    label: str
    column: str
    """Its name in STAR files."""
    higher_is_better: bool
    unit: str = ""
    usual_limit: float | None = None
    """What hardly any usual particle is worse than, where the measure has a scale of its own."""
    own_limit: float | None = None
    """The limit that the measure's own meaning sets, whatever its distribution."""

    def quality(self, values):
        """Higher is better, whatever the measure."""
        return values if self.higher_is_better else -values

    def text(self, value: float) -> str:
        return f"{value:.4g}{' ' if self.unit else ''}{self.unit}"


MEASURES = {measure.name: measure for measure in (
    Measure(PARTICLE_PROBABILITY, "particle probability", "rlnCryoforumParticleProbability", True, own_limit=0.5),
    Measure(MATCH_SCORE, "match score", "rlnCryoforumMatchScore", True, usual_limit=-4.0),
    Measure(EXPECTED_ERROR, "expected error", "rlnCryoforumExpectedError", False, "degrees"),
    Measure(ERROR_BOUND, "error bound", "rlnCryoforumErrorBound", False, "degrees"),
    Measure("figure-of-merit", "figure of merit", "rlnCryoforumFigureOfMerit", True),
    Measure("dispersion-max", "largest dispersion", "rlnCryoforumDispersionMax", False),
    Measure("dispersion-trace", "sum of dispersions", "rlnCryoforumDispersionTrace", False),
    Measure("dispersion-wigner", "Wigner log-likelihood of the dispersions", "rlnCryoforumDispersionWigner", False),
)}


# -- limits

@dataclass(frozen=True)
class Limit:
    """A limit used by the program, and why it has this value."""

    value: int | float
    reason: str


DEFAULT_COVERAGE = Limit(0.9, "one particle in ten may exceed its bound; 100 known particles are enough to calibrate it")
LARGEST_FORM_COVERAGE = Limit(0.999, "the form's highest; a bound for more would need thousands of known particles")
FEWEST_KNOWN = Limit(100, "with fewer, the empirical coverage of a bound for 90 % is known to no better than 3 %")
KNOWN_PER_ODDS = Limit(1.25, "from fewer than c / (1 - c) known particles no bound for a coverage c follows; a quarter more "
                       "for the models that are cross-validated on a part of them")
AB_INITIO_PARTICLES = Limit(200, "fewer images determine no map at the noise of electron micrographs")
LABELLED_PARTICLES = Limit(50, "a map is made of them, and a part is held out to test the network")
JUNK_PARTICLES = Limit(60, "of fewer images the shares of the kinds of junk cannot be estimated")
MAP_GROUPS = Limit(16, "subsets are compared in steps of one sixteenth of the set")
MAP_PARTICLES = Limit(160, "ten particles in each of the sixteen groups of which maps are made")
NETWORK_BOX_PX = Limit(16, "the smallest box that every encoder is built for")
STARTS_AGREE_DEG = Limit(20.0, "within this median angle two searches found the same map")


def fewest_known(coverage: float) -> int:
    """Fewest particles with known poses from which an error bound of this ``coverage`` (0 to 1) can be calibrated."""
    return max(FEWEST_KNOWN.value, math.ceil(KNOWN_PER_ODDS.value * coverage / (1 - coverage)))
