import numpy as np
import pytest
import torch

from cryoforum_core.config import JUNK_KINDS, SimulateConfig
from cryoforum_core.geometry.rotations import quaternion_to_matrix
from cryoforum_core.particles.simulation_plan import OFF_CENTRE_BOXES, OVERLAP_BOXES, plan_simulation

BOX, PIXEL = 64, 2.0


def plan(tmp_path, **options):
    return plan_simulation(SimulateConfig(out=tmp_path, **{"n_particles": 2000, **options}), BOX, PIXEL)


def test_a_seed_gives_the_same_set_again(tmp_path):
    first, same, other = plan(tmp_path, seed=3), plan(tmp_path, seed=3), plan(tmp_path, seed=4)
    assert torch.equal(first.poses.quaternion, same.poses.quaternion) and first.noise_seed == same.noise_seed
    assert not torch.equal(first.poses.quaternion, other.poses.quaternion) and first.noise_seed != other.noise_seed


def test_junk_has_equal_shares_and_spares_the_first_image(tmp_path):
    found = plan(tmp_path, junk_fraction=0.25)
    kinds, counts = np.unique(found.junk_kind[found.is_junk], return_counts=True)
    assert found.is_junk.sum() == 500 and set(kinds) == set(JUNK_KINDS) and set(counts) == {100}
    assert not found.is_junk[0]


def test_displacements_are_as_asked_for_and_those_of_junk_as_its_kind_says(tmp_path):
    found = plan(tmp_path, junk_fraction=0.5, junk_kinds=("off-centre", "overlap"), shift_rms_px=1.5)
    displacement_px = -found.poses.shift_angstrom / PIXEL
    good = displacement_px[torch.from_numpy(~found.is_junk)]
    assert good.std().item() == pytest.approx(1.5, rel=0.1) and good.mean().abs() < 0.15
    far = displacement_px[torch.from_numpy(found.junk_kind == "off-centre")].norm(dim=1) / BOX
    assert far.min() >= OFF_CENTRE_BOXES[0] - 1e-5 and far.max() <= OFF_CENTRE_BOXES[1] + 1e-5
    second = (found.companion.shift_angstrom / PIXEL / BOX).norm(dim=1)
    assert second.min() >= OVERLAP_BOXES[0] - 1e-5 and second.max() <= OVERLAP_BOXES[1] + 1e-5


def test_preferred_viewing_directions_lie_in_their_cap(tmp_path):
    found = plan(tmp_path, preferred_view_fraction=1.0, preferred_view_width_deg=15.0)
    tilt = torch.rad2deg(torch.acos(quaternion_to_matrix(found.poses.quaternion.double())[:, 2, 2]))
    assert tilt.max() < 15.01
    # even over the cap: a quarter of its area lies within half of its radius
    assert (tilt < 7.5).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_defocus_and_astigmatism_keep_to_their_range(tmp_path):
    ctf = plan(tmp_path, defocus_min_angstrom=5000, defocus_max_angstrom=9000, astigmatism_angstrom=400).ctf
    mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2
    difference = ctf.defocus_u_angstrom - ctf.defocus_v_angstrom
    assert mean.min() >= 5000 and mean.max() <= 9000 and mean.max() - mean.min() > 3900
    assert difference.min() >= 0 and difference.max() <= 400.01
