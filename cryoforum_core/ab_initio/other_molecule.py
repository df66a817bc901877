"""Another molecule among the images that were rejected: a search from random starts shows whether they hold a map.

The images that do not show the molecule, but no contamination either, are searched as a set is at the beginning of ab initio.
A map counts if images that it was not made of confirm it by the rule that ends the search of a set, which needs no second start
to agree. Which image shows the other molecule, only a match to its map can say: ice fits any map a little.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ..catalogue import NOT_A_PARTICLE, OTHER_OBJECT
from ..imaging.fourier import crop_volume, resize_volume
from ..imaging.map_alignment import COARSE_RADIUS_PX, align_to_reference
from ..junk.classifier import has_foreign_power
from ..mrc import write_map
from ..particles.image_preparation import ImagePreparation
from ..results.pose_results import PoseResults
from ..run_directory import RunDirectory
from .random_starts import LAST_RADIUS_PX, SearchImages, SearchResult, run_search, search_settings

logger = logging.getLogger("cryoforum")

# fewer hold no map: 280 images of a 30S ribosome at an SNR of 0.25 did
MIN_IMAGES = 200
MAX_STARTS = 4
# with half of them, starts explained less of the same images, 0.54 to 0.68 in place of 0.58 to 0.69, and did not agree
_STEPS = 400
# of the images: there are few, and the evidence needs some
_HELD_OUT_FRACTION = 0.3
# of whitened maps, as of ``align_to_reference``: 0.82 for a map found in this way and its molecule, 0.27 for another ribosome
_SAME_MOLECULE = 0.5


@dataclass(frozen=True)
class OtherMolecule:
    """The search's best map, and how many of the images gain by it over its spherical average, an upper limit."""

    found: SearchResult
    n_images: int
    is_same: bool
    """Whether the map is that of the set's own molecule: its particles were rejected"""

    @property
    def is_found(self) -> bool:
        return self.found.is_settled and not self.is_same

    def sentence(self) -> str:
        evidence = (f"held-out images: {self.found.structure:.1f} +- {self.found.structure_error:.1f} nats more than a "
                    "spherical map")
        if self.is_found:
            return f"Another molecule: up to {self.n_images:,} of the rejected images show it ({evidence})."
        if self.found.is_settled:
            return (f"Particles of this molecule among the rejected images: their map is that of the set ({evidence}). Compare "
                    "the rejected images in the report.")
        return f"No other molecule found among the rejected images ({evidence})."


def unlike_the_molecule(results: PoseResults) -> Int[np.ndarray, " n"]:
    """Rows of the rejected images that may show another molecule."""
    if results.junk is None or results.evidence is None or results.evidence.junk_features is None:
        return np.zeros(0, np.int64)
    is_candidate = np.isin(results.junk.reason, (NOT_A_PARTICLE, OTHER_OBJECT))
    return np.flatnonzero(is_candidate & ~has_foreign_power(results.evidence.junk_features))


def find_other_molecule(images: ImagePreparation, rows: Int[np.ndarray, " n"], volume: Float[Tensor, "d d d"], seed: int,
                        state_folder: Path, mask_radius_fraction: float = 0.45, max_shift_fraction: float = 0.125
                        ) -> OtherMolecule | None:
    """Among images ``rows``; ``volume``: the set's map, with the field of view of the images. None for too few images."""
    if len(rows) < MIN_IMAGES:
        return None
    # micrographs' relative noise is that of all their images, and the few here would not tell it
    some = replace(images, particles=images.particles.subset(rows), noise=None)
    search_images = SearchImages.prepare(some, seed, LAST_RADIUS_PX, _HELD_OUT_FRACTION)
    settings = search_settings(search_images, _STEPS, mask_radius_fraction, max_shift_fraction)
    results: list[SearchResult] = []
    while len(results) < MAX_STARTS and not any(result.is_settled for result in results):
        start = seed + len(results)
        results.append(run_search(search_images, settings, start, state_folder / f"other_{start}_state", False,
                                  lambda search, evidence: None))
    best = max(results, key=lambda result: result.score)
    gained = float((best.held_out_gain > 0).float().mean())
    reference = crop_volume(volume.float().cpu(), len(best.volume))
    alignment = align_to_reference(best.volume.cpu(), reference, COARSE_RADIUS_PX)
    is_same = max(alignment.score_as_is, alignment.score_mirrored) >= _SAME_MOLECULE
    other = OtherMolecule(best, round(gained * len(rows)), is_same)
    logger.info(other.sentence())
    return other


def other_molecule_figures(images: ImagePreparation, volume: Float[Tensor, "d d d"], results: PoseResults, run: RunDirectory,
                           seed: int, mask_radius_fraction: float = 0.45) -> dict[str, int | str]:
    """What the summary says of another molecule among the rejected images; map_other_molecule.mrc, at the particles' own box,
    where there is one. Nothing for too few images."""
    run.parts.mkdir(exist_ok=True)
    other = find_other_molecule(images, unlike_the_molecule(results), volume, seed, run.parts, mask_radius_fraction)
    if other is None:
        return {}
    if other.is_found:
        particles = images.particles
        volume = resize_volume(other.found.volume.cpu(), particles.box_size_px)
        write_map(run.map_other_molecule, volume.numpy().astype(np.float32), particles.pixel_size_angstrom)
    return {"other_molecule_images": other.n_images if other.is_found else 0,
            "other_molecule_sentence": other.sentence()}
