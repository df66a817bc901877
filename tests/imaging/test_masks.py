import torch

from cryoforum_core.imaging.masks import molecule_mask, soft_circle, soft_sphere, solvent_mask
from cryoforum_core.particles.simulate import DEFAULT_MODEL, load_molecule


def test_masks_are_one_inside_zero_outside_and_smooth():
    disc, ball = soft_circle(32, 8.0, 4.0), soft_sphere(32, 8.0, 4.0)
    assert disc[16, 16] == 1 and disc[16, 24] == 1 and disc[16, 29] == 0
    assert 0 < disc[16, 26] < 1
    torch.testing.assert_close(ball[16], disc)


def test_a_mask_without_an_edge_is_a_step():
    disc = soft_circle(16, 4.0, 0.0)
    assert set(disc.unique().tolist()) == {0.0, 1.0} and disc[8, 12] == 1 and disc[8, 13] == 0


def two_balls(box: int = 48) -> torch.Tensor:
    """Density (b, b, b) of two balls of radius 5 px, 24 px apart along x."""
    return torch.roll(soft_sphere(box, 5.0, 2.0), -12, 2) + torch.roll(soft_sphere(box, 5.0, 2.0), 12, 2)


def test_molecule_mask_holds_the_molecule_and_not_what_lies_between():
    volume = two_balls()
    mask = molecule_mask(volume)
    assert mask.min() >= 0 and mask.max() <= 1 + 1e-6
    assert mask[volume > 0.5].min() > 0.95  # all of the density, and nothing 12 px from it
    assert mask[24, 24, 24] < 0.05 and mask[0, 0, 0] == 0


def test_solvent_mask_is_drawn_as_finely_as_the_map_is_resolved():
    coarse, fine = (solvent_mask(two_balls(), resolution_radius_px=radius).mean() for radius in (5.0, 20.0))
    assert 0 < fine < coarse < 0.3


def test_the_mask_of_a_ribosome_subunit_holds_it_and_little_else():
    known = load_molecule(DEFAULT_MODEL, 32, None).volume
    mask = molecule_mask(known)
    assert (known * mask).sum() > 0.95 * known.sum() and mask.mean() < 0.3
    assert float(mask.min()) >= 0 and float(mask.max()) <= 1 + 1e-6
