"""The default border of select, on simulated scores: does it leave one population alone, and does it part two?

    python benchmarks/select_default.py

Seconds on one core. ``find_valley`` is what select uses where no criterion is given.
"""

import numpy as np
from results_page import cpu_hardware, record

from cryoforum_core.selection.bimodality import find_valley

SIZES = (100, 300, 1000, 5000)
TRIALS = 50
SPREAD = 0.04


def one_population(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Scores (n,) of particles without junk, of several shapes."""
    return {"normal": lambda: rng.normal(0.3, SPREAD, n), "skewed to low scores": lambda: 0.4 - rng.gamma(2, SPREAD, n),
            "skewed to high scores": lambda: 0.1 + rng.gamma(3, SPREAD, n),
            "heavy tails (t, 4 degrees of freedom)": lambda: 0.3 + SPREAD * rng.standard_t(4, n),
            "bounded (beta 5, 2)": lambda: rng.beta(5, 2, n),
            "spread by defocus": lambda: 0.3 * np.sqrt(rng.uniform(0.3, 1, n)) + rng.normal(0, 0.03, n),
            "flat": lambda: rng.uniform(0.1, 0.4, n)}[kind]()


def rejected_of_clean(kind: str, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """Fraction of sets of which anything is rejected, and the largest fraction rejected."""
    rejected = []
    for _ in range(TRIALS):
        scores = one_population(kind, n, rng)
        border = find_valley(scores)
        rejected.append(0.0 if border is None else float(np.mean(scores < border)))
    return float(np.mean(np.array(rejected) > 0)), max(rejected)


def found_of_mixture(separation: float, junk_fraction: float, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """Mean fractions of the junk found and of the particles rejected; separation in standard deviations of each."""
    n_junk = int(junk_fraction * n)
    found, rejected = [], []
    for _ in range(TRIALS):
        junk = rng.normal(0.3 - separation * SPREAD, SPREAD, n_junk)
        good = rng.normal(0.3, SPREAD, n - n_junk)
        border = find_valley(np.concatenate([junk, good]))
        found.append(0.0 if border is None else float(np.mean(junk < border)))
        rejected.append(0.0 if border is None else float(np.mean(good < border)))
    return float(np.mean(found)), float(np.mean(rejected))


def of_sizes(cells: list[str]) -> dict[str, str]:
    return dict(zip((f"n{n}" for n in SIZES), cells, strict=True))


def main() -> None:
    rng = np.random.default_rng(0)
    sizes = " | ".join(f"{n:,}" for n in SIZES)
    print(f"Sets without junk: fraction of {TRIALS} sets that lose anything, and the most that one loses.\n")
    print(f"| scores | {sizes} |\n|{' --- |' * (len(SIZES) + 1)}")
    for kind in ("normal", "skewed to low scores", "skewed to high scores", "heavy tails (t, 4 degrees of freedom)",
                 "bounded (beta 5, 2)", "spread by defocus", "flat"):
        cells = [f"{some:.0%}, {most:.1%}" for some, most in (rejected_of_clean(kind, n, rng) for n in SIZES)]
        print(f"| {kind} | " + " | ".join(cells) + " |")
        record("border_clean", {"hardware": cpu_hardware(), "figures": {"scores": kind, **of_sizes(cells)}})
    print("\nTwo normal populations: junk found, and particles rejected.\n")
    print(f"| separation | junk | {sizes} |\n|{' --- |' * (len(SIZES) + 2)}")
    for separation in (3.0, 3.5, 4.0, 5.0, 6.0):
        for junk_fraction in (0.05, 0.15, 0.3):
            cells = [f"{found:.0%}, {rejected:.1%}" for found, rejected in
                     (found_of_mixture(separation, junk_fraction, n, rng) for n in SIZES)]
            print(f"| {separation:g} | {junk_fraction:.0%} | " + " | ".join(cells) + " |")
            record("border_mixture", {"hardware": cpu_hardware(), "figures": {
                "separation": int(separation) if separation.is_integer() else separation, "junk": f"{junk_fraction:.0%}",
                **of_sizes(cells)}})


if __name__ == "__main__":
    main()
