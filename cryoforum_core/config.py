"""The options of each job. These models define the command line: one field, one flag.

Every model is frozen; a field's unit is in its name. Relations between files (does the map fit the particles?) are
checked by the job, which can open them; what a single value must be is checked here.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from . import catalogue
from .session_config import DEFAULTS_LIKE, SessionConfig

JunkKind = Literal[*catalogue.SIMULATED_JUNK]
JUNK_KINDS: tuple[JunkKind, ...] = catalogue.JUNK_KINDS

JunkReason = Literal[*catalogue.JUNK_REASONS]
AMBIGUOUS_REASON = catalogue.AMBIGUOUS
RejectedReason = Literal[*catalogue.CHOSEN_REASONS]
JUNK_REASONS: tuple[JunkReason, ...] = catalogue.JUNK_REASONS

EncoderName = Literal[*catalogue.ENCODERS]
HeadName = Literal[*catalogue.HEADS]
MeasureName = Literal["auto", *catalogue.MEASURES]

BenchmarkMethod = Literal["hybrid", "end-to-end", "end-to-end-aided", "per-image", "known"]

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Coverage = Annotated[float, Field(gt=0, lt=1)]
DEFAULT_COVERAGE = catalogue.DEFAULT_COVERAGE.value


class JobConfig(BaseModel):
    """The options of every job."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    out: Path
    """Output directory of the run: a new or empty one or, with --resume, that of the run to continue."""
    device: str = "auto"
    """Device: auto (a GPU if there is one), cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of the random numbers."""
    resume: bool = False
    """Continue the run in --out."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"max_steps", "max_minutes"})
    """Options that may differ when a run is continued: its budget."""


class ImageInputConfig(BaseModel):
    """How to read particle images, shared by the jobs that do."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    contrast: Literal[*catalogue.CONTRASTS] = "auto"
    """Whether protein is brighter or darker than its surroundings; auto: measured on the images and written to the log."""
    ctf_state: Literal[*catalogue.CTF_STATES] = "auto"
    """CTF correction already applied to the images. raw: not corrected; phase-flipped; multiplied: multiplied by the CTF;
    none: the images were simulated without CTF, and CTF columns are not needed; auto: determined from the images."""
    pixel_size_angstrom: PositiveFloat | None = None
    """Pixel size of the images, if the particles' file does not give it."""


class SimulateConfig(JobConfig):
    """Simulates noisy particle images with known poses from a map or an atomic model."""

    job: Literal["simulate"] = "simulate"
    like: Literal["clean", "session"] = "clean"
    """clean: all particles alike, in noise of one spectrum; session: as microscope sessions make them, with differences
    between micrographs and particles, neighbours, a minor state, ice contamination and more (--session.*)."""
    session: SessionConfig = SessionConfig()
    """With --like session:"""
    model: Path | None = None
    """Map (.mrc) or atomic model (.pdb, .cif, also .gz); without one, the 30S ribosome that comes with the package."""
    n_particles: PositiveInt = 1000
    """Number of images, junk included."""
    box_size_px: PositiveInt | None = None
    """Box of the images, even; by default that of the map, or 64 for an atomic model."""
    pixel_size_angstrom: PositiveFloat | None = None
    """Pixel size; by default that of the map, or one that makes an atomic model fill 70 % of the box."""
    snr: PositiveFloat | None = None
    """Variance of the clean images (after CTF) over variance of the noise; inf for none. Default: 0.1 for clean; for
    session, the signal and noise of real micrographs, whatever box and pixel size."""
    ctf: Literal["box", "padded", "none"] | None = None
    """box: the CTF acts on the image's own grid, as in RELION's projections; padded: on a grid of twice the box, cropped
    afterwards, so that signal delocalised out of the box is lost; none: no CTF (1 everywhere). Default: box for clean,
    padded for session."""
    noise: Literal["white", "coloured"] = "white"
    """coloured: nine times the power at low resolution. Not for session, which has --session.noise-colour."""
    defocus_min_angstrom: float = 8000.0
    """Minimum mean defocus; underfocus is positive."""
    defocus_max_angstrom: float = 20000.0
    """Maximum mean defocus."""
    astigmatism_angstrom: Annotated[float, Field(ge=0)] = 300.0
    """Maximum difference between the two defocus values."""
    voltage_kv: PositiveFloat = 300.0
    """Voltage of the microscope. Not for session, which has --session.voltages-kv."""
    spherical_aberration_mm: Annotated[float, Field(ge=0)] = 2.7
    """Spherical aberration of the microscope."""
    amplitude_contrast: Fraction = 0.1
    """Fraction of amplitude contrast."""
    shift_rms_px: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviation of the particle's shift along x and along y."""
    junk_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of junk images. Default: 0 for clean, 0.1 for session."""
    junk_kinds: tuple[JunkKind, ...] | None = Field(
        None, description=f"Kinds of junk, in equal shares. {catalogue.meanings(catalogue.SIMULATED_JUNK)}. Default: for "
                          f"clean {', '.join(JUNK_KINDS)}; for session {', '.join(catalogue.SESSION_JUNK_KINDS)}.")
    other_model: Path | None = None
    """Map or atomic model of the junk kind other-molecule; by default one that comes with the package."""
    preferred_view_fraction: Fraction | None = None
    """Fraction of the particles within --preferred-view-width-deg of one viewing direction. Default: 0 for clean, 0.5 for
    session."""
    preferred_view_width_deg: PositiveFloat = 20.0
    """Radius of the cap of preferred viewing directions."""
    symmetry: str = "c1"
    """Point group of the molecule, written to the summary; poses are drawn from all rotations."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_of_the_scenario(cls, values: dict) -> dict:
        given = {name: value for name, value in values.items() if value is not None}
        return DEFAULTS_LIKE.get(given.get("like", "clean"), {}) | given

    @model_validator(mode="after")
    def _options_are_those_of_the_scenario(self):
        if self.like == "clean" and self.session != SessionConfig():
            raise ValueError("options --session.* need --like session")
        if self.like == "session" and self.noise != "white":
            raise ValueError("--like session has noise of its own; give --session.noise-colour instead of --noise")
        if self.like == "session" and self.voltage_kv != SimulateConfig.model_fields["voltage_kv"].default:
            raise ValueError("--like session has optics groups; give --session.voltages-kv instead of --voltage-kv")
        return self

    @model_validator(mode="after")
    def _defocus_is_a_range(self):
        if self.defocus_min_angstrom > self.defocus_max_angstrom:
            raise ValueError("the smallest defocus must not be above the largest; --defocus-min-angstrom is "
                             f"{self.defocus_min_angstrom:g} and --defocus-max-angstrom {self.defocus_max_angstrom:g}")
        return self


class TrainConfig(JobConfig, ImageInputConfig):
    """Trains a network that predicts orientations, on particles with poses, a reference map, or both."""

    job: Literal["train"] = "train"
    particles: Path
    """STAR or .cs file. Its poses are the labels; with --reference only its CTFs and noise are used."""
    reference: Path | None = None
    """Map to train on: simulated projections with the particles' own CTFs and noise spectrum."""
    from_checkpoint: Path | None = None
    """Network to train further: directory of a train or ab-initio run, or its checkpoint/."""
    symmetry: str = "c1"
    """Point group of the molecule in RELION's notation: c1, c3, d2, t, o, i1, ..."""
    encoder: EncoderName = Field(
        "polar", description=f"Part of the network that processes the image. {catalogue.meanings(catalogue.ENCODERS)}.")
    head: HeadName = Field("qcqp", description=f"Rotation parametrisation. {catalogue.meanings(catalogue.HEADS)}.")
    network_box_size_px: PositiveInt | None = None
    """Images are Fourier-cropped to this box; default: the particles' own, at most 128, and at most 32 on a CPU, where
    many fast steps train better than few slow ones."""
    filter_channels: int = 5
    """Number of low-pass filtered copies of the image that the network gets along with it; 0 for none. Not for the encoder
    cryoposenet, which has none."""
    pooling: Literal[*catalogue.POOLINGS] = "auto"
    """How the last feature maps become one vector; auto: the encoder's own; the encoder polar has no pooling."""
    activation: Literal[*catalogue.ACTIVATIONS] = "auto"
    """Non-linearity between the layers; auto: the encoder's own."""
    width: PositiveInt | None = None
    """Channels of the encoder's first block; default: the encoder's own."""
    dropout: Fraction = 0.0
    """Fraction of the features dropped at random in training."""
    loss: Literal[*catalogue.LOSSES] = "pairwise-to-own"
    """Orientation loss; pairwise-to-own: first the angles between pairs of images, later each image's own error
    (Chung 2023)."""
    bingham_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the Bingham negative log-likelihood, which calibrates the uncertainty in degrees."""
    shift_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the error of the shift."""
    augment: bool = True
    """Augment the images by in-plane rotation, shift, scale and noise, and change the labels accordingly."""
    particle_fraction: Fraction | None = None
    """Fraction of each batch taken from the particles' own images; the rest are simulated projections. Default: one half
    if the poses are the labels (the map is then reconstructed from them), none with --reference."""
    shift_rms_angstrom: PositiveFloat | None = None
    """Standard deviation of the simulated shifts along x and along y; default: 4 % of the box."""
    batch_size: PositiveInt = 128
    """Images per step."""
    max_steps: PositiveInt = 20000
    """Maximum number of training steps."""
    max_minutes: PositiveFloat | None = None
    """Stop after this time; the learning-rate schedule is stretched to end then."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate; default: the encoder's own."""
    precision: Literal[*catalogue.PRECISIONS] = "auto"
    """Number format of the encoder in training; auto: bfloat16 on GPUs and CPUs with AMX, where it is faster, else
    float32."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the particles held out to test the network."""
    patience_evaluations: PositiveInt = 10
    """Stop early after this many evaluations without a lower held-out loss."""
    half_set: Literal[*catalogue.HALF_SETS] = "all"
    """Train on one half set only (rlnRandomSubset)."""


class PredictConfig(JobConfig, ImageInputConfig):
    """Predicts the orientation and shift of every particle, with their uncertainty."""

    job: Literal["predict"] = "predict"
    particles: Path
    """STAR or .cs file."""
    model: Path
    """Trained network: directory of a train or ab-initio run, or its checkpoint/."""
    reference: Path | None = None
    """Map for projection matching; default: the map the network was trained with."""
    refinement: Literal[*catalogue.REFINEMENTS] = "adaptive"
    """none: the network alone; local: Gauss-Newton matching from the network's pose; adaptive: also an exhaustive search
    if the network is uncertain or the match is poor."""
    resolution_angstrom: PositiveFloat | None = None
    """High-resolution limit for matching; default: Nyquist."""
    max_shift_angstrom: PositiveFloat | None = None
    """Maximum shift searched; default: an eighth of the box."""
    symmetry: str | None = None
    """Point group; default: the one the network was trained with."""
    coverage: Coverage = DEFAULT_COVERAGE
    """Nominal coverage of the error bounds: the fraction of particles whose error should be within its bound."""
    calibrate: bool = True
    """Calibrate expected errors and error bounds on your own images, from which the particle is subtracted and replaced by
    a projection of the map in a known pose. If too few poses are certain, or with --refinement none, simulated images with
    your CTFs and noise are used instead. With --no-calibrate, the uncalibrated errors from matching are reported."""
    calibration_particles: Path | None = None
    """Calibrate the errors on these particles instead of on projections. Their poses must be reliable and in the frame of
    the map, and the particles must not have been used for training."""
    batch_size: PositiveInt = 256
    """Number of images processed at once."""


class AbInitioConfig(JobConfig, ImageInputConfig):
    """Makes an initial map, orientations and a trained network from images and their CTF alone."""

    job: Literal["ab-initio"] = "ab-initio"
    particles: Path
    """STAR or .cs file with CTF; its poses, if any, are ignored (except with --poses known)."""
    method: Literal[*catalogue.AB_INITIO_METHODS] = "hybrid"
    """hybrid: searches from random starts, then refinement of half maps, training of a network and final projection
    matching; end-to-end: network and map are trained together from random weights (CryoPoseNet)."""
    symmetry: str = "c1"
    """Point group of the molecule. hybrid searches in c1 first, finds the symmetry axes and imposes the symmetry; if the map
    does not have it, it also searches with the symmetry imposed from the start, and held-out images decide."""
    seeds: PositiveInt = 2
    """Independent searches from different random starts; the best is chosen by held-out likelihood (hybrid)."""
    particle_diameter_angstrom: PositiveFloat | None = None
    """Diameter of the spherical solvent mask; default: 90 % of the box."""
    max_shift_angstrom: PositiveFloat | None = None
    """Maximum shift searched; default: an eighth of the box (hybrid)."""
    resolution_angstrom: PositiveFloat | None = None
    """High-resolution limit of the data used (end-to-end uses it for the final map only); default: Nyquist."""
    hand_reference: Path | None = None
    """Map of the same or a similar molecule with known hand; without it the hand remains undetermined (hybrid)."""
    search_steps: PositiveInt = 400
    """Steps of each search from a random start (hybrid)."""
    train_minutes: PositiveFloat | None = None
    """Training time of the network. Default: half of the time of the preceding stages (hybrid), or as long as --epochs takes
    (end-to-end). Can be changed when a run is resumed, unless the network is already trained."""
    coverage: Coverage = DEFAULT_COVERAGE
    """Nominal coverage of the error bounds: the fraction of particles whose error should be within its bound."""
    skip: tuple[Literal["distillation", "end-to-end", "refinement"], ...] = ()
    """Stages of hybrid to skip, to test what each contributes. refinement: further rounds on the half maps, and the final
    matching; distillation: training of the network; end-to-end: training network and map together at the end of that."""
    poses: Literal["encoder", "per-image", "known"] = "encoder"
    """end-to-end: source of the poses. encoder: the network; per-image: gradient descent on the pose of each image; known:
    the particle file. per-image and known are the baselines of the CryoPoseNet paper."""
    encoder: EncoderName | None = None
    """Encoder, as in train; default: polar for hybrid, cryoposenet for end-to-end."""
    head: HeadName | None = None
    """Rotation parametrisation, as in train; default: qcqp for hybrid, s2s2 for end-to-end."""
    network_box_size_px: PositiveInt | None = None
    """Images are Fourier-cropped to this box for the network; default: as in train."""
    epochs: PositiveInt = 30
    """end-to-end: passes over the images."""
    shifts: bool = True
    """end-to-end: estimate shifts, too; CryoPoseNet's images had none."""
    batch_size: PositiveInt = 128
    """Images per step."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of the network; default: the method's own."""
    symmetric_loss: bool = False
    """end-to-end: encode each image and a copy rotated by 180 degrees, and train on the better prediction (avoids
    mirror-related local minima)."""
    n_heads: PositiveInt = 1
    """end-to-end: hypotheses per image; only the best is trained (winner takes all)."""
    frequency_marching: bool = False
    """end-to-end: start from low frequencies and add higher ones during the training."""
    random_pose_weight: Annotated[float, Field(ge=0)] = 0.0
    """end-to-end: weight of an additional loss: the network must recover the known poses of projections of the current
    map."""
    per_image_after_epoch: PositiveInt | None = None
    """end-to-end: after this many epochs, optimise the pose of each image directly, without the encoder."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"train_minutes"})
    OPTIONS_OF: ClassVar[dict[str, tuple[str, ...]]] = {
        "hybrid": ("seeds", "max_shift_angstrom", "hand_reference", "search_steps", "skip"),
        "end-to-end": ("poses", "epochs", "shifts", "symmetric_loss", "n_heads", "frequency_marching",
                       "random_pose_weight", "per_image_after_epoch")}
    """Options of one method only."""

    @model_validator(mode="after")
    def _options_are_of_the_method(self):
        fields = type(self).model_fields
        others = [name for method, names in self.OPTIONS_OF.items() if method != self.method for name in names]
        given = [f"--{name.replace('_', '-')}" for name in others if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"--method {self.method} does not have {' and '.join(given)}; leave them out, or choose "
                             "the other method")
        return self


class ReconstructConfig(JobConfig, ImageInputConfig):
    """Reconstructs map, half maps and FSC from particles with poses."""

    job: Literal["reconstruct"] = "reconstruct"
    particles: Path
    """STAR or .cs file with poses."""
    symmetry: str = "c1"
    """Point group in RELION's notation."""
    max_resolution_angstrom: PositiveFloat | None = None
    """High-resolution limit of the map; default: Nyquist."""
    mask_radius_angstrom: PositiveFloat | None = None
    """Radius of the soft spherical mask within which the FSC is computed; default: 45 % of the box."""
    weight_by: str | None = None
    """Column whose values (0 to 1) weight the particles, e.g. rlnCryoforumFigureOfMerit."""


class SelectConfig(JobConfig):
    """Keeps the particles with trustworthy orientations, and writes the rejected ones with the reason for each."""

    job: Literal["select"] = "select"
    run: Path
    """Directory of a predict or ab-initio run."""
    measure: MeasureName = "auto"
    """Measure by which particles are ranked; auto: the expected error with --max-error-deg, else the particle probability
    if the run has it, otherwise the match score, otherwise the expected error. Must be given with --threshold."""
    auto: bool = False
    """Let the map decide how many particles to keep: half maps from the best fractions by --measure are compared with half
    maps from random subsets of the same size, and particles are rejected only if the map gets better than that of all
    particles. Needs the images. Without --auto and without a criterion, images with a particle probability below 0.5 are
    rejected. If the measure is another one and its distribution has two populations, the worse one is rejected; if it has
    one, nothing is, except that for the match score images below -4 are."""
    reasons: tuple[RejectedReason, ...] = JUNK_REASONS
    """Reasons to reject an image: kinds of junk, and ambiguous-orientation, which is not junk. They also apply together
    with --max-error-deg or a --threshold on an error; kinds of junk that are not listed are kept. Off-centre particles are
    also written to recentre.star, with the origins that recentre them when they are re-extracted."""
    protect_views: bool = True
    """Protect rare viewing directions: if x % of the images of a group of viewing directions are junk, the group's share of
    the set falls by at most x %. Does not apply to --threshold and --max-error-deg."""
    keep_fraction: Fraction | None = None
    """Keep this fraction of the particles (the best ones)."""
    keep_count: PositiveInt | None = None
    """Keep this many particles (the best ones)."""
    max_error_deg: PositiveFloat | None = None
    """Keep particles that are not junk (see --reasons) and whose expected error does not exceed this; can be combined with
    --threshold on another measure. For error bounds use --measure error-bound --threshold."""
    threshold: float | None = None
    """Keep particles whose --measure is at least this (scores and probability) or at most this (errors and dispersions).
    Needs --measure."""

    @model_validator(mode="after")
    def _auto_stands_alone(self):
        given = [f"--{name.replace('_', '-')}" for name in ("keep_fraction", "keep_count", "max_error_deg", "threshold")
                 if getattr(self, name) is not None]
        if self.auto and given:
            raise ValueError(f"--auto and a criterion exclude each other; {' and '.join(given)} given too")
        return self


class EvaluateConfig(JobConfig):
    """Compares poses with known ones, and a map with a known one."""

    job: Literal["evaluate"] = "evaluate"
    particles: Path
    """STAR or .cs file with the poses to assess."""
    truth: Path
    """STAR or .cs file with the known poses."""
    map: Path | None = None
    """Map to assess."""
    truth_map: Path | None = None
    """Known map."""
    symmetry: str = "c1"
    """Point group in RELION's notation; errors are modulo the point group."""
    align_frame: bool = False
    """First align the two frames by a rotation (for poses from ab initio)."""
    allow_mirror: bool = False
    """Allow the alignment to mirror the poses (ab initio does not determine the hand)."""
    pixel_size_angstrom: PositiveFloat | None = None
    """Pixel size, if origins are in pixels and the particles' file does not give it."""


class ReportConfig(JobConfig):
    """Writes one self-contained HTML page about a finished run."""

    job: Literal["report"] = "report"
    run: Path
    """Run of any job."""
    truth: Path | None = None
    """STAR file with known poses, if there are any."""


class BenchmarkConfig(JobConfig):
    """Runs several methods on the data sets of a published table, and compares with the published values."""

    job: Literal["benchmark"] = "benchmark"
    table: Annotated[Literal["cryoposenet"], Field(json_schema_extra={"positional": True})]
    """cryoposenet: Table 1 of Nashed et al. 2021 (arXiv 2107.02958), adenylate kinase without noise and at five
    signal-to-noise ratios, and with a CTF."""
    methods: tuple[BenchmarkMethod, ...] = ("hybrid", "end-to-end")
    """hybrid and end-to-end: as in ab-initio; end-to-end-aided: with remedies against bad minima;
    per-image and known: CryoPoseNet's baselines."""
    sets: tuple[Literal["A", "B", "C", "D", "E", "F", "G"], ...] = ("A", "B", "C", "D", "E", "F", "G")
    """A: no noise; B to F: 10, 5, 0, -5, -10 dB; G: 0 dB with CTF."""
    seeds: PositiveInt = 1
    """Runs of each method, from different random starts."""
    scale: Literal["small", "full"] = "small"
    """full: as published, 10,000 images of 128 px at 0.8 A/px, for a GPU; small: 3,000 of 64 px at 1.6 A/px."""
    minutes: PositiveFloat | None = None
    """Training time of each run, except those of hybrid; default: 20 at small, 60 at full scale."""
    network_minutes: PositiveFloat | None = None
    """Training time of hybrid's network; default: as in ab-initio."""
    search_steps: PositiveInt | None = None
    """Steps of hybrid's search; default: as in ab-initio."""
    n_particles: PositiveInt | None = None
    """Images of each set, of which the last tenth is used for tests only; default: that of the scale."""
    box_size_px: PositiveInt | None = None
    """Box of the images, even, always 102.4 A wide; default: that of the scale."""
    particles_of: Path | None = None
    """Directory of sets made elsewhere, A, B, ..., each with input.star, particles.star (the known poses) and
    truth.npz (map: the path of the true map), to be used instead of simulated ones."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"methods", "sets", "seeds"})


class DoctorConfig(JobConfig):
    """Shows versions and devices, and runs a 20-second self-test."""

    job: Literal["doctor"] = "doctor"
    out: Path | None = None
    """Directory for summary.json; without it the result is only printed."""
