"""Electron-potential maps from atomic models (PDB, mmCIF). The only module that imports gemmi.

The potential is a sum over atoms of five Gaussians, the electron scattering factors of Peng et al. 1996
(International Tables C, table 4.3.2.2), each widened by one B factor for all atoms::

    V(r) = 47.878 V A^2 * sum_i a_i (4 pi / (b_i + B))^(3/2) exp(-4 pi^2 r^2 / (b_i + B))

The B factors of the file are those of one crystal or map and are not used. Waters and hydrogens are left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..imaging.fourier import crop_volume, fft_volume, frequency_grid, ifft_volume, radius_px

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
"""File names of atomic models end in one of these, or in one of these and ``.gz``."""

FILLED_FRACTION = 0.7
"""Part of the box that the molecule's diameter fills where no pixel size is asked for."""

# h^2 / (2 pi m_e e) in V A^2
_POTENTIAL_SCALE = 47.87801
# the Gaussians are summed on a grid of this spacing or a finer one, then Fourier-cropped to the map's pixels
_COARSEST_SPACING_ANGSTROM = 1.0
# the last part of the spectrum before the Nyquist limit falls off smoothly: a sharp edge would ring
_TAPERED_FRACTION = 0.05


@dataclass(frozen=True)
class AtomicModel:
    """Atoms around their centre of mass."""

    position_angstrom: Float[np.ndarray, "n 3"]
    """As x, y, z, relative to the centre of mass."""
    element: list[str]
    """Chemical symbols, n of them."""
    occupancy: Float[np.ndarray, " n"]

    @property
    def radius_angstrom(self) -> float:
        """Distance of the outermost atom from the centre of mass."""
        return float(np.linalg.norm(self.position_angstrom, axis=1).max())


def is_atomic_model(path: Path | str) -> bool:
    """Whether the file's name is that of an atomic model."""
    return str(path).lower().removesuffix(".gz").endswith(SUFFIXES)


def read_atomic_model(path: Path | str) -> AtomicModel:
    """Reads the first model of a PDB or mmCIF file, also gzipped. Raises InputError where it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"An atomic model must exist; {path} does not. Check the path.")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"An atomic model must be a PDB or mmCIF file; {path} cannot be read ({error}).") from error
    atoms = list(_atoms_to_keep(structure[0])) if len(structure) else []
    if not atoms:
        raise InputError(f"An atomic model must contain atoms; {path} contains none but hydrogens and waters.")
    elements = [_element(atom) for atom in atoms]
    position = np.array([atom.pos.tolist() for atom in atoms])
    weight = np.array([element.weight for element in elements])
    occupancy = np.array([atom.occ if atom.occ > 0 else 1.0 for atom in atoms])
    return AtomicModel(position - weight @ position / weight.sum(), [element.name for element in elements], occupancy)


def _atoms_to_keep(model: gemmi.Model) -> Iterator[gemmi.Atom]:
    """Atoms but waters, hydrogens and all but the first of alternative places.

    gemmi's own remove_alternative_conformations also drops the second of two chains with one name, which large
    models in PDB format have.
    """
    for chain in model:
        for residue in chain:
            if not residue.is_water():
                yield from (atom for atom in residue if not atom.is_hydrogen() and atom.altloc in "\0A1")


def _element(atom: gemmi.Atom) -> gemmi.Element:
    """The atom's element; without an element column the name's first letter, right for C, N, O, P and S."""
    return gemmi.Element(atom.name[0]) if atom.element == gemmi.Element("X") else atom.element


def default_pixel_size_angstrom(model: AtomicModel, box_size_px: int) -> float:
    """The pixel size, in steps of 0.01 A, at which the molecule's diameter fills 70 % of the box."""
    return math.ceil(100 * 2 * model.radius_angstrom / (FILLED_FRACTION * box_size_px)) / 100


def potential_map(model: AtomicModel, box_size_px: int, pixel_size_angstrom: float,
                  b_factor_angstrom2: float = 25.0
                  ) -> Float[Tensor, "{box_size_px} {box_size_px} {box_size_px}"]:
    """The electron potential in volts, float32 [z, y, x], the centre of mass at index D // 2.

    Raises InputError where the molecule does not fit in the box.
    """
    diameter_angstrom = 2 * float(np.abs(model.position_angstrom).max())
    if diameter_angstrom > box_size_px * pixel_size_angstrom:
        raise InputError(
            f"The molecule must fit in the box; it is {diameter_angstrom:.0f} A wide and the box of {box_size_px} px at "
            f"{pixel_size_angstrom:g} A/px is {box_size_px * pixel_size_angstrom:.0f} A. "
            f"Use a pixel size of {default_pixel_size_angstrom(model, box_size_px):g} A or more, or a larger box.")
    finer = max(2, math.ceil(pixel_size_angstrom / _COARSEST_SPACING_ANGSTROM - 1e-6))
    density = _sum_of_gaussians(model, box_size_px * finer, pixel_size_angstrom / finer, b_factor_angstrom2)
    # crop_volume keeps the sums along z; a potential keeps its values instead
    cropped = crop_volume(torch.from_numpy(density), box_size_px) / finer
    return _taper(cropped) * _POTENTIAL_SCALE


def _sum_of_gaussians(model: AtomicModel, n: int, spacing_angstrom: float, b_factor_angstrom2: float) -> np.ndarray:
    """(n, n, n) [z, y, x]; gemmi's loop over the atoms is compiled."""
    edge_angstrom = n * spacing_angstrom
    calculator = gemmi.DensityCalculatorE()
    calculator.grid.set_unit_cell(gemmi.UnitCell(edge_angstrom, edge_angstrom, edge_angstrom, 90, 90, 90))
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.grid.set_size(n, n, n)
    atom = gemmi.Atom()
    atom.b_iso = b_factor_angstrom2
    places = (model.position_angstrom + n // 2 * spacing_angstrom).tolist()
    for place, element, occupancy in zip(places, model.element, model.occupancy.tolist(), strict=True):
        atom.pos, atom.element, atom.occ = gemmi.Position(*place), gemmi.Element(element), occupancy
        calculator.add_atom_density_to_grid(atom)
    return np.ascontiguousarray(calculator.grid.array.T)


def _taper(volume: Tensor) -> Tensor:
    size = volume.shape[-1]
    kz = frequency_grid(size)[0][..., None]
    radius = torch.hypot(kz, radius_px(size)) / (size / 2)
    ramp = ((radius - (1 - _TAPERED_FRACTION)) / _TAPERED_FRACTION).clamp(0, 1)
    return ifft_volume(fft_volume(volume) * (0.5 + 0.5 * torch.cos(torch.pi * ramp)))
