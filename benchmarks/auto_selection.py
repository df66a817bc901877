"""Does choosing by the map keep the right particles? Simulated sets with junk of five kinds, and without.

For each molecule, SNR and junk fraction: simulate, train for half a minute, predict by search, select --auto; then maps
of all particles, of those kept, and of as many at random (three draws), assessed by their half maps and by the true map.
With --poor-reference-particles the images are matched to a map made of so few particles, not to the true one, as they
would be in practice. Defocus as in EMPIAR-10028 (1 to 2.8 um). Printed: a Markdown table for RESULTS.md.

    python benchmarks/auto_selection.py --work /tmp/auto --maps 30S.mrc 70S.mrc --n-particles 1200
    python benchmarks/auto_selection.py --work /tmp/auto --maps 30S.mrc --snr 0.05 --poor-reference-particles 300
"""

import argparse
import contextlib
import re
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from cleanup import command, markdown_table
from junk import MEASURES_SHOWN
from relion_probability import COLUMN, relion_probability
from results_page import record
from torch import Tensor

from cryoforum_core.catalogue import JUNK_KIND_COLUMN
from cryoforum_core.config import ImageInputConfig
from cryoforum_core.imaging.masks import soft_sphere
from cryoforum_core.imaging.resolution import fourier_shell_correlation, resolution_angstrom
from cryoforum_core.mrc import read_map
from cryoforum_core.particles.dataset import Particles, load_particles
from cryoforum_core.particles.image_preparation import ImagePreparation
from cryoforum_core.particles.table import ParticleTable
from cryoforum_core.reconstruction.reconstruct import half_sets, reconstruct_halves
from cryoforum_core.results.pose_results import PoseResults
from cryoforum_core.selection.measures import MEASURES, measures_of

RANDOM_DRAWS = 3
DEFOCUS = ("--defocus-min-angstrom", 10_000, "--defocus-max-angstrom", 28_000)


@dataclass(frozen=True)
class Assessed:
    """Resolutions in Angstrom of half maps (FSC 0.143) and against the true map (0.5), where information is in nats."""

    half_map_angstrom: float
    true_angstrom: float
    true_information: float


class Assessor:
    """Makes maps of parts of a run's particles and compares them with the true map."""

    def __init__(self, particles: Particles, images: ImagePreparation, true_map: Tensor):
        self._particles, self._images, self._true_map = particles, images, true_map
        self._halves, _ = half_sets(particles, seed=0)

    def assess(self, rows: np.ndarray) -> Assessed:
        box, pixel_size_angstrom = self._particles.box_size_px, self._particles.pixel_size_angstrom
        c1 = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
        maps = reconstruct_halves(self._particles.subset(rows), lambda some: self._images.transforms(rows[some]),
                                  self._halves[rows], c1, box / 2 - 1, 0.45 * box)
        mask = soft_sphere(box, 0.45 * box, 0.05 * box)
        fsc = fourier_shell_correlation(maps.both * mask, self._true_map * mask)
        # of a Gaussian map seen with noise, log(1 + SNR) / 2 for each value, and 1 + SNR = 1 / (1 - FSC^2)
        shell = 4 * np.pi * np.arange(1, box // 2) ** 2
        nats = -0.5 * np.log(1 - fsc[1:box // 2].clamp(-0.9999, 0.9999).square().numpy())
        return Assessed(resolution_angstrom(maps.fsc, box, pixel_size_angstrom),
                      resolution_angstrom(fsc, box, pixel_size_angstrom, 0.5), float((shell * nats).sum()))


def rows_kept(particles: Particles, selected: Path) -> np.ndarray:
    """Rows (k,) of ``particles`` that a table of selected ones holds."""
    ids = ParticleTable.read(selected).integers("rlnParticleId")
    return np.flatnonzero(np.isin(particles.particle_id, ids))


def predicted_set(options: argparse.Namespace, path: Path, snr: float, junk_fraction: float) -> tuple[Path, str]:
    """Directory of the case's runs, and the name of the run of predict in it."""
    name = path.stem.split("_")[0]
    case = options.work / f"{name}_{snr:g}_{junk_fraction:g}"
    case.mkdir(parents=True, exist_ok=True)
    command(case, "simulate", "simulate", "--model", path, "--n-particles", options.n_particles, "--snr", snr,
            "--junk-fraction", junk_fraction, *DEFOCUS, "--seed", options.seed)
    particles = case / "simulate/particles.star"
    command(options.work, "train", f"net_{name}", "--particles", particles, "--reference", path,
            "--max-minutes", 0.5, "--network-box-size-px", 32)
    reference, run = path, "predict"
    if options.poor_reference_particles:
        reference, run = poor_reference(case, options.poor_reference_particles, options.seed), "poor"
    command(case, "predict", run, "--particles", particles, "--model", options.work / f"net_{name}",
            "--reference", reference, "--refinement", "adaptive")
    return case, run


def poor_reference(case: Path, n_particles: int, seed: int) -> Path:
    """A map of few of the set's particles at their true poses."""
    truth = ParticleTable.read(case / "simulate/truth.star")
    good = np.flatnonzero(truth.strings(JUNK_KIND_COLUMN) == "none")
    some = case / "simulate/poor.star"
    if not some.is_file():
        truth.subset(np.sort(np.random.default_rng(seed).permutation(good)[:n_particles])).write(some)
    command(case, "reconstruct", "poor_map", "--particles", some)
    return case / "poor_map/map.mrc"


@dataclass(frozen=True)
class Case:
    """A predicted set: its directory and run of predict, what each particle is (kinds of junk, or "none"), what
    assesses maps of its parts, and the assessment of all particles."""

    path: Path
    run: str
    particles: Particles
    kind: np.ndarray
    assessor: Assessor
    of_all: Assessed

    @classmethod
    def load(cls, path: Path, run: str) -> "Case":
        particles = load_particles(path / run / "particles.star", require_poses=True)
        kind = ParticleTable.read(path / "simulate/truth.star").strings(JUNK_KIND_COLUMN)
        images = ImagePreparation.checked(particles, ImageInputConfig(contrast="bright", ctf_state="raw"), torch.device("cpu"))
        assessor = Assessor(particles, images, torch.from_numpy(read_map(path / "simulate/map.mrc")[0]))
        return cls(path, run, particles, kind, assessor, assessor.assess(np.arange(len(particles))))

    @property
    def name(self) -> str:
        name = self.path.name.replace("_", ", SNR ", 1).replace("_", ", junk ")
        return name + (", poor map" if self.run == "poor" else "")

    def junk_percent(self, rows: np.ndarray) -> float:
        return 100 * np.mean(self.kind[rows] != "none")


def rows_of_comparison(case: Case, n_kept: int) -> list[list[str]]:
    """The best ``n_kept`` by each measure: junk among them, and their map."""
    with np.load(case.path / case.run / "orientation_posterior.npz", allow_pickle=False) as arrays:
        measures = measures_of(PoseResults.from_arrays(arrays))
    qualities = {name: MEASURES[name].quality(measures[name]) for name in MEASURES_SHOWN}
    made = case.path / "simulate"
    qualities[COLUMN] = relion_probability(made / "particles.star", made / "map.mrc", case.path / "relion")
    rows = []
    for name, quality in qualities.items():
        best = np.sort(np.argsort(-quality, kind="stable")[:n_kept])
        assessed = case.assessor.assess(best)
        rows.append([case.name, name, f"{case.junk_percent(best):.1f} %", f"{assessed.half_map_angstrom:.2f}",
                     f"{assessed.true_angstrom:.2f}",
                     f"{100 * assessed.true_information / case.of_all.true_information:.1f} %"])
    return rows


def row_of_table(case: Case, chosen: dict, default: dict, kept: np.ndarray, seed: int) -> list[str]:
    """Assesses rows ``kept``; ``chosen`` and ``default``: summaries of select with --auto and without."""
    n = len(case.particles)
    of_all, of_kept = case.of_all, case.assessor.assess(kept)
    rng = np.random.default_rng(seed)
    at_random = [case.assessor.assess(np.sort(rng.permutation(n)[:len(kept)])) for _ in range(RANDOM_DRAWS)]
    auto, percent = chosen["auto"], 100 / of_all.true_information

    def three(name: str) -> str:
        values = getattr(of_all, name), getattr(of_kept, name), np.mean([getattr(r, name) for r in at_random])
        return " / ".join(f"{value:.2f}" for value in values)

    return [case.name, f"{100 * auto['kept_fraction']:.1f} %", f"{100 * default['n_selected'] / n:.1f} %",
            f"{case.junk_percent(np.arange(n)):.1f} → {case.junk_percent(kept):.1f} %",
            f"{auto['gain_over_random_angstrom']:.2f} ± {auto['gain_over_random_deviation_angstrom']:.2f}",
            three("half_map_angstrom"), three("true_angstrom"),
            f"{percent * of_kept.true_information:.1f} / "
            f"{percent * np.mean([r.true_information for r in at_random]):.1f}",
            f"{auto['discount_of_empty_images']:.2f}"]


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?[0-9.]+", text)]


def page_name(name: str) -> str:
    return name.replace(", junk 0,", ", clean,") if ", junk 0," in name else re.sub(", junk 0$", ", clean", name)


def main() -> None:
    options = parse()
    rows, compared = [], []
    for reference, snr, junk_fraction in product(options.maps, options.snr, options.junk_fraction):
        path, run = predicted_set(options, reference, snr, junk_fraction)
        chosen = command(path, "select", f"auto_{run}", "--run", path / run, "--auto", "--seed", options.seed)
        default = command(path, "select", f"default_{run}", "--run", path / run)
        with contextlib.redirect_stdout(sys.stderr):  # progress
            case = Case.load(path, run)
            kept = rows_kept(case.particles, path / f"auto_{run}/selected.star")
            rows.append(row_of_table(case, chosen, default, kept, options.seed))
            if options.compare:
                compared += rows_of_comparison(case, len(kept))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    seed = "" if options.seed == 1 else f", seed {options.seed}"
    for cells in rows:
        kept, default, junk, gain, half_maps, true, information, discount = (numbers(text) for text in cells[1:])
        record("selection", {"figures": {
            "set": page_name(cells[0]) + seed, "particles": options.n_particles, "kept_percent": kept[0],
            "default_percent": default[0], "junk_percent": junk, "gain_angstrom": gain, "half_maps_angstrom": half_maps,
            "true_angstrom": true, "information_percent": information, "discount": discount[0]}})
    for cells in compared:
        record("selection_measures", {"figures": {
            "set": page_name(cells[0]) + seed, "particles": options.n_particles, "measure": cells[1],
            "information_percent": numbers(cells[5])[0], "junk_percent": numbers(cells[2])[0]}})
    print(f"{options.n_particles:,} images each; resolutions in Å, all / kept / as many at random.\n")
    print(markdown_table(["set", "kept", "kept by default", "junk before → after", "gain over random (Å)",
                          "half maps (FSC 0.143)", "true map (FSC 0.5)",
                          "information about the true map, kept / random (% of all)", "discount"], rows))
    if compared:
        print("\nAs many by other measures:\n")
        print(markdown_table(["set", "measure", "junk among them", "half maps (FSC 0.143)", "true map (FSC 0.5)",
                              "information about the true map (% of all)"], compared))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of all runs; finished ones are used again")
    parser.add_argument("--maps", type=Path, nargs="+", required=True)
    parser.add_argument("--snr", type=float, nargs="+", default=(0.1, 0.05))
    parser.add_argument("--junk-fraction", type=float, nargs="+", default=(0.2, 0.0))
    parser.add_argument("--n-particles", type=int, default=1200)
    parser.add_argument("--poor-reference-particles", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compare", action="store_true", help="as many by other measures too (needs relion_refine)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
