"""Matched images as results: poses, posterior and evidence, in Angstrom and as arrays."""

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ..geometry.poses import shift_angstrom
from ..geometry.symmetry import symmetric_distance_rad
from ..junk.labelling import strongest_alternative
from ..matching.matcher import Matches
from ..results.pose_results import Match, MatchEvidence, PoseResults
from ..uncertainty.match_posterior import (
    bingham_from_information,
    match_posterior,
    rotation_information,
    shift_deviation_px,
)


def match_results(matches: Matches, particle_id: Int[np.ndarray, " n"], group: Float[Tensor, "g 4"],
                  pixel_size_angstrom: float, independent: Float[Tensor, "n 4"] | None = None,
                  features: tuple[Float[Tensor, "n s"], Float[Tensor, "n 2"]] | None = None) -> PoseResults:
    """Results of n images from their matches at pixels of ``pixel_size_angstrom``, under a symmetry ``group``.

    ``independent``: rotations from elsewhere, the network's or those of a search in another map; ``features``: of ``PowerMap.features``, where junk is to be
    found.
    """
    best, posterior = matches.hypotheses[:, 0], match_posterior(matches.hypotheses, group)
    angle = None if independent is None else symmetric_distance_rad(independent, best.quaternion, group)
    junk_features, elsewhere_px = features or (None, None)
    deviation = shift_deviation_px(best.information.double()).float() * pixel_size_angstrom
    evidence = MatchEvidence(*map(_array, (
        posterior.weight, posterior.alternative_angle_rad, posterior.local_deviation_rad, deviation,
        strongest_alternative(matches.hypotheses, posterior), angle, junk_features, matches.contrast, matches.split_error_rad,
        elsewhere_px)))
    match = Match(_array(matches.quality.fit), _array(matches.quality.residual), _array(matches.searched),
                  evidence=evidence)
    bingham = bingham_from_information(best.quaternion, rotation_information(best.information))
    shift = shift_angstrom(best.displacement_px, pixel_size_angstrom)
    return PoseResults(particle_id, _array(best.quaternion), _array(shift), _array(bingham), match=match)


def _array(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.cpu().numpy()
