import numpy as np
import pytest
import torch

from cryoforum_core.config import SimulateConfig
from cryoforum_core.particles.session_plan import NEIGHBOUR_BOXES
from cryoforum_core.particles.simulation_plan import OVERLAP_BOXES, plan_simulation

BOX, PIXEL, N = 64, 2.0, 3000


def plan(tmp_path, session=None, **options):
    config = {"n_particles": N, "like": "session", "session": session or {}, **options}
    return plan_simulation(SimulateConfig(out=tmp_path, **config), BOX, PIXEL)


def per_micrograph(found, values):
    """(M,) of values that must be the same within each micrograph."""
    values = np.asarray(values)
    first = np.unique(found.session.micrograph, return_index=True)[1]
    assert np.array_equal(values, values[first][np.unique(found.session.micrograph, return_inverse=True)[1]])
    return values[first]


def test_a_seed_gives_the_same_session_again(tmp_path):
    first, same, other = plan(tmp_path, seed=3), plan(tmp_path, seed=3), plan(tmp_path, seed=4)
    assert torch.equal(first.session.noise_level, same.session.noise_level)
    assert torch.equal(first.ctf.defocus_u_angstrom, same.ctf.defocus_u_angstrom)
    assert not torch.equal(first.session.contrast, other.session.contrast)


def test_a_clean_set_has_no_session(tmp_path):
    assert plan_simulation(SimulateConfig(out=tmp_path, n_particles=10), BOX, PIXEL).session is None


def test_micrographs_differ_in_noise_b_factor_and_group(tmp_path):
    """Spread of 400 micrographs: standard error of a standard deviation 3.5 %, of a mean 5 %."""
    found = plan(tmp_path, {"micrographs": 400, "noise_spread": 0.3, "noise_colour": 2.0, "b_factor_max": 90.0})
    level = np.log(per_micrograph(found, found.session.noise_level))
    assert level.std() == pytest.approx(0.3, rel=0.15) and abs(level.mean()) < 0.06
    excess, b_factor = (per_micrograph(found, each) for each in (found.session.noise_excess, found.session.b_factor))
    assert 1.0 <= excess.min() < 1.1 and 2.9 < excess.max() <= 3.0
    assert 0 <= b_factor.min() < 3 and 87 < b_factor.max() <= 90
    group = per_micrograph(found, found.session.optics_group)
    assert set(group.tolist()) == {1, 2}
    voltage = found.ctf.voltage_kv.numpy()
    assert np.array_equal(voltage == 300, found.session.optics_group == 1) and set(voltage.tolist()) == {200.0, 300.0}


def test_defocus_is_that_of_the_micrograph_but_for_the_particles_own(tmp_path):
    found = plan(tmp_path, {"defocus_spread_angstrom": 100.0}, defocus_min_angstrom=5000, defocus_max_angstrom=25000)
    defocus, micrograph = found.ctf.mean_defocus_angstrom.numpy(), found.session.micrograph
    mean = np.array([defocus[micrograph == m].mean() for m in np.unique(micrograph)])
    within = np.concatenate([defocus[micrograph == m] - defocus[micrograph == m].mean() for m in np.unique(micrograph)])
    assert within.std() == pytest.approx(100, rel=0.05) and mean.std() > 4000
    per_micrograph(found, found.ctf.defocus_angle_deg)
    astigmatism = found.ctf.defocus_u_angstrom - found.ctf.defocus_v_angstrom
    assert astigmatism.min() > -0.01 and astigmatism.max() < 300.01


def test_contrast_states_and_neighbours_are_as_asked_for(tmp_path):
    """Tolerances: three standard errors of 3,000 particles."""
    found = plan(tmp_path, {"contrast_spread": 0.2, "minor_state": 0.4, "neighbours": 0.3}, junk_fraction=0.0)
    session = found.session
    assert session.contrast.mean().item() == pytest.approx(1, abs=0.011) and session.contrast.min() >= 0.3
    assert session.contrast.std().item() == pytest.approx(0.2, rel=0.05)
    assert session.is_minor.mean() == pytest.approx(0.4, abs=0.027) and set(session.state.tolist()) == {1, 2}
    assert session.has_neighbour.mean() == pytest.approx(0.3, abs=0.025)


def test_second_particles_lie_at_the_rim_or_overlap(tmp_path):
    found = plan(tmp_path, {"neighbours": 0.5}, junk_fraction=0.4, junk_kinds=("overlap", "blank", "ice"))
    distance = (found.companion.shift_angstrom / PIXEL / BOX).norm(dim=1).numpy()
    neighbour = distance[found.session.has_neighbour]
    assert neighbour.min() >= NEIGHBOUR_BOXES[0] - 1e-5 and neighbour.max() <= NEIGHBOUR_BOXES[1] + 1e-5
    overlap = distance[found.junk_kind == "overlap"]
    assert overlap.min() >= OVERLAP_BOXES[0] - 1e-5 and overlap.max() <= OVERLAP_BOXES[1] + 1e-5
    assert not found.session.has_neighbour[np.isin(found.junk_kind, ("overlap", "blank"))].any()
    assert found.session.has_neighbour[found.junk_kind == "ice"].any()


def test_ingredients_can_be_switched_off(tmp_path):
    off = {"noise_spread": 0, "noise_colour": 0, "b_factor_max": 0, "contrast_spread": 0, "neighbours": 0, "minor_state": 0,
           "voltages_kv": (300.0,), "defocus_spread_angstrom": 0}
    found = plan(tmp_path, off, junk_fraction=0.0, preferred_view_fraction=0.0)
    session = found.session
    assert (session.noise_level == 1).all() and (session.noise_excess == 0).all() and (session.b_factor == 0).all()
    assert (session.contrast == 1).all() and not session.has_neighbour.any() and not session.is_minor.any()
    assert (session.optics_group == 1).all() and not found.is_junk.any()
    per_micrograph(found, found.ctf.defocus_u_angstrom)


def test_a_session_without_ctf_has_none(tmp_path):
    assert not plan(tmp_path, ctf="none").ctf.has_effect
