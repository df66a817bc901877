"""What a run knows of each micrograph: ``micrographs.csv``. Without torch, so that reports can read it."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from ..particles.particle_groups import ParticleGroups
from ..run_directory import atomic_path
from .pose_results import PoseResults

# a micrograph is unusual from this many robust standard deviations on
UNUSUAL_DEVIATIONS = 4.0
# fewer micrographs have no robust standard deviation, and fewer particles no mean contrast to speak of
_MIN_MICROGRAPHS = 8
_MIN_PARTICLES = 5
# that a line of text names
_N_NAMED = 5
# smaller differences are of no consequence, however significant: 10 % of the noise power or of the contrast
_MIN_DIFFERENCE = 0.1
# contrasts of empty micrographs may be 0
_SMALLEST_RATIO = 0.01
UNUSUAL_NOISE = ("noise at low frequencies", "noise at middle frequencies", "noise at high frequencies")
UNUSUAL_CONTRAST = "contrast"
_NOISE_COLUMNS = ("noise_low_frequency", "noise_middle_frequency", "noise_high_frequency")
_COLUMNS = ("micrograph", "n_particles", *_NOISE_COLUMNS, "mean_contrast", "junk_fraction", "median_expected_error_deg",
            "unusual")


@dataclass(frozen=True, eq=False)
class Micrographs:
    """One row for each of g micrographs (or optics groups), in the order of the particles' table; NaN where a value is
    unknown."""

    name: tuple[str, ...]
    n_particles: Int[np.ndarray, " g"]
    noise: Float[np.ndarray, "g 3"]
    """Noise power over the set's, from low to high frequencies: ``particles.micrograph_noise.BANDS``"""
    mean_contrast: Float[np.ndarray, " g"]
    """Of the images that are no junk"""
    junk_fraction: Float[np.ndarray, " g"]
    median_expected_error_deg: Float[np.ndarray, " g"]
    unusual: tuple[str, ...]
    """Which of ``UNUSUAL_NOISE`` and ``UNUSUAL_CONTRAST``, with semicolons between; or empty"""

    @classmethod
    def of(cls, groups: ParticleGroups, noise: Float[np.ndarray, "g 3"] | None, results: PoseResults) -> "Micrographs":
        """From the results of all particles, in the table's order."""
        group, n_groups = groups.of_particle, len(groups)
        n_particles = np.bincount(group, minlength=n_groups)
        noise = np.full((n_groups, 3), np.nan) if noise is None else noise
        is_junk = np.zeros(len(group), dtype=bool)
        junk_fraction = np.full(n_groups, np.nan)
        if results.junk is not None and results.junk.particle_probability is not None:
            is_junk = results.junk.particle_probability < 0.5
            junk_fraction = np.bincount(group, is_junk, n_groups) / n_particles
        contrast = None if results.evidence is None else results.evidence.contrast
        mean_contrast, has_unusual_contrast = np.full(n_groups, np.nan), np.zeros(n_groups, dtype=bool)
        if contrast is not None:
            mean_contrast, error = _means(contrast[~is_junk], group[~is_junk], n_groups)
            has_unusual_contrast = _is_unusual(mean_contrast, error) & (
                np.bincount(group[~is_junk], minlength=n_groups) >= _MIN_PARTICLES)
        there = np.column_stack([*(_is_unusual(np.log(band)) for band in noise.T), has_unusual_contrast])
        unusual = tuple("; ".join(np.array((*UNUSUAL_NOISE, UNUSUAL_CONTRAST))[row]) for row in there)
        return cls(groups.names, n_particles, noise, mean_contrast, junk_fraction,
                   _medians(results.errors.expected_error_deg, group, n_groups), unusual)

    @property
    def is_unusual(self) -> Bool[np.ndarray, " g"]:
        """Whose noise or mean contrast is beyond ``UNUSUAL_DEVIATIONS`` robust standard deviations."""
        return np.array([bool(text) for text in self.unusual], dtype=bool)

    def worst_rows(self) -> Int[np.ndarray, " k"]:
        """Rows of the unusual micrographs, the farthest from the others first."""
        rows = np.flatnonzero(self.is_unusual)
        ratios = np.column_stack([self.noise, self.mean_contrast])[rows]
        far = np.nanmax(np.abs(np.log(ratios.clip(_SMALLEST_RATIO))), 1, initial=0.0)
        return rows[np.argsort(-far, kind="stable")]

    def worst(self) -> list[str]:
        """The most unusual micrographs in words, the worst first; the last entry says how many there are besides."""
        rows = self.worst_rows()
        named = [self._in_words(row) for row in rows[:_N_NAMED].tolist()]
        return named + ([f"and {len(rows) - _N_NAMED} more"] if len(rows) > _N_NAMED else [])

    def _in_words(self, row: int) -> str:
        reasons = []
        for value, reason in zip(self.noise[row], UNUSUAL_NOISE, strict=True):
            if reason in self.unusual[row]:
                reasons.append(f"{reason} {value:.2g} times the set's power")
        if UNUSUAL_CONTRAST in self.unusual[row]:
            reasons.append(f"mean contrast {self.mean_contrast[row]:.2g}")
        return f"{self.name[row]} ({', '.join(reasons)})"

    def write(self, path: Path) -> None:
        """micrographs.csv; a cell of what is unknown is empty."""
        with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(_COLUMNS)
            for row, name in enumerate(self.name):
                values = (*self.noise[row], self.mean_contrast[row], self.junk_fraction[row],
                          self.median_expected_error_deg[row])
                rows.writerow((name, self.n_particles[row], *(_cell(float(value)) for value in values), self.unusual[row]))


def read_micrographs(path: Path) -> Micrographs:
    """What ``Micrographs.write`` wrote."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))

    def numbers(column: str) -> np.ndarray:
        return np.array([float(row[column] or "nan") for row in rows])

    return Micrographs(tuple(row["micrograph"] for row in rows), numbers("n_particles").astype(np.int64),
                       np.stack([numbers(name) for name in _NOISE_COLUMNS], 1), numbers("mean_contrast"),
                       numbers("junk_fraction"), numbers("median_expected_error_deg"),
                       tuple(row["unusual"] for row in rows))


def _cell(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else ""


def _means(values: np.ndarray, group: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of groups and their standard errors, by the deviation within all groups; NaN of an empty group."""
    n = np.bincount(group, minlength=n_groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(group, values, n_groups) / n
        n_free = max(len(values) - (n > 0).sum(), 1)
        return mean, np.sqrt(((values - mean[group]) ** 2).sum() / n_free / n)


def _medians(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    order = np.argsort(group, kind="stable")
    parts = np.split(values[order], np.cumsum(np.bincount(group, minlength=n_groups))[:-1])
    return np.array([np.median(part) if len(part) else np.nan for part in parts])


def _is_unusual(values: np.ndarray, error: np.ndarray | float = 0.0) -> np.ndarray:
    """Beyond that many robust standard deviations from the median; of each at least its standard error."""
    there = np.isfinite(values)
    if there.sum() < _MIN_MICROGRAPHS:
        return np.zeros(len(values), dtype=bool)
    distance = np.abs(values - np.median(values[there]))
    deviation = np.maximum(1.4826 * np.median(distance[there]), error)
    return there & (distance > np.maximum(UNUSUAL_DEVIATIONS * deviation, _MIN_DIFFERENCE))
