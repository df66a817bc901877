"""Half maps and their FSC: what is shared, how far they are trusted, and what the next round looks at."""

import pytest
import torch

from cryoforum_core.ab_initio.half_map_pair import HalfMapPair, next_radius_px, resized_spectrum
from cryoforum_core.ab_initio.rounds import reconstruct
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.mrc import read_map

from .hybrid_runs import BOX


def test_only_the_lowest_frequencies_are_shared(half_sets, poses):
    pair = reconstruct(half_sets, poses, half_sets.background_spectrum, 12.0).pair
    fsc = fourier_shell_correlation(*pair.reference)
    assert fsc[1] > 0.999 and fsc[11] < 0.99


def pair_of(fsc, volume=None) -> HalfMapPair:
    box = 2 * (len(fsc) - 1)
    volume = torch.zeros(box, box, box) if volume is None else volume
    return HalfMapPair((volume, volume), (volume, volume), torch.tensor(fsc), torch.ones(len(fsc)), 1.0)


def test_the_resolution_is_where_the_fsc_falls_below_0143_and_the_next_round_looks_some_shells_beyond():
    pair = pair_of([1.0, 1.0, 0.9, 0.5, 0.2, 0.1, 0.3])
    assert pair.resolution_radius_px == 5.0 and pair_of([1.0] * 7).resolution_radius_px == 6.0
    assert next_radius_px(pair, 100.0) == pytest.approx(1.1 * 5 + 3) and next_radius_px(pair, 7.0) == 7.0


def test_the_solvent_is_masked_once_the_half_maps_agree_beyond_their_common_start(clean_data):
    known = torch.from_numpy(read_map(clean_data.map)[0])
    noisy = known + 0.05 * known.std() * torch.randn(known.shape, generator=torch.Generator().manual_seed(0))
    fsc = (torch.arange(BOX // 2 + 1) < 12).float().tolist()
    pair = pair_of(fsc, noisy)
    assert torch.equal(pair.masked_beyond(10.0).mean_reference, pair.mean_reference)
    masked = pair.masked_beyond(8.0).mean_reference
    assert (masked == 0).float().mean() > 0.5 and masked[known > 0.3 * known.max()].min() > 0


def test_a_noise_spectrum_follows_the_images_to_another_box():
    """Transforms of a box half as large are a quarter as large: powers a sixteenth."""
    spectrum = torch.rand(17, generator=torch.Generator().manual_seed(0))
    small = resized_spectrum(spectrum, 32, 16)
    torch.testing.assert_close(small, spectrum[:9] / 16)
    back = resized_spectrum(small, 16, 32)
    torch.testing.assert_close(back[:9], spectrum[:9])
    assert (back[9:] == 0).all()
