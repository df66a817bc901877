"""The fraction of particles to keep, chosen by the quality of the map (``--auto``).

The particles are ranked by a measure. Half maps are made of the best fraction, for several fractions, and of as many
particles taken at random, several times; the amount of information that the half maps agree in is compared.

That agreement has a part that is no information: an image without the particle, matched to a map, takes the pose at
which its noise looks most like the map, and so adds to what both half maps share ("Einstein from noise": Shatsky et
al., J. Struct. Biol. 2009; Henderson, PNAS 2013). The inner product of an empty image with a projection that would
explain E (in units of the noise's variance, summed over the image) is a normal deviate times sqrt(E); of M poses the
best has some sqrt(2 ln M) sqrt(E), where a particle has E. So every image, whatever it shows, brings the share
``discount``, some sqrt(2 ln M / E), of what a particle brings, and that share is taken off in proportion to the number of
images: ``MapQuality`` of as many at random, times the discount. Without it half maps of sets with a fifth of junk ask
for all of the junk to be kept, while the true map gets worse (``docs/decisions/0004-select-auto.md``).
"""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..catalogue import MAP_GROUPS, MAP_PARTICLES, Measure
from ..config import ImageInputConfig
from ..errors import InputError
from ..geometry.symmetry import symmetry_group
from ..junk.rejection import ImageLabels
from ..particles.dataset import Particles, load_particles
from ..particles.image_preparation import ImagePreparation
from ..progress import Progress
from ..reconstruction.map_quality import HalfMapMaker, MapQuality
from ..run_directory import RunDirectory, atomic_path
from .selection import Selection, best_first, best_with_rare_views, rows_by_id

# A random set is some of these groups, each inserted once: 3.4 GB of sums at the largest box.
N_GROUPS = MAP_GROUPS.value
# random sets of each size: enough for a standard deviation within a quarter
N_DRAWS = 8
MIN_PARTICLES = MAP_PARTICLES.value
# Between the sizes of random sets, in groups, figures are interpolated: they are smooth.
RANDOM_SIZES = (8, 10, 12, 14, 15)
# of the ranked particles, whose maps are compared with those of random sets: eighths of a half and finer, and nearly all
FRACTIONS = (*(m / N_GROUPS for m in range(N_GROUPS // 2, N_GROUPS)), 0.97)
# Standard deviations of what removing as many at random does. One is enough: of particles that are all alike the best
# make a map that is worse by three to ten and more, so what chance lets pass is a choice between maps that are equally
# good. Not where less than a twentieth is removed: the worst few of many look bad by chance, and hardly count.
SIGNIFICANCE = 1.0
# where less than FEW is removed
SIGNIFICANCE_OF_FEW = 2.0
# a twentieth
FEW = 0.05
# standard deviations by which a resolution may be worse: it is read off at one point of the FSC
RESOLUTION_TOLERANCE = 2.0
# Poses that differ at a radius of 10 cycles per box: 8 pi^2 10^3 rotations, and displacements up to an eighth of the
# box in steps of box / (2 pi 10). The logarithm makes the choice of 10 a small matter (8: 5.6, 14: 6.0 deviations).
# Measured: images of noise had shares of 0.22, 0.31, 0.19 and 0.32 where this says 0.26, 0.37, 0.25 and 0.43.
N_POSES = 8 * math.pi**2 * 10**3 * math.pi * (2 * math.pi * 10 / 8) ** 2
# The worst sixteenth of particles that are all alike lies 2 deviations, 2 / sqrt(E) of their share, below the mean; it
# looks no worse than empty images where 1 - 4 / sqrt(E) < sqrt(2 ln M / E): then the half maps cannot tell.
MAX_DISCOUNT = 0.6
# Euler's constant, for the mean of a Gumbel distribution
EULER_GAMMA = 0.5772156649


@dataclass(frozen=True)
class Level:
    """The best ``n_kept`` particles beside as many at random; deviations are those of one random draw."""

    n_kept: int
    kept_fraction: float
    resolution_angstrom: float
    random_resolution_angstrom: float
    random_resolution_deviation_angstrom: float
    half_map_information: float
    """of the half maps as they are, in nats"""
    information: float
    """without the share that empty images would bring"""
    random_information: float
    random_information_deviation: float

    @property
    def gain_angstrom(self) -> float:
        return self.random_resolution_angstrom - self.resolution_angstrom


@dataclass(frozen=True)
class AutoSelection:
    """All levels, all particles first, then ever fewer; which one is kept, and why."""

    levels: tuple[Level, ...]
    chosen: Level
    discount: float
    explanation: str

    @property
    def all(self) -> Level:
        return self.levels[0]

    def summary(self) -> dict:
        """The part of ``summary.json`` called ``auto``."""
        chosen = self.chosen
        return {"kept_fraction": chosen.kept_fraction, "gain_over_random_angstrom": chosen.gain_angstrom,
                "gain_over_random_deviation_angstrom": chosen.random_resolution_deviation_angstrom,
                "resolution_all_angstrom": self.all.resolution_angstrom,
                "resolution_kept_angstrom": chosen.resolution_angstrom,
                "resolution_random_angstrom": chosen.random_resolution_angstrom,
                "information_kept_over_all": chosen.information / self.all.information,
                "discount_of_empty_images": self.discount}


def _added(first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return second if first is None else (first[0] + second[0], first[1] + second[1])


def ranked_rows(suggested: Selection, measures: Mapping[str, Float[np.ndarray, " n"]], particle_id: Int[np.ndarray, " n"],
                particles: Particles) -> Int[np.ndarray, " k"]:
    """Rows of ``particles`` whose measure is finite, best first.

    ``suggested``: a selection by the measure. measures and particle_id: of the run whose particles these are.
    Raises InputError where there are too few, or the particles are not those of the measures.
    """
    values = measures[suggested.measure.name]
    order = best_first(suggested.measure, values)[:int(np.isfinite(values).sum())]
    if len(order) < MIN_PARTICLES:
        raise InputError(f"--auto needs at least {MIN_PARTICLES} particles, because it compares maps of subsets; "
                         f"there are {len(order)}. Give --keep-fraction or a threshold, or leave out --auto.")
    return rows_by_id(particles.table, particle_id)[order]


@dataclass(frozen=True, eq=False)
class MapSelectionSetup:
    """What selection by the map needs of a run: ``ranked`` rows of its particles, best first, and their maps."""

    ranked: Int[np.ndarray, " k"]
    maker: HalfMapMaker
    is_matched: bool
    """Poses were found by matching to a map."""


def map_selection_setup(run: RunDirectory, symmetry: str, suggested: Selection,
                        measures: Mapping[str, Float[np.ndarray, " n"]], particle_id: Int[np.ndarray, " n"], seed: int,
                        device: torch.device) -> MapSelectionSetup:
    """The particles of a finished run with the poses that it found, their images read as it read them.

    measures and particle_id: of the run. Raises InputError where images or poses are missing, or too few.
    """
    options = json.loads(run.config.read_text())
    image_input = ImageInputConfig(**{name: options[name] for name in ImageInputConfig.model_fields if name in options})
    particles = load_particles(run.particles, image_input, require_poses=True)
    ranked = ranked_rows(suggested, measures, particle_id, particles)
    images = ImagePreparation.checked(particles, image_input, device)
    group = symmetry_group(symmetry, torch.float32, device)
    return MapSelectionSetup(ranked, HalfMapMaker(particles, images, group, seed), options.get("refinement") != "none")


def select_by_map(suggested: Selection, measures: Mapping[str, Float[np.ndarray, " n"]], setup: MapSelectionSetup,
                  seed: int, labels: ImageLabels | None = None, protect_views: bool = True
                  ) -> tuple[Selection, AutoSelection]:
    """The best fraction of the particles, or all of them, whichever makes the better map.

    ``suggested``: what the measure's distribution suggests, one of the fractions tried. ``labels`` gives the reasons of the
    rejected; with ``protect_views`` rare viewing directions keep their share. Rows whose measure is not finite are always
    rejected.
    """
    ranked = setup.ranked
    counts = _counts(len(ranked), len(suggested.kept))
    found = _compare(setup.maker, ranked, counts, suggested.measure, setup.is_matched, seed)
    # the levels that were tried are the best ones as they are
    selection, n_restored = best_with_rare_views(measures, suggested.measure.name, found.chosen.n_kept, labels,
                                                 protect_views and found.chosen is not found.all)
    explanation = found.explanation
    if n_restored:
        explanation += f" {n_restored:,} particles beyond these were kept to protect their viewing directions."
    return replace(selection, explanation=explanation,
                   threshold=None if found.chosen is found.all else selection.threshold), found


def _counts(n: int, n_suggested: int) -> np.ndarray:
    """Numbers of particles to keep, ascending, n last: those of FRACTIONS, and what the populations suggest."""
    counts = {round(fraction * n) for fraction in FRACTIONS} | {n}
    if n_suggested >= min(counts):
        counts.add(n_suggested)
    return np.array(sorted(counts))


def _compare(maker: HalfMapMaker, ranked: np.ndarray, counts: np.ndarray, measure: Measure, is_matched: bool, seed: int
             ) -> AutoSelection:
    """Levels of ``counts`` (ascending) along ``ranked`` (n,), and the choice among them."""
    with Progress(2 * len(ranked), "maps of parts") as progress:
        best = _best_qualities(maker, ranked, counts, progress)
        random_counts, random = _random_qualities(maker, ranked, progress, np.random.default_rng([seed, 0xA07]))
    # the best half holds least junk, and junk would make the particles look as if they explained less
    explained = maker.explained_power(best[0], int(counts[0]))
    discount = _discount(explained, maker.n_symmetric) if is_matched else 0.0
    levels = _levels(counts, best, random_counts, random, discount)
    chosen, explanation = _choose(levels, discount, measure)
    return AutoSelection(levels, chosen, discount, explanation)


def _best_qualities(maker: HalfMapMaker, ranked: np.ndarray, counts: np.ndarray, progress: Progress
                    ) -> list[MapQuality]:
    """Of the first ``counts`` (m,) of ``ranked``."""
    sums, qualities = None, []
    for rows in np.split(ranked, counts)[:-1]:
        sums = _added(sums, maker.sums(rows, progress))
        qualities.append(maker.quality(sums))
    return qualities


def _random_qualities(maker: HalfMapMaker, rows: np.ndarray, progress: Progress, rng: np.random.Generator
                      ) -> tuple[np.ndarray, list[list[MapQuality]]]:
    """Numbers of particles in random sets, and for each N_DRAWS qualities.

    A draw is an order of the groups, of which the first ones are taken.
    """
    groups = np.array_split(rng.permutation(rows), N_GROUPS)
    sums = [maker.sums(np.sort(group), progress) for group in groups]
    qualities: list[list[MapQuality]] = [[] for _ in RANDOM_SIZES]
    for _ in range(N_DRAWS):
        taken = None
        for position, group in enumerate(rng.permutation(N_GROUPS)[:-1], start=1):
            taken = _added(taken, sums[group])
            if position in RANDOM_SIZES:
                qualities[RANDOM_SIZES.index(position)].append(maker.quality(taken))
    return np.array(RANDOM_SIZES) * len(rows) / N_GROUPS, qualities


def _discount(explained: float, n_symmetric: int) -> float:
    """Share of a particle's signal that an empty image seems to have at its best pose; infinite without any signal.

    That share is the mean of the largest of so many standard normal numbers, by Gumbel's limit.
    """
    logarithm = math.log(N_POSES / n_symmetric)
    largest = math.sqrt(2 * logarithm) - (math.log(logarithm) + math.log(4 * math.pi) - 2 * EULER_GAMMA) / math.sqrt(
        8 * logarithm)
    return largest / math.sqrt(explained) if explained > 0 else math.inf


def _levels(counts: np.ndarray, best: list[MapQuality], random_counts: np.ndarray, random: list[list[MapQuality]],
            discount: float) -> tuple[Level, ...]:
    n, of_all = int(counts[-1]), best[-1]
    information = _RandomFigure(random_counts, np.array([[q.information for q in draws] for draws in random]), n,
                                of_all.information)
    resolution = _RandomFigure(random_counts, np.array([[q.resolution_angstrom for q in draws] for draws in random]), n,
                               of_all.resolution_angstrom)
    # without a usable discount the figures are shown as they are, and nothing is chosen by them
    share = discount if discount < MAX_DISCOUNT else 0.0
    levels = []
    for count, quality in zip(counts[::-1].tolist(), best[::-1], strict=True):
        at_random = information.mean(count)
        levels.append(Level(count, count / n, quality.resolution_angstrom, resolution.mean(count),
                            resolution.deviation(count), quality.information,
                            (quality.information - share * at_random) / (1 - share), at_random,
                            information.deviation(count)))
    return tuple(levels)


class _RandomFigure:
    """Mean and deviation, over random draws (sizes, draws), of a figure as a function of the number of particles."""

    def __init__(self, counts: np.ndarray, values: np.ndarray, n: int, of_all: float):
        self._counts, self._n, self._means = counts, n, np.append(values.mean(1), of_all)
        # the variance of a mean of k out of n without replacement goes with 1 / k - 1 / n; few draws tell its factor
        # poorly, and neighbouring sizes have much the same
        factor = np.pad(values.var(1, ddof=1) / (1 / counts - 1 / n), 1, mode="edge")
        self._factor = (factor[:-2] + factor[1:-1] + factor[2:]) / 3

    def mean(self, count: int) -> float:
        return float(np.interp(count, np.append(self._counts, self._n), self._means))

    def deviation(self, count: int) -> float:
        return math.sqrt(float(np.interp(count, self._counts, self._factor)) * (1 / count - 1 / self._n))


def _choose(levels: tuple[Level, ...], discount: float, measure: Measure) -> tuple[Level, str]:
    of_all = levels[0]
    if not discount < MAX_DISCOUNT:
        return of_all, ("Do not filter: the images are so noisy that half maps cannot tell junk from particles; choose "
                        "by the distribution of a measure or by eye.")
    better = [level for level in levels[1:] if _is_better(level, of_all, discount)]
    if not better:
        return of_all, (f"Do not filter: no fraction of the best particles by {measure.label} makes a map that is "
                        "better than that of all particles.")
    chosen = max(better, key=lambda level: level.information)
    return chosen, _sentence(chosen, of_all, discount)


def _sentence(chosen: Level, of_all: Level, discount: float) -> str:
    more = 100 * (chosen.information / of_all.information - 1)
    # half maps of all often look finer; nobody should wonder why fewer were kept
    part = ", to which junk that was matched to the map adds" if discount else ""
    return (f"Keep {100 * chosen.kept_fraction:.0f} %: {chosen.gain_angstrom:.2f} ± "
            f"{chosen.random_resolution_deviation_angstrom:.2f} Å better than removing as many at random (half maps: "
            f"{chosen.resolution_angstrom:.2f} Å against {chosen.random_resolution_angstrom:.2f} Å), and the map has "
            f"{more:.1f} % more information than that of all particles ({of_all.resolution_angstrom:.2f} Å{part}).")


def _is_better(level: Level, of_all: Level, discount: float) -> bool:
    """More information than all, by more than chance gives, and a resolution that is not worse by more than chance and
    the loss of what empty images add."""
    significance = SIGNIFICANCE_OF_FEW if level.kept_fraction > 1 - FEW else SIGNIFICANCE
    needed = significance * level.random_information_deviation / (1 - discount)
    added_by_empty = discount * (level.random_resolution_angstrom - of_all.resolution_angstrom)
    tolerance = added_by_empty + RESOLUTION_TOLERANCE * level.random_resolution_deviation_angstrom
    return (level.information - of_all.information > needed
            and level.resolution_angstrom <= of_all.resolution_angstrom + tolerance)


def write_auto_selection(found: AutoSelection, run: RunDirectory) -> None:
    """``auto_selection.csv``: the fields of every ``Level``, and which one was chosen (0 or 1)."""
    names = list(Level.__dataclass_fields__)
    with atomic_path(run.auto_selection) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "chosen"])
        for level in found.levels:
            writer.writerow([*(f"{getattr(level, name):.6g}" for name in names), int(level is found.chosen)])
