"""Images of a map with known poses that have the set's own noise: residual transplant.

From a particle's image its prediction at the pose found is taken away, and the projection at another pose, which is known,
is put in its place, with the same CTF and contrast. What the map does not explain stays: the camera's noise with the
spectrum of that micrograph, ice, neighbours, and what this particle has that the map has not. An error model that is
calibrated on such images has seen the set's own noise, not that of a simulator.

The pose that fits best has taken up the noise in the five directions in which it moves the projection, and these are nearly
those of other poses, too: a blob moves like a blob. A residual from the best pose has too little noise there; one from a
pose drawn from the posterior has as much as the image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..geometry.bingham import sample_bingham
from ..geometry.poses import Poses, displacement_px
from ..imaging.ctf import CTFParameters
from ..imaging.fourier import fft_image
from ..particles.dataset import ParticleBatch
from ..particles.image_preparation import ImagePreparation, effective_ctf, normalise
from ..results.pose_results import PoseResults
from ..results.write import poses_of
from .simulated_images import ImageSource, KnownParticles


@dataclass(frozen=True, eq=False)
class TransplantedParticles(KnownParticles):
    """Row i is the set's image ``of[i]`` (n,), from which the prediction of the ``own`` source at the pose ``found`` and with
    ``found_contrast`` (n,) is taken away; what is known of it is put in its place."""

    images: ImagePreparation
    own: ImageSource
    of: Int[np.ndarray, " n"]
    found: Poses
    found_contrast: Float[Tensor, " n"]
    source: ImageSource
    quaternion: Float[Tensor, "n 4"]
    displacement_px: Float[Tensor, "n 2"]
    contrast: Float[Tensor, " n"]
    companion: Float[Tensor, "n 6"] | None = None

    @classmethod
    def of_matched(cls, images: ImagePreparation, source: ImageSource, rows: Int[np.ndarray, " n"], results: PoseResults,
                   quaternion: Float[Tensor, "n 4"], displacement_px: Float[Tensor, "n 2"], seed: int
                   ) -> "TransplantedParticles":
        """``results`` of the set's images ``rows`` by matching; these give noise and contrast, the poses are new."""
        device = source.noise_spectrum.device
        contrast = torch.from_numpy(results.evidence.contrast).to(device)
        return cls(images, source, rows, _drawn(results, seed).to(device), contrast, source,
                   quaternion.to(device, torch.float32), displacement_px.to(device, torch.float32), contrast)

    @property
    def ctf(self) -> CTFParameters:
        return self.images.particles.ctf[torch.from_numpy(self.of)]

    def noise_rows(self, indices: Int[np.ndarray, " m"] | Int[Tensor, " m"]) -> Int[np.ndarray, " m"]:
        """Those of the images that give theirs."""
        return self.images.particles.noise_rows(self.of[np.asarray(indices)])

    def batch(self, indices: Int[np.ndarray, " m"] | Int[Tensor, " m"]) -> ParticleBatch:
        """Images (n, B, B) in the state of the set's own, with CTF and poses."""
        source, state = self.own, self.own.state
        rows = torch.as_tensor(indices, dtype=torch.int64)
        own = self.images.particles.batch(self.of[rows.numpy()]).to(self.quaternion.device)
        found = displacement_px(self.found.shift_angstrom[rows], self.matching_pixel_angstrom)
        taken = source.signal(self.found.quaternion[rows], found) * self.found_contrast[rows, None, None]
        box, pixel = source.box_size_px, source.pixel_size_angstrom
        seen = effective_ctf(own.ctf, box, pixel, state.ctf_state)
        images_ft = fft_image(normalise(own.images, state)) + (self._signal(rows) - taken) * seen
        return ParticleBatch(self._as_in_the_stack(images_ft), own.ctf, self.poses[rows.to(self.quaternion.device)], rows)


def _drawn(results: PoseResults, seed: int) -> Poses:
    """Poses (n,) of matched particles drawn from their posteriors; rotation and shift each by its own."""
    generator, found = torch.Generator().manual_seed(seed), poses_of(results, torch.float32)
    quaternion = sample_bingham(torch.from_numpy(results.bingham), 1, generator)[:, 0].float()
    deviation = torch.from_numpy(results.evidence.shift_deviation_angstrom).square().mean(1, keepdim=True).sqrt().float()
    return Poses(quaternion, found.shift_angstrom + deviation * torch.randn(len(found), 2, generator=generator))
