"""What each job can be told. These models are the command line: one field, one flag.

Every model is frozen; a field's unit is in its name. Relations between files (does the map fit the particles?) are
checked by the job, which can open them; what a single value must be is checked here.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

JunkKind = Literal["noise", "off-centre", "overlap", "other-molecule", "blank"]
JUNK_KINDS: tuple[JunkKind, ...] = ("noise", "off-centre", "overlap", "other-molecule", "blank")

JunkReason = Literal["not-a-particle", "overlapping-neighbour", "off-centre", "another-object"]
AMBIGUOUS_REASON = "ambiguous-orientation"
RejectedReason = JunkReason | Literal["ambiguous-orientation"]
JUNK_REASONS: tuple[JunkReason, ...] = ("not-a-particle", "overlapping-neighbour", "off-centre", "another-object")

BenchmarkMethod = Literal["hybrid", "end-to-end", "end-to-end-aided", "per-image", "known"]

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Coverage = Annotated[float, Field(gt=0, lt=1)]
DEFAULT_COVERAGE = 0.9


class JobConfig(BaseModel):
    """What every job has."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    out: Path
    """Directory of the run; new or empty, or one to go on with (--resume)."""
    device: str = "auto"
    """Where to compute: auto (a GPU when there is one), cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of everything random."""
    resume: bool = False
    """Go on with the run in --out."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"max_steps", "max_minutes"})
    """Options that need not be the same when a run goes on: its budget."""


class ImageInputConfig(BaseModel):
    """How to read particle images, shared by the jobs that do."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    contrast: Literal["auto", "bright", "dark"] = "auto"
    """Protein brighter or darker than its surroundings; auto measures it and says what it found."""
    ctf_state: Literal["auto", "raw", "phase-flipped", "multiplied", "none"] = "auto"
    """What was done to the CTF before: nothing (raw), phases flipped, or multiplied by the CTF; none: the images were
    simulated without a CTF, and need no columns of it."""
    pixel_size_angstrom: PositiveFloat | None = None
    """Pixel size of the images, where the particles' file does not say it."""


class SimulateConfig(JobConfig):
    """Noisy particle images with known poses from a map or an atomic model."""

    job: Literal["simulate"] = "simulate"
    model: Path | None = None
    """Map (.mrc) or atomic model (.pdb, .cif, also .gz); without one, the 30S ribosome that comes with the package."""
    n_particles: PositiveInt = 1000
    """Number of images, junk included."""
    box_size_px: PositiveInt | None = None
    """Box of the images, even; by default that of the map, or 64 for an atomic model."""
    pixel_size_angstrom: PositiveFloat | None = None
    """Pixel size; by default that of the map, or one that makes an atomic model fill 70 % of the box."""
    snr: PositiveFloat = 0.1
    """Variance of the clean images (after CTF) over variance of the noise; inf for none."""
    ctf: Literal["box", "padded", "none"] = "box"
    """box: the CTF acts on the image's own grid, as in RELION's projections; padded: on a grid of twice the box that is
    cropped afterwards, so that what it carries out of the box is lost; none: no CTF (1 everywhere)."""
    noise: Literal["white", "coloured"] = "white"
    """coloured: nine times the power at low resolution, as ice and detectors make it."""
    defocus_min_angstrom: float = 8000.0
    """Smallest mean defocus; underfocus is positive."""
    defocus_max_angstrom: float = 20000.0
    """Largest mean defocus."""
    astigmatism_angstrom: Annotated[float, Field(ge=0)] = 300.0
    """Largest difference between the two defocus values."""
    voltage_kv: PositiveFloat = 300.0
    """Voltage of the microscope."""
    spherical_aberration_mm: Annotated[float, Field(ge=0)] = 2.7
    """Spherical aberration of the microscope."""
    amplitude_contrast: Fraction = 0.1
    """Fraction of amplitude contrast."""
    shift_rms_px: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviation of the particle's displacement along x and along y."""
    junk_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the images that are junk."""
    junk_kinds: tuple[JunkKind, ...] = JUNK_KINDS
    """Kinds of junk, in equal shares."""
    other_model: Path | None = None
    """Map or atomic model of the junk kind other-molecule; by default one that comes with the package."""
    preferred_view_fraction: Fraction = 0.0
    """Fraction of the particles that lie within preferred_view_width_deg of one viewing direction."""
    preferred_view_width_deg: PositiveFloat = 20.0
    """Radius of the cap of preferred viewing directions."""
    symmetry: str = "c1"
    """Point group of the molecule, written to the summary; poses are drawn over all rotations."""

    @model_validator(mode="after")
    def _defocus_is_a_range(self):
        if self.defocus_min_angstrom > self.defocus_max_angstrom:
            raise ValueError("the smallest defocus must not be above the largest; --defocus-min-angstrom is "
                             f"{self.defocus_min_angstrom:g} and --defocus-max-angstrom {self.defocus_max_angstrom:g}")
        return self


class TrainConfig(JobConfig, ImageInputConfig):
    """A network that finds orientations, from particles with poses, a reference map, or both."""

    job: Literal["train"] = "train"
    particles: Path
    """STAR or .cs file. With poses they are the labels; with --reference only CTF and noise are taken from it."""
    reference: Path | None = None
    """Map to train from: simulated projections with the particles' own CTFs and noise spectrum."""
    from_checkpoint: Path | None = None
    """Run or checkpoint to fine-tune."""
    symmetry: str = "c1"
    """Point group of the molecule in RELION's notation: c1, c3, d2, t, o, i1, ..."""
    encoder: Literal["polar", "compact", "cryoforum", "cryoposenet"] = "polar"
    """Encoder of the images: our best, which knows what turned and mirrored images are; a plain one; the two published."""
    head: Literal["qcqp", "qcqp-psd", "s2s2", "quaternion", "euler"] = "qcqp"
    """What the network says an orientation by; qcqp and qcqp-psd come with an uncertainty."""
    network_box_size_px: PositiveInt | None = None
    """Images are Fourier-cropped to this box; default: the particles' own, at most 128, and at most 32 on a CPU, where
    more and smaller steps learn faster."""
    filter_channels: int = 5
    """Low-pass filtered copies of the image beside it; 0 for none (all encoders but cryoposenet)."""
    pooling: Literal["auto", "gem", "average", "max", "flatten"] = "auto"
    """How the last feature maps become one vector; auto: the encoder's own (gem for cryoforum, else
    flatten); the encoder polar has none."""
    activation: Literal["auto", "prelu", "relu", "silu"] = "auto"
    """auto: the encoder's own (prelu for cryoforum, else relu)."""
    width: PositiveInt | None = None
    """Channels of the encoder's first block; default: the encoder's own."""
    dropout: Fraction = 0.0
    """Fraction of the features left out at random while training."""
    loss: Literal["pairwise-to-own", "own", "pairwise", "chordal"] = "pairwise-to-own"
    """Orientation loss; pairwise-to-own goes from pairs to each image's own error (Cryo-forum)."""
    bingham_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the Bingham negative log-likelihood, which gives the uncertainty its unit."""
    shift_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the error of the shift."""
    augment: bool = True
    """In-plane rotation, shift, scale and noise, labels following."""
    particle_fraction: Fraction | None = None
    """Share of the particles' own images in a batch, the rest are simulated projections; default: a half where the
    particles are the labels (the map is then made of them), none with --reference."""
    shift_rms_angstrom: PositiveFloat | None = None
    """Standard deviation of simulated displacements along x and y; default: 4 % of the box."""
    batch_size: PositiveInt = 128
    """Images in a step."""
    max_steps: PositiveInt = 20000
    """Steps of the whole training."""
    max_minutes: PositiveFloat | None = None
    """Stop after this time; the schedule is stretched to end there."""
    learning_rate: PositiveFloat | None = None
    """Largest learning rate of the schedule; default: 6e-3 for the encoder polar, 3e-3 for the others."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder while it is trained; auto: bfloat16 on GPUs and on CPUs with AMX, float32 on others, where it is faster."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the particles that is held out to judge the network."""
    patience_evaluations: PositiveInt = 10
    """Early stop after this many evaluations without a better held-out loss."""
    half_set: Literal["all", "1", "2"] = "all"
    """Train on one half set only (rlnRandomSubset)."""


class PredictConfig(JobConfig, ImageInputConfig):
    """Orientations, shifts and their uncertainty for every particle."""

    job: Literal["predict"] = "predict"
    particles: Path
    """STAR or .cs file."""
    model: Path
    """Run of train, or its checkpoint directory."""
    reference: Path | None = None
    """Map to match against; default: the one the network was trained with."""
    refinement: Literal["none", "local", "adaptive"] = "adaptive"
    """none: the network alone; local: Gauss-Newton matching from the network's pose; adaptive: also search again
    where the network is unsure or the match is poor."""
    resolution_angstrom: PositiveFloat | None = None
    """Finest resolution used in matching; default: the Nyquist limit."""
    max_shift_angstrom: PositiveFloat | None = None
    """Largest displacement searched; default: an eighth of the box."""
    symmetry: str | None = None
    """Point group; default: the network's."""
    coverage: Coverage = DEFAULT_COVERAGE
    """Part of the particles whose error is within its bound."""
    calibrate: bool = True
    """Learn the errors from images of the map, made like the set's own; without it they are what the matches say."""
    calibration_particles: Path | None = None
    """Particles with trusted poses in the map's frame, not used in training, to learn the errors from instead."""
    batch_size: PositiveInt = 256
    """Images at a time."""


class AbInitioConfig(JobConfig, ImageInputConfig):
    """A first map, orientations and a trained network, from images and their CTF alone."""

    job: Literal["ab-initio"] = "ab-initio"
    particles: Path
    """STAR or .cs file with CTF; poses that it may have are not used."""
    method: Literal["hybrid", "end-to-end"] = "hybrid"
    """hybrid: search from a random start, then half maps, network and refinement; end-to-end: network and map learn
    together from random weights (CryoPoseNet)."""
    symmetry: str = "c1"
    """Point group of the molecule; the search runs in c1 first, finds the axes, then imposes them (hybrid)."""
    seeds: PositiveInt = 2
    """Independent searches from different random starts; the best is chosen by held-out likelihood (hybrid)."""
    particle_diameter_angstrom: PositiveFloat | None = None
    """Diameter of the sphere in which the map may have density; default: 90 % of the box."""
    max_shift_angstrom: PositiveFloat | None = None
    """Largest displacement searched; default: an eighth of the box (hybrid)."""
    resolution_angstrom: PositiveFloat | None = None
    """Finest resolution used, by end-to-end in the final map alone; default: the Nyquist limit."""
    hand_reference: Path | None = None
    """Map of known hand, of the same or a similar molecule; without one the hand stays undetermined (hybrid)."""
    search_steps: PositiveInt = 400
    """Steps of the search from a random start (hybrid)."""
    train_minutes: PositiveFloat | None = None
    """Time for training the network; default: half of the time spent before (hybrid), or what --epochs need. May change
    when a run goes on; a network that is finished stays as it is."""
    coverage: Coverage = DEFAULT_COVERAGE
    """Part of the particles whose error is within its bound."""
    skip: tuple[Literal["distillation", "end-to-end", "refinement"], ...] = ()
    """Parts of hybrid to leave out, to see what each is worth."""
    poses: Literal["encoder", "per-image", "known"] = "encoder"
    """end-to-end: where poses come from; per-image and known are CryoPoseNet's baselines, by automatic
    differentiation for each image, or from the particles' file."""
    encoder: Literal["polar", "compact", "cryoforum", "cryoposenet"] | None = None
    """Encoder; default: polar for hybrid, cryoposenet for end-to-end."""
    head: Literal["qcqp", "qcqp-psd", "s2s2", "quaternion", "euler"] | None = None
    """What the network says an orientation by; default: qcqp for hybrid, s2s2 for end-to-end."""
    network_box_size_px: PositiveInt | None = None
    """Images are Fourier-cropped to this box for the network; default as in train."""
    epochs: PositiveInt = 30
    """end-to-end: passes over the images."""
    shifts: bool = True
    """end-to-end: find displacements too; CryoPoseNet's images had none."""
    batch_size: PositiveInt = 128
    """Images in a step."""
    learning_rate: PositiveFloat | None = None
    """Largest learning rate of the network; default: the method's own."""
    symmetric_loss: bool = False
    """end-to-end: encode each image and its copy turned by 180 degrees, and keep the better (against mirror minima)."""
    n_heads: PositiveInt = 1
    """end-to-end: hypotheses for each image; only the best learns (winner takes all)."""
    frequency_marching: bool = False
    """end-to-end: compare low frequencies first."""
    random_pose_weight: Annotated[float, Field(ge=0)] = 0.0
    """end-to-end: weight of the error of the poses found for projections at random poses of the current map."""
    per_image_after_epoch: PositiveInt | None = None
    """end-to-end: from this epoch on poses are improved for each image directly, without the encoder."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"train_minutes"})
    OPTIONS_OF: ClassVar[dict[str, tuple[str, ...]]] = {
        "hybrid": ("seeds", "max_shift_angstrom", "hand_reference", "search_steps", "skip"),
        "end-to-end": ("poses", "epochs", "shifts", "symmetric_loss", "n_heads", "frequency_marching",
                       "random_pose_weight", "per_image_after_epoch")}
    """Options that only one method knows."""

    @model_validator(mode="after")
    def _options_are_of_the_method(self):
        fields = type(self).model_fields
        others = [name for method, names in self.OPTIONS_OF.items() if method != self.method for name in names]
        given = [f"--{name.replace('_', '-')}" for name in others if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"--method {self.method} does not know {' and '.join(given)}; leave them out, or choose "
                             "the other method")
        return self


class ReconstructConfig(JobConfig, ImageInputConfig):
    """Map, half maps and FSC from particles with poses."""

    job: Literal["reconstruct"] = "reconstruct"
    particles: Path
    """STAR or .cs file with poses."""
    symmetry: str = "c1"
    """Point group in RELION's notation."""
    max_resolution_angstrom: PositiveFloat | None = None
    """Finest resolution of the map; default: the Nyquist limit."""
    mask_radius_angstrom: PositiveFloat | None = None
    """Radius of the soft sphere in which the half maps are compared; default: 45 % of the box."""
    weight_by: str | None = None
    """Column whose values (0 to 1) weight the particles, e.g. rlnCryoforumFigureOfMerit."""


class SelectConfig(JobConfig):
    """Keeps the particles with trustworthy orientations; the others are written too, each with a reason."""

    job: Literal["select"] = "select"
    run: Path
    """Run of predict or ab-initio."""
    measure: Literal["auto", "particle-probability", "match-score", "expected-error", "error-bound", "figure-of-merit",
                     "dispersion-max", "dispersion-trace", "dispersion-wigner"] = "auto"
    """What to judge particles by; auto is the first of these that the run has: the probability to be a particle, the
    match score, the expected error."""
    auto: bool = False
    """Let the map decide: half maps of the best fractions by --measure are compared with those of as many particles
    taken at random, and a fraction is kept only where its map is better; needs the images. Without this, and without a
    criterion, what is more likely junk than a particle is rejected; of the other measures the distribution decides: two
    populations are parted, one is kept whole."""
    reasons: tuple[RejectedReason, ...] = JUNK_REASONS
    """Kinds of junk to reject, by themselves and beside a limit of errors; those that are left out are kept. A particle of
    ambiguous orientation is no junk, and goes only where it is named. What is off-centre is also written to
    recentre.star, with the origins that recentre it: extract it again from there."""
    protect_views: bool = True
    """Keep rare views: no view cone's share falls by more than the share of junk found in it. Limits given by
    --threshold and --max-error-deg hold as they are."""
    keep_fraction: Fraction | None = None
    """Keep this fraction, the best."""
    keep_count: PositiveInt | None = None
    """Keep so many, the best."""
    max_error_deg: PositiveFloat | None = None
    """Keep particles whose expected error is at most this, and no junk; may go with --threshold on another measure. For
    bounds: --measure error-bound --threshold."""
    threshold: float | None = None
    """Keep particles whose --measure is at least (scores) or at most (errors and dispersions) this."""

    @model_validator(mode="after")
    def _auto_stands_alone(self):
        given = [f"--{name.replace('_', '-')}" for name in ("keep_fraction", "keep_count", "max_error_deg", "threshold")
                 if getattr(self, name) is not None]
        if self.auto and given:
            raise ValueError(f"--auto and a criterion exclude each other; {' and '.join(given)} given too")
        return self


class EvaluateConfig(JobConfig):
    """Errors of poses against known ones, and of a map against a known one."""

    job: Literal["evaluate"] = "evaluate"
    particles: Path
    """STAR or .cs file with the poses to judge."""
    truth: Path
    """STAR or .cs file with the known poses."""
    map: Path | None = None
    """Map to judge."""
    truth_map: Path | None = None
    """Known map."""
    symmetry: str = "c1"
    """Point group in RELION's notation; errors are the smallest over it."""
    align_frame: bool = False
    """Find the rotation between the two frames first (poses from ab initio)."""
    allow_mirror: bool = False
    """Let the alignment mirror the poses (the hand is undetermined ab initio)."""
    pixel_size_angstrom: PositiveFloat | None = None
    """Pixel size, where origins are in pixels and the particles' file does not say it."""


class ReportConfig(JobConfig):
    """One HTML page, self-contained, about a finished run."""

    job: Literal["report"] = "report"
    run: Path
    """Run of any job."""
    truth: Path | None = None
    """STAR file with known poses, where there are some."""


class BenchmarkConfig(JobConfig):
    """The data sets of a published table, run by several methods, beside the published figures."""

    job: Literal["benchmark"] = "benchmark"
    table: Annotated[Literal["cryoposenet"], Field(json_schema_extra={"positional": True})]
    """cryoposenet: Table 1 of Nashed et al. 2021 (arXiv 2107.02958), adenylate kinase without noise and at five
    signal-to-noise ratios, and with a CTF."""
    methods: tuple[BenchmarkMethod, ...] = ("hybrid", "end-to-end")
    """hybrid and end-to-end: as in ab-initio; end-to-end-aided: with what later methods found against bad minima;
    per-image and known: CryoPoseNet's baselines."""
    sets: tuple[Literal["A", "B", "C", "D", "E", "F", "G"], ...] = ("A", "B", "C", "D", "E", "F", "G")
    """A: no noise; B to F: 10, 5, 0, -5, -10 dB; G: 0 dB with CTF."""
    seeds: PositiveInt = 1
    """Runs of every method, each from another random start."""
    scale: Literal["small", "full"] = "small"
    """full: as published, 10,000 images of 128 px at 0.8 A/px, for a GPU; small: 3,000 of 64 px at 1.6 A/px."""
    minutes: PositiveFloat | None = None
    """Training time of each run but those of hybrid; default: 20 at small, 60 at full scale."""
    network_minutes: PositiveFloat | None = None
    """Training time of hybrid's network; default: as in ab-initio."""
    search_steps: PositiveInt | None = None
    """Steps of hybrid's search; default: as in ab-initio."""
    n_particles: PositiveInt | None = None
    """Images of each set, of which the last tenth is for tests only; default: the scale's."""
    box_size_px: PositiveInt | None = None
    """Box of the images, even, always 102.4 A wide; default: the scale's."""
    particles_of: Path | None = None
    """Directory of sets that were made elsewhere, A, B, ..., each with input.star, particles.star (the known poses) and
    truth.npz (map: the path of the true map), to be used instead of simulated ones."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"methods", "sets", "seeds"})


class DoctorConfig(JobConfig):
    """Versions, devices, and a 20-second self-test against known answers."""

    job: Literal["doctor"] = "doctor"
    out: Path | None = None
    """Directory for summary.json; without one the result is only printed."""
