"""The results of a benchmark so far: for each run, a JSON file of figures and an npz file of arrays. Without torch."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..run_directory import atomic_path

# of the run directory
_FOLDER = "results"


@dataclass(frozen=True, eq=False)
class Result:
    """One run. ``arrays``: fsc and ceiling_fsc (shells,); image, projection, found_slice and true_slice (d, d)."""

    figures: dict
    arrays: dict[str, Float[np.ndarray, "..."]]

    @property
    def set(self) -> str:
        return self.figures["set"]

    @property
    def method(self) -> str:
        return self.figures["method"]

    @property
    def seed(self) -> int:
        return self.figures["seed"]


def result_path(out: Path, name: str, method: str, seed: int) -> Path:
    """The figures of a run; a run that has them is finished."""
    return out / _FOLDER / f"{name}_{method}_{seed}.json"


def write_result(out: Path, result: Result) -> None:
    path = result_path(out, result.set, result.method, result.seed)
    with atomic_path(path.with_suffix(".npz")) as temporary:
        np.savez(temporary, **result.arrays)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result.figures, indent=2) + "\n")


def read_results(out: Path) -> list[Result]:
    """All results, sorted by set, method and seed."""
    results = []
    for path in sorted((out / _FOLDER).glob("*.json")):
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            results.append(Result(json.loads(path.read_text()), dict(arrays)))
    order = {method: number for number, method in enumerate(METHOD_NAMES)}
    return sorted(results, key=lambda result: (result.set, order[result.method], result.seed))


METHOD_NAMES = {"hybrid": "hybrid", "end-to-end": "end to end", "end-to-end-aided": "end to end, aided",
                "per-image": "poses per image", "known": "known poses"}
"""Names of the methods in figures, in the order of the table."""
