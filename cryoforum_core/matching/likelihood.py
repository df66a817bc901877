"""The likelihood of an image, given a map and a pose: whitened images, and what the map predicts for them.

Model of a whitened image: ``y = c P(R) s(t) + n``, with P the slice of the map at rotation R, s the phase factor of a
displacement t, c = CTF x amplitude / noise standard deviation, and n complex noise of unit power. Over half of the
Fourier plane the log-likelihood is ``-sum |y - c P s|^2`` up to a constant.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ..imaging.fourier import radius_px, shell_index
from ..imaging.projection import FourierVolume, slice_points
from .whitened_images import WhitenedImages


def predicted(images: WhitenedImages, volume: FourierVolume, quaternion: Float[Tensor, "n 4"],
              displacement_px: Float[Tensor, "n 2"]) -> Complex[Tensor, "n m"]:
    """The model's images ``c P s`` (n, m) for poses (n, 4) and displacements (n, 2), one for each image."""
    slices = volume.sample(slice_points(quaternion, images.k))
    return images.transfer * slices * images.displacement_phase(displacement_px)


def log_likelihood_ratio(images: WhitenedImages, volume: FourierVolume, quaternion: Float[Tensor, "n 4"],
                         displacement_px: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """Log-likelihood of each pose minus that of an empty image (n,): 0 when the map explains nothing."""
    model = predicted(images, volume, quaternion, displacement_px)
    return 2.0 * (images.data.conj() * model).real.sum(-1) - model.abs().square().sum(-1)


def amplitude_from_power(images_ft: Complex[Tensor, "n b b//2+1"], ctf: Float[Tensor, "n b b//2+1"],
                         noise_spectrum: Float[Tensor, " b//2+1"], map_power: Float[Tensor, " b//2+1"],
                         max_radius_px: float) -> Float[Tensor, " b//2+1"]:
    """Amplitude of the images' signal over that of the map (B // 2 + 1,), before any pose is known.

    Least squares over shells of ``image power - noise power = amplitude^2 x mean CTF^2 x map power``, one amplitude
    for all shells. ``map_power`` (B // 2 + 1,): mean |P|^2 of projections in each shell.
    """
    box_size_px = images_ft.shape[-2]
    inside = (radius_px(box_size_px, images_ft.device) <= max_radius_px).flatten()
    inside[0] = False
    shells = shell_index(box_size_px, images_ft.device).flatten()[inside]
    excess = images_ft.abs().square().mean(0).flatten()[inside] - noise_spectrum[shells]
    expected = ctf.square().mean(0).flatten()[inside] * map_power[shells]
    weight = noise_spectrum[shells].reciprocal().square()
    squared = (weight * excess * expected).sum() / (weight * expected.square()).sum()
    floor = 1e-3 * images_ft.abs().square().mean() / expected.mean()
    return squared.clamp_min(floor).sqrt().expand(box_size_px // 2 + 1).clone()


def explained_power(images: WhitenedImages, model: Complex[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Power that ``model`` (n, m), as from ``predicted``, takes out of whitened images: (n, m), 0 on average for a model
    of the right size that has nothing in common with them, less than 0 for one that is too large."""
    return 2 * (images.data.conj() * model).real - model.abs().square()


def amplitude_from_poses(images: WhitenedImages, model: Complex[Tensor, "n m"], taken_up: Float[Tensor, "n m"],
                         smoothing_shells: int = 2) -> Float[Tensor, " shells"]:
    """Correction factor (B // 2 + 1,) to the amplitude in each shell, by regression of images on their predictions.

    ``model`` and ``taken_up`` (n, m) as from ``refine.predicted_at_refined``. Sums over neighbouring shells steady it; where
    the data do not determine it (its standard error is above 0.3) the overall factor is taken.
    """
    n_shells = images.box_size_px // 2 + 1
    shells = images.radius.round().long().clamp_max(n_shells - 1)

    def shell_sum(values: Tensor) -> Tensor:
        sums = torch.zeros(n_shells, dtype=values.dtype, device=values.device).index_add_(0, shells, values.sum(0))
        kernel = torch.ones(1, 1, 2 * smoothing_shells + 1, dtype=values.dtype, device=values.device)
        return torch.nn.functional.conv1d(sums[None, None], kernel, padding=smoothing_shells)[0, 0]

    cross = shell_sum((images.data.conj() * model).real - taken_up)
    power = shell_sum(model.abs().square())
    overall = cross.sum() / power.sum().clamp_min(1e-30)
    factor = torch.where(power > 0.5 / 0.3 ** 2, cross / power.clamp_min(1e-30), overall)
    return factor.clamp(0.1 * overall.abs(), 10 * overall.abs())


def contrast_from_poses(images: WhitenedImages, model: Complex[Tensor, "n m"], taken_up: Float[Tensor, "n m"] | float
                        ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Regression of each image on its prediction: factor (n,), 1 on average for a model of the right size, and its variance
    (n,) by the noise. ``model`` and ``taken_up`` (n, m) as from ``refine.predicted_at_refined``; at poses that were not
    refined against the images themselves it is 0."""
    power = model.abs().square().sum(-1).clamp_min(1e-12)
    return ((images.data.conj() * model).real - taken_up).sum(-1) / power, 0.5 / power
