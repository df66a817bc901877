"""The data sets of the table: simulated here or by another program. The last tenth is the test set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import BenchmarkConfig, SimulateConfig
from ..errors import InputError
from ..mrc import read_map
from ..particles.dataset import Particles, load_particles
from ..problems import Problems
from ..run_directory import RunDirectory
from .published import CRYOPOSENET, DEFOCUS_ANGSTROM, EXTENT_ANGSTROM, MODEL, SCALES, TEST_FRACTION

_PIXEL_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class DataSet:
    """The files of a set: tables of the training images (without and with known poses) and of the test images."""

    name: str
    train: Path
    train_truth: Path
    test: Path
    test_truth: Path
    map: Path
    """The true map."""

    @property
    def ctf_state(self) -> str:
        """The --ctf-state of the images."""
        return "raw" if CRYOPOSENET[self.name].has_ctf else "none"


def box_size_px(config: BenchmarkConfig) -> int:
    return config.box_size_px or SCALES[config.scale].box_size_px


def check_options(config: BenchmarkConfig) -> None:
    """Raises one InputError with all problems of the options and of sets made by another program."""
    with Problems() as problems:
        for name in ("methods", "sets"):
            if not getattr(config, name):
                problems.append(f"--{name} must name at least one; none is given. Omit the option for the default.")
        if box_size_px(config) % 2:
            problems.append(f"The box must be even; --box-size-px is {config.box_size_px}. Use {config.box_size_px + 1}.")
        for name in () if config.particles_of is None else config.sets:
            problems.attempt(_made_by_another_program, config.particles_of / name)


def prepared_set(config: BenchmarkConfig, name: str, out: Path, simulate: Callable[[SimulateConfig], RunDirectory]
                 ) -> DataSet:
    """The set in ``out``, which is made if it does not exist."""
    if config.particles_of is None:
        run = simulate(_simulation(config, name, out / "simulated"))
        images, truth, volume = run.particles, run.truth, run.map
    else:
        images, truth, volume = _made_by_another_program(config.particles_of / name)
        out.mkdir(parents=True, exist_ok=True)
    found = DataSet(name, out / "train.star", out / "train_truth.star", out / "test.star", out / "test_truth.star", volume)
    for source, train, test in ((images, found.train, found.test), (truth, found.train_truth, found.test_truth)):
        if not test.is_file():
            _split(load_particles(source, require_ctf=False), train, test)
    return found


def _simulation(config: BenchmarkConfig, name: str, out: Path) -> SimulateConfig:
    published, box = CRYOPOSENET[name], box_size_px(config)
    low, high = DEFOCUS_ANGSTROM
    return SimulateConfig(
        out=out, device=config.device, seed=config.seed, resume=out.is_dir(), model=MODEL, box_size_px=box,
        n_particles=config.n_particles or SCALES[config.scale].n_particles,
        pixel_size_angstrom=EXTENT_ANGSTROM / box, snr=published.snr, ctf="padded" if published.has_ctf else "none",
        defocus_min_angstrom=low, defocus_max_angstrom=high, astigmatism_angstrom=0.0, shift_rms_px=0.0)


def _split(particles: Particles, train: Path, test: Path) -> None:
    """Writes the first nine tenths and the rest. The test file is last: if it exists, both do."""
    rows = np.arange(len(particles))
    n_train = len(rows) - max(1, round(TEST_FRACTION * len(rows)))
    particles.subset(rows[:n_train]).save(train)
    particles.subset(rows[n_train:]).save(test)


def _made_by_another_program(directory: Path) -> tuple[Path, Path, Path]:
    """The files of a set that another program made: images, known poses, true map. Raises InputError where they do
    not belong together."""
    images, truth, facts = directory / "input.star", directory / "particles.star", directory / "truth.npz"
    missing = [path.name for path in (images, truth, facts) if not path.is_file()]
    if missing:
        raise InputError(f"--particles-of must hold a directory for each of --sets, with input.star, particles.star and "
                         f"truth.npz; {directory} lacks {', '.join(missing)}. Make the set, or name fewer --sets.")
    with np.load(facts, allow_pickle=False) as arrays:
        volume = Path(str(arrays["map"])) if "map" in arrays else None
    if volume is None or not volume.is_file():
        raise InputError(f"truth.npz must have the path of the true map (map); {facts} has {volume}. Write the path there.")
    particles = load_particles(truth, require_poses=True, require_ctf=False)
    known, pixel_size_angstrom = read_map(volume)
    if len(known) != particles.box_size_px or (
            abs(pixel_size_angstrom / particles.pixel_size_angstrom - 1) > _PIXEL_SIZE_TOLERANCE):
        raise InputError(f"The true map must have the box and pixel size of the images; {volume} has {len(known)} px at "
                         f"{pixel_size_angstrom:g} A/px, {truth} {particles.box_size_px} px at "
                         f"{particles.pixel_size_angstrom:g} A/px. Name another map in truth.npz.")
    return images, truth, volume
