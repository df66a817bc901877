"""How the particles differ from those that the network was trained for, as far as that shows before any matching."""

from dataclasses import replace
from math import inf

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..imaging.noise_spectrum import noise_power_spectrum
from ..imaging.projection import FourierVolume
from ..imaging.symmetry_frame import NO_SYMMETRY_BELOW, symmetry_score
from ..model.checkpoint import CheckpointMetadata
from ..particles.image_preparation import ImagePreparation

# smaller differences are those of pixel sizes as they are calibrated and rounded
FIELD_OF_VIEW_TOLERANCE = 0.01
# a network is trained with noise that varies by 10 % from image to image, of the spectrum of its set
NOISE_RATIO_BELOW = 2.0
# spectra are compared in means over so many shells
_BAND_SHELLS = 4
# the lower shells are left out
_FIRST_SHELL = 2
# that the spectrum is estimated from
_N_IMAGES = 128


def mismatches(metadata: CheckpointMetadata, images: ImagePreparation, symmetry: str, seed: int = 0) -> tuple[str, ...]:
    """Sentences on what differs from the network's training, none of which makes predictions impossible.

    A checkpoint without a figure (older ones) is not compared in it.
    """
    found = [_field_of_view(metadata, images), _ctf_state(metadata, images), _noise(metadata, images, seed)]
    if symmetry != metadata.symmetry:
        found.append(f"The network was trained with symmetry {metadata.symmetry}, and {symmetry} is asked for.")
    return tuple(sentence for sentence in found if sentence)


def _field_of_view(metadata: CheckpointMetadata, images: ImagePreparation) -> str | None:
    trained, particles = metadata.images, images.particles
    if not trained:
        return None
    before = trained["box_size_px"] * trained["pixel_size_angstrom"]
    now = particles.box_size_px * particles.pixel_size_angstrom
    if abs(now / before - 1) <= FIELD_OF_VIEW_TOLERANCE:
        return None
    return (f"The network was trained for images of {trained['box_size_px']} px at {trained['pixel_size_angstrom']:.4g} "
            f"A/px, {before:.4g} A wide; these have {particles.box_size_px} px at {particles.pixel_size_angstrom:.4g} A/px, "
            f"{now:.4g} A wide: is the pixel size right?")


def _ctf_state(metadata: CheckpointMetadata, images: ImagePreparation) -> str | None:
    before, now = metadata.images.get("ctf_state"), images.state.ctf_state
    if before is None or before == now or "multiplied" not in (before, now):
        return None  # raw and flipped images look alike to a network, whose images are always flipped
    return (f"The network was trained with images that were {before}, and these are {now}, so their frequencies are "
            "weighted differently.")


def _noise(metadata: CheckpointMetadata, images: ImagePreparation, seed: int) -> str | None:
    if metadata.noise_spectrum is None or images.network_settings is None:
        return None
    settings = images.network_settings
    rows = np.sort(np.random.default_rng([seed, 0xA2]).permutation(len(images.particles))[:_N_IMAGES])
    # an edge that never ends is no mask: the background is what is wanted
    prepared = replace(images, network_settings=replace(settings, mask_edge_px=inf)).network_input(rows)[0]
    now = noise_power_spectrum(prepared, settings.mask_radius_fraction * settings.box_size_px).cpu()
    ratio = _banded(now) / _banded(torch.tensor(metadata.noise_spectrum))
    worst = int(ratio.log().abs().argmax())
    if max(float(ratio[worst]), 1 / float(ratio[worst])) < NOISE_RATIO_BELOW:
        return None
    shell = _FIRST_SHELL + (worst + 0.5) * _BAND_SHELLS
    resolution = settings.box_size_px * settings.pixel_size_angstrom / shell
    return (f"The noise spectrum differs from that of the network's training images: {float(ratio[worst]):.2g} times the "
            f"power at {resolution:.2g} A.")


def _banded(spectrum: Tensor) -> Tensor:
    shells = spectrum[_FIRST_SHELL:len(spectrum) - 1]
    n = len(shells) // _BAND_SHELLS * _BAND_SHELLS
    return shells[:n].reshape(-1, _BAND_SHELLS).mean(1)


def broken_symmetry(volume: Float[Tensor, "b b b"], group: Float[Tensor, "g 4"], symmetry: str) -> str | None:
    """Why a map cannot be matched under the ``group`` of ``symmetry``; None where it can."""
    if len(group) == 1:
        return None
    score = symmetry_score(FourierVolume.from_real(volume.cpu()), group.cpu())
    if score >= NO_SYMMETRY_BELOW:
        return None
    return (f"the map does not have the symmetry {symmetry}: its correlation with its symmetrised copy is {score:.2f}, and "
            f"that of a symmetric map is above {NO_SYMMETRY_BELOW}. Give the map's own --symmetry, or rotate the map so "
            "that its axes are those of RELION")
