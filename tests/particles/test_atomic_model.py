import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest

import cryoforum_core
from cryoforum_core.errors import InputError
from cryoforum_core.particles.atomic_model import (
    default_pixel_size_angstrom,
    is_atomic_model,
    potential_map,
    read_atomic_model,
)

DATA = Path(cryoforum_core.__file__).parent / "data"

ATOMS = [("C", "CA", 0.0, 0.0, 0.0), ("O", "O", 9.3, -4.1, 2.2), ("P", "P", -6.0, 7.7, -3.9), ("N", "N", 2.5, 3.5, 8.8)]


def pdb_line(number, element, name, x, y, z, residue="GLY", altloc=" "):
    return (f"ATOM  {number:5d}  {name:<3s}{altloc}{residue:>3s} A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 80.00"
            f"          {element:>2s}\n")


@pytest.fixture
def model_path(tmp_path):
    path = tmp_path / "small.pdb"
    lines = [pdb_line(i + 1, *atom) for i, atom in enumerate(ATOMS)]
    lines += [pdb_line(90, "O", "O", 15.0, 15.0, 15.0, residue="HOH"), pdb_line(91, "H", "H", -15.0, 0.0, 0.0),
              pdb_line(92, "C", "CB", 15.0, -15.0, 0.0, altloc="B")]
    path.write_text("".join(lines) + "END\n")
    return path


def sum_of_gaussians(box, pixel, b_factor):
    """The docstring's formula, on the points themselves, in double precision."""
    weight = np.array([gemmi.Element(atom[0]).weight for atom in ATOMS])
    position = np.array([atom[2:] for atom in ATOMS])
    position = position - weight @ position / weight.sum()
    axis = (np.arange(box) - box // 2) * pixel
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    potential = np.zeros((box,) * 3)
    for (element, *_), (px, py, pz) in zip(ATOMS, position, strict=True):
        squared = (x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2
        factors = gemmi.Element(element).c4322
        for a, b in zip(factors.a, factors.b, strict=True):
            width = b + b_factor
            potential += a * (4 * np.pi / width) ** 1.5 * np.exp(-4 * np.pi**2 * squared / width)
    return 47.87801 * potential


@pytest.mark.parametrize("pixel, b_factor", [(1.0, 150.0), (1.5, 350.0)])
def test_map_is_the_sum_of_gaussians(model_path, pixel, b_factor):
    """The B factors are large enough that these pixels resolve the Gaussians."""
    ours = potential_map(read_atomic_model(model_path), 48, pixel, b_factor).numpy()
    expected = sum_of_gaussians(48, pixel, b_factor)
    assert np.abs(ours - expected).max() < 0.01 * expected.max()
    assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.9999


def test_total_potential_does_not_depend_on_the_pixel_size(model_path):
    model = read_atomic_model(model_path)
    totals = [float(potential_map(model, 32, pixel).double().sum()) * pixel**3 for pixel in (1.0, 2.0, 3.7)]
    expected = 47.87801 * sum(sum(gemmi.Element(atom[0]).c4322.a) for atom in ATOMS)
    assert totals == pytest.approx([expected] * 3, rel=2e-3)


def test_waters_hydrogens_and_second_places_are_left_out(model_path):
    model = read_atomic_model(model_path)
    assert sorted(model.element) == ["C", "N", "O", "P"]


def test_mmcif_and_gz_give_the_same_model(model_path, tmp_path):
    cif = tmp_path / "small.cif"
    structure = gemmi.read_structure(str(model_path))
    structure.make_mmcif_document().write_file(str(cif))
    packed = tmp_path / "small.pdb.gz"
    packed.write_bytes(gzip.compress(model_path.read_bytes()))
    expected = read_atomic_model(model_path).position_angstrom
    for path in (cif, packed):
        assert is_atomic_model(path)
        assert np.allclose(read_atomic_model(path).position_angstrom, expected, atol=1e-3)
    assert not is_atomic_model("map.mrc")


def test_default_molecule_fills_most_of_the_box():
    model = read_atomic_model(DATA / "ribosome_30s_4v4r.pdb.gz")
    pixel = default_pixel_size_angstrom(model, 64)
    volume = potential_map(model, 64, pixel).numpy()
    assert len(model.element) == 51918
    assert 2 * model.radius_angstrom / (64 * pixel) == pytest.approx(0.7, abs=0.005)
    axis = np.arange(64) - 32
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    assert np.abs(volume[radius > 26]).max() < 0.05 * volume.max()


def test_shipped_molecules_are_small_and_readable():
    radius_angstrom = {path.name.partition("_")[0]: read_atomic_model(path).radius_angstrom for path in DATA.glob("*.gz")}
    assert sum(path.stat().st_size for path in DATA.glob("*.gz")) < 2e6
    assert {name: 20 < radius < 150 for name, radius in radius_angstrom.items()} == {
        "adenylate": True, "beta": True, "ribosome": True}


def test_molecule_larger_than_the_box_is_refused_with_a_remedy(model_path):
    with pytest.raises(InputError, match="must fit in the box.* Use a pixel size of"):
        potential_map(read_atomic_model(model_path), 16, 1.0)


def test_what_is_no_model_is_refused(tmp_path):
    nonsense = tmp_path / "nonsense.pdb"
    nonsense.write_text("this is not a model\n")
    broken = tmp_path / "broken.cif.gz"
    broken.write_bytes(b"not gzip")
    for path, message in [(nonsense, "must contain atoms"), (broken, "must be a PDB or mmCIF file"),
                          (tmp_path / "absent.pdb", "does not")]:
        with pytest.raises(InputError, match=message):
            read_atomic_model(path)
