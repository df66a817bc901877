"""Results of a run for each particle: poses, and, where known, match, errors, junk labels, and the poses of the network.

Arrays of numpy only, so that a report opens without torch. Row i of every array is one particle;
``orientation_posterior.npz`` of a run is a ``PoseResults`` on disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ..run_directory import atomic_path


@dataclass(frozen=True, eq=False)
class ParticleArrays:
    """Arrays, or groups of arrays, of the same N particles; None where something is not known."""

    def __getitem__(self, rows) -> "ParticleArrays":
        """Those of ``rows``: a slice, indices or a mask (N,)."""
        return replace(self, **{name: value[rows] for name, value in self._known()})

    def put(self, rows: Int[np.ndarray, " n"], other: "ParticleArrays") -> "ParticleArrays":
        """A copy with the n particles of ``other`` in the place of ``rows``; what ``other`` lacks stays as it is."""
        changed = {}
        for name, value in self._known():
            new = getattr(other, name)
            if new is not None and isinstance(value, ParticleArrays):
                changed[name] = value.put(rows, new)
            elif new is not None:
                changed[name] = value.copy()
                changed[name][rows] = new
        return replace(self, **changed)

    @classmethod
    def concatenate(cls, parts: Sequence["ParticleArrays"]) -> "ParticleArrays":
        """All parts, one after the other; what one of them lacks is left out."""
        joined = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            if any(value is None for value in values):
                joined[field.name] = None
            elif isinstance(values[0], ParticleArrays):
                joined[field.name] = type(values[0]).concatenate(values)
            else:
                joined[field.name] = np.concatenate(values)
        return cls(**joined)

    def _known(self) -> list[tuple[str, "np.ndarray | ParticleArrays"]]:
        return [(field.name, value) for field in fields(self) if (value := getattr(self, field.name)) is not None]


@dataclass(frozen=True, eq=False)
class NetworkPoses(ParticleArrays):
    """Poses that the network predicts, before any matching."""

    eigenvalues: Float[np.ndarray, "n 4"]
    """of its Bingham matrix, ascending"""
    quaternion: Float[np.ndarray, "n 4"] | None = None


@dataclass(frozen=True, eq=False)
class MatchEvidence(ParticleArrays):
    """Evidence from the match of each particle for its error and for other objects in its image; not kept after a run."""

    weight: Float[np.ndarray, "n k"]
    """posterior of the poses that were refined, 0 for repetitions; sums to 1"""
    alternative_angle_rad: Float[np.ndarray, "n k"]
    """from the best pose to each"""
    local_deviation_rad: Float[np.ndarray, "n 3"]
    """principal standard deviations of the best pose's rotation"""
    shift_deviation_angstrom: Float[np.ndarray, "n 2"]
    """principal standard deviations of its shift"""
    strongest_alternative: Float[np.ndarray, "n 4"]
    """the most likely other orientation"""
    independent_angle_rad: Float[np.ndarray, " n"] | None = None
    """from the best pose to an independent one: the network's, or that of a search in the map of the other half set"""
    junk_features: Float[np.ndarray, "n s"] | None = None
    """see ``junk.features.FEATURES``"""
    contrast: Float[np.ndarray, " n"] | None = None
    """of the particle, over that of the set's"""
    split_error_rad: Float[np.ndarray, " n"] | None = None
    """see ``matching.split_frequencies``"""
    elsewhere_px: Float[np.ndarray, "n 2"] | None = None
    """where in the box there is most power beyond the largest shift searched, px of the matching box"""


@dataclass(frozen=True, eq=False)
class Match(ParticleArrays):
    """How well each particle matches the map at its pose."""

    fit: Float[np.ndarray, " n"] | None = None
    """score of the pose in standard deviations from the score that a particle should reach"""
    residual: Float[np.ndarray, " n"] | None = None
    """power that the pose leaves in the image, in standard deviations of the noise's"""
    searched: Bool[np.ndarray, " n"] | None = None
    """all orientations were searched"""
    match_score: Float[np.ndarray, " n"] | None = None
    """the poorer of both, standardised by the set: 0 for a usual particle, below -4 hardly ever one"""
    evidence: MatchEvidence | None = None


@dataclass(frozen=True, eq=False)
class ErrorEstimates(ParticleArrays):
    """How far off each pose may be: expected errors, and bounds that hold for the run's coverage."""

    expected_error_deg: Float[np.ndarray, " n"] | None = None
    error_bound_deg: Float[np.ndarray, " n"] | None = None
    figure_of_merit: Float[np.ndarray, " n"] | None = None
    """0 to 1"""
    expected_shift_error_angstrom: Float[np.ndarray, " n"] | None = None
    shift_error_bound_angstrom: Float[np.ndarray, " n"] | None = None


@dataclass(frozen=True, eq=False)
class JunkLabels(ParticleArrays):
    """The label of each image: particle, kind of junk, or ambiguous orientation."""

    reason: Shaped[np.ndarray, " n"]
    """text: ``none`` for a particle, a kind of junk, or ``ambiguous-orientation``"""
    particle_probability: Float[np.ndarray, " n"] | None = None
    recentre_shift_angstrom: Float[np.ndarray, "n 2"] | None = None
    """the origin that recentres an off-centre particle, else NaN"""
    alternative_quaternion: Float[np.ndarray, "n 4"] | None = None
    """the other orientation of an ambiguous one, else NaN"""


@dataclass(frozen=True, eq=False)
class StateLabels(ParticleArrays):
    """The state of the molecule in each image, where the set shows two."""

    state: Int[np.ndarray, " n"]
    """1 for the more frequent one, 2 for the other, 0 for images that were not considered: junk"""
    minor_state_probability: Float[np.ndarray, " n"] | None = None
    """of state 2; 0 for images that were not considered"""


@dataclass(frozen=True, eq=False)
class Dispersions(ParticleArrays):
    """The three dispersions of Chung (2023), where a table has kept them and not the eigenvalues they come from."""

    dispersion_max: Float[np.ndarray, " n"] | None = None
    dispersion_trace: Float[np.ndarray, " n"] | None = None
    dispersion_wigner: Float[np.ndarray, " n"] | None = None


@dataclass(frozen=True, eq=False)
class PoseResults(ParticleArrays):
    """Poses of N particles and what is known about them."""

    particle_id: Int[np.ndarray, " n"]
    """results are joined by it, never by row"""
    quaternion: Float[np.ndarray, "n 4"]
    """of ``geometry.rotations``"""
    shift_angstrom: Float[np.ndarray, "n 2"]
    """with the sign of rlnOriginX/YAngst"""
    bingham: Float[np.ndarray, "n 4 4"] | None = None
    """density ``exp(-q' A q)`` around the pose"""
    eigenvalues: Float[np.ndarray, "n 4"] | None = None
    """of ``bingham``, ascending"""
    network: NetworkPoses | None = None
    match: Match | None = None
    errors: ErrorEstimates | None = None
    junk: JunkLabels | None = None
    states: StateLabels | None = None
    dispersions: Dispersions | None = None

    def __len__(self) -> int:
        return len(self.particle_id)

    @property
    def evidence(self) -> MatchEvidence | None:
        """Of a match that was just made."""
        return None if self.match is None else self.match.evidence

    def arrays(self, with_evidence: bool = False) -> dict[str, Shaped[np.ndarray, "n ..."]]:
        """By the names of ``orientation_posterior.npz``. Without a match ``fit``, ``residual`` and ``match_score`` are
        NaN."""
        arrays = {}
        for group, prefix in _PREFIXES.items():
            part = self if group is None else getattr(self, group)
            if part is not None:
                arrays |= {prefix + name: value for name, value in part._known() if isinstance(value, np.ndarray)}
        if self.match is None:
            arrays |= {name: np.full(len(self), np.nan, np.float32) for name in ("fit", "residual", "match_score")}
            arrays |= {"searched": np.zeros(len(self), bool)}
        if with_evidence and self.evidence is not None:
            arrays |= {_EVIDENCE_PREFIX + name: value for name, value in self.evidence._known()}
        return arrays

    def save(self, path: Path, with_evidence: bool = False) -> None:
        """An ``.npz`` file of ``arrays``."""
        with atomic_path(path) as temporary:
            np.savez(temporary, **self.arrays(with_evidence))

    @classmethod
    def load(cls, path: Path) -> "PoseResults":
        """What ``save`` wrote, or another program with the same names: poses that are missing are NaN, groups None."""
        with np.load(path, allow_pickle=False) as file:
            return cls.from_arrays(dict(file))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Shaped[np.ndarray, "n ..."]]) -> "PoseResults":
        """By the names of ``orientation_posterior.npz``, or of what runs of earlier versions left when they were stopped."""
        if "weight" in arrays:
            arrays = {_EARLIER_NAMES.get(name, name): values for name, values in arrays.items()}
        n = len(arrays["particle_id"]) if "particle_id" in arrays else len(next(iter(arrays.values())))
        own = {"particle_id": np.arange(1, n + 1), "quaternion": np.full((n, 4), np.nan),
               "shift_angstrom": np.full((n, 2), np.nan)} | _named(cls, arrays, "")
        groups = {group: kind(**found) for group, kind in _KINDS.items()
                  if (found := _named(kind, arrays, _PREFIXES[group]))}
        if evidence := _named(MatchEvidence, arrays, _EVIDENCE_PREFIX):
            groups["match"] = replace(groups["match"], evidence=MatchEvidence(**evidence))
        match = groups.get("match")
        # a run without matching says so by NaN
        if match is not None and match.evidence is None and all(
                value is None or np.isnan(value).all() for value in (match.fit, match.match_score)):
            groups["match"] = None
        return cls(**own, **groups)


# groups of a ``PoseResults``
_KINDS = {"network": NetworkPoses, "match": Match, "errors": ErrorEstimates, "junk": JunkLabels, "states": StateLabels,
          "dispersions": Dispersions}
# of the arrays' names in a file
_PREFIXES = {None: "", "network": "network_", "match": "", "errors": "", "junk": "", "states": "",
             "dispersions": ""}
_EVIDENCE_PREFIX = "evidence_"
# of the evidence in the unfinished runs of versions that did not mark it: their alternative_quaternion was no junk label
_EARLIER_NAMES = {"weight": "evidence_weight", "rival_angle_rad": "evidence_alternative_angle_rad",
                  "local_deviation_rad": "evidence_local_deviation_rad",
                  "shift_deviation_angstrom": "evidence_shift_deviation_angstrom",
                  "alternative_quaternion": "evidence_strongest_alternative",
                  "network_angle_rad": "evidence_independent_angle_rad",
                  "evidence_network_angle_rad": "evidence_independent_angle_rad", "junk_statistics": "evidence_junk_features",
                  "elsewhere_px": "evidence_elsewhere_px"}


def _named(kind: type, arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a group by the names of its fields; nothing where one that it cannot be without is missing."""
    found = {field.name: arrays[prefix + field.name] for field in fields(kind) if prefix + field.name in arrays}
    needed = [field.name for field in fields(kind) if field.default is not None]
    return found if kind is PoseResults or all(name in found for name in needed) else {}
