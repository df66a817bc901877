"""Images of a map with known poses, like those of a data set: its CTFs, its noise, its signal's amplitude.

They stand in for the set's own particles in every step of prediction, so that its results can be compared with the
truth.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex, Float, Int, Integer
from torch import Tensor

from ..geometry.poses import Poses, shift_angstrom
from ..imaging.ctf import CTFParameters, ctf_2d
from ..imaging.fourier import displaced_out_of_box, fft_image, ifft_image, shell_index, shift_phase
from ..imaging.noise_spectrum import noise_power_spectrum
from ..matching.matching_model import MatchingModel
from ..particles.dataset import ParticleBatch
from ..particles.image_preparation import ImagePreparation, effective_ctf
from ..particles.image_state import BACKGROUND_RADIUS_FRACTION, ImageState
from ..particles.micrograph_noise import MicrographNoise

# that the noise spectrum is estimated from
N_NOISE_IMAGES = 256
# contrasts are drawn from a normal distribution, whose lower tail would leave no particle
MIN_CONTRAST = 0.2
# a particle that far from the centre may reach the box's edge
FAR_BOXES = 0.15


@dataclass(frozen=True)
class ImageSource:
    """What simulated images of a data set are made from: a matching model, and the noise in the set's own box.

    Image = contrast x amplitude x CTF x projection + noise. ``noise_spectrum`` of images whose background
    has standard deviation 1; ``contrast_deviation``: standard deviation of the contrast from particle to particle;
    ``noise``: by how much that of a micrograph differs from the spectrum.
    """

    model: MatchingModel
    noise_spectrum: Float[Tensor, " shells"]
    state: ImageState
    box_size_px: int
    pixel_size_angstrom: float
    contrast_deviation: float = 0.0
    noise: MicrographNoise | None = None

    @classmethod
    def like(cls, images: ImagePreparation, model: MatchingModel, contrast_deviation: float = 0.0,
             seed: int = 0) -> "ImageSource":
        """Noise from some of the set's images; within the matching box it is the model's, which the matches steadied."""
        n, box = len(images.particles), images.particles.box_size_px
        rows = np.sort(np.random.default_rng([seed, 0xC1]).permutation(n)[:N_NOISE_IMAGES])
        whole = replace(images, box_size_px=box)
        spectrum = noise_power_spectrum(ifft_image(whole.transforms(rows)[0]), BACKGROUND_RADIUS_FRACTION * box)
        own_shells = int(model.max_radius_px)
        # transforms of a smaller box are smaller by the square of the ratio, powers by its fourth power
        spectrum[:own_shells] = model.noise_spectrum[:own_shells] * (box / images.box_size_px) ** 4
        return cls(model, spectrum, images.state, box, images.particles.pixel_size_angstrom, contrast_deviation,
                   images.noise)

    def signal(self, quaternion: Float[Tensor, "n 4"], displacement_px: Float[Tensor, "n 2"]
               ) -> Complex[Tensor, "n b b//2+1"]:
        """Transforms without CTF for poses, displacements in px of the matching box."""
        volume, box = self.model.volume, self.box_size_px
        scale = box / volume.box_size_px
        shells = shell_index(box, quaternion.device).clamp_max(len(self.model.amplitude) - 1)
        projections = volume.project(quaternion, box) * self.model.amplitude[shells] * scale ** 2
        displacement_px = displacement_px * scale
        images_ft = projections * shift_phase(displacement_px, box)
        far = displacement_px.norm(dim=-1) > FAR_BOXES * box
        if far.any():
            images_ft[far] = displaced_out_of_box(projections[far], displacement_px[far])
        return images_ft


class KnownParticles:
    """n particles with known poses, whose images are made from a ``source`` when they are needed; they take the place of
    ``Particles`` in an ``ImagePreparation``.

    ``contrast``: 0 for no particle; ``companion``, where there is one: quaternion and displacement of a second particle of
    the same contrast. Displacements are in px of the matching box.
    """

    source: ImageSource
    quaternion: Float[Tensor, "n 4"]
    displacement_px: Float[Tensor, "n 2"]
    contrast: Float[Tensor, " n"]
    companion: Float[Tensor, "n 6"] | None

    def __len__(self) -> int:
        return len(self.quaternion)

    @property
    def box_size_px(self) -> int:
        return self.source.box_size_px

    @property
    def pixel_size_angstrom(self) -> float:
        return self.source.pixel_size_angstrom

    @property
    def matching_pixel_angstrom(self) -> float:
        return self.pixel_size_angstrom * self.box_size_px / self.source.model.volume.box_size_px

    @property
    def particle_id(self) -> Int[np.ndarray, " n"]:
        return np.arange(1, len(self) + 1)

    @property
    def poses(self) -> Poses:
        return Poses(self.quaternion, shift_angstrom(self.displacement_px, self.matching_pixel_angstrom))

    def _signal(self, rows: Int[Tensor, " k"]) -> Complex[Tensor, "k b b//2+1"]:
        """Transforms of what is known of the images, without CTF."""
        signal = self.source.signal(self.quaternion[rows], self.displacement_px[rows])
        if self.companion is not None:
            signal = signal + self.source.signal(self.companion[rows, :4], self.companion[rows, 4:])
        return signal * self.contrast[rows, None, None]

    def _as_in_the_stack(self, images_ft: Complex[Tensor, "n b b//2+1"]) -> Float[Tensor, "n b b"]:
        """Images of bright protein and unit noise as the set's own files have them."""
        state = self.source.state
        return (-1.0 if state.contrast == "dark" else 1.0) * (state.grey_unit or 1.0) * ifft_image(images_ft)


@dataclass(frozen=True, eq=False)
class SimulatedParticles(KnownParticles):
    """n particles with known poses that are made when they are asked for; takes the place of ``Particles`` in an
    ``ImagePreparation``. Row i is the same image each time."""

    source: ImageSource
    ctf: CTFParameters
    quaternion: Float[Tensor, "n 4"]
    displacement_px: Float[Tensor, "n 2"]
    contrast: Float[Tensor, " n"]
    noise_from: Int[np.ndarray, " n"]
    """Rows of the data set whose micrographs the images are from"""
    seed: int
    companion: Float[Tensor, "n 6"] | None = None

    def noise_rows(self, indices: Integer[np.ndarray, " k"] | Integer[Tensor, " k"]) -> Int[np.ndarray, " k"]:
        """Those whose CTF the images have."""
        return self.noise_from[np.asarray(indices)]

    def batch(self, indices: Integer[np.ndarray, " k"] | Integer[Tensor, " k"]) -> ParticleBatch:
        """Images in the state of the data set's own, with CTF and poses."""
        source, rows = self.source, torch.as_tensor(indices, dtype=torch.int64)
        device, ctf = self.quaternion.device, self.ctf[rows]
        ctf_on_device = ctf.to(device)
        raw_ctf = ctf_2d(ctf_on_device, source.box_size_px, source.pixel_size_angstrom)
        # a multiplied image is multiplied with its noise: once more, at the end
        seen = raw_ctf if source.state.ctf_state == "multiplied" else effective_ctf(
            ctf_on_device, source.box_size_px, source.pixel_size_angstrom, source.state.ctf_state)
        noise = torch.stack([torch.randn(source.box_size_px, source.box_size_px,
                                         generator=torch.Generator().manual_seed(self.seed + int(row)))
                             for row in rows]).to(device)
        shells = shell_index(source.box_size_px, device)
        noise_ft = fft_image(noise) * source.noise_spectrum[shells].sqrt() / source.box_size_px
        if source.noise is not None and not source.noise.are_alike:
            noise_ft = noise_ft * source.noise.of_images(self.noise_rows(rows), source.box_size_px)
        images_ft = self._signal(rows) * seen + noise_ft
        if source.state.ctf_state == "multiplied":
            images_ft = images_ft * raw_ctf
        return ParticleBatch(self._as_in_the_stack(images_ft), ctf, self.poses[rows.to(device)], rows)


def particles_like(source: ImageSource, images: ImagePreparation, quaternion: Float[Tensor, "n 4"],
                   displacement_px: Float[Tensor, "n 2"], seed: int) -> SimulatedParticles:
    """One particle of the map for each pose and displacement in px of the matching box, with the CTF,
    and the noise of the micrograph, of one of the set's particles drawn at random."""
    n, device = len(quaternion), source.noise_spectrum.device
    generator = torch.Generator().manual_seed(seed)
    of = torch.randint(len(images.particles), (n,), generator=generator)
    contrast = (1 + source.contrast_deviation * torch.randn(n, generator=generator)).clamp_min(MIN_CONTRAST)
    return SimulatedParticles(source, images.particles.ctf[of], quaternion.to(device, torch.float32),
                              displacement_px.to(device, torch.float32), contrast.to(device),
                              images.particles.noise_rows(of.numpy()), int(torch.randint(2**62, (), generator=generator)))
