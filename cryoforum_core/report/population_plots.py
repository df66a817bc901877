"""What else a run's images show: a second state of the molecule, and another molecule."""

import numpy as np

from ..mrc import read_map
from . import plots
from .page import Picture, percent
from .run_files import RunFiles

# standard deviation of the Gaussian filter, in units of the resolution: unfiltered, noise hides the difference
_BLUR_OF_RESOLUTION = 0.25


def state_fact(files: RunFiles) -> dict[str, str]:
    """Whether there is a second state; nothing where it was not looked for."""
    if "minor_state_gain" not in files.summary:
        return {}
    fraction = files.summary["minor_state_fraction"]
    return {"second state": "none found" if fraction is None else f"{percent(fraction)} of the particles"}


def state_notes(files: RunFiles) -> tuple[str, ...]:
    """What two states mean for the user; nothing where there is one."""
    fraction = files.summary.get("minor_state_fraction")
    if fraction is None:
        return ()
    gain, error = (f"{files.summary[f'minor_state_{name}']:.2f}" for name in ("gain", "gain_error"))
    return (f"{percent(fraction)} of the particles are in a second state (held-out images: log-likelihood +{gain} ± {error} nats "
            "per image). Their maps are map_state1.mrc and map_state2.mrc, and rlnCryoforumState says which particle is in "
            "which. Particles in state 2 were matched to a map of that state. Refine the states separately, or start a 3D "
            "classification from these maps.",)


def other_molecule_notes(files: RunFiles) -> tuple[str, ...]:
    """Another molecule among the rejected images, and what to do with it; nothing where none was found."""
    if not files.summary.get("other_molecule_images"):
        return ()
    return (f"{files.summary['other_molecule_sentence'].replace('+-', '±')} Its map is map_other_molecule.mrc. To find its "
            "particles, remove the junk of this run, then run predict on rejected.star with that map as reference.",)


def other_molecule_pictures(files: RunFiles) -> list[Picture]:
    """Slices and projections of its map."""
    if not files.run.map_other_molecule.is_file():
        return []
    return [Picture("Another molecule among the rejected images", "A first map, at low resolution, from a search of the images "
                    "that show neither this molecule nor contamination.", plots.map_views(
                        *read_map(files.run.map_other_molecule)), wide=True)]


def state_pictures(files: RunFiles) -> list[Picture]:
    """Projections of both maps and of their difference; none where there is one state."""
    if not (files.run.map_state1.is_file() and files.run.map_state2.is_file()):
        return []
    (first, pixel_size_angstrom), (second, _) = (read_map(path) for path in (files.run.map_state1, files.run.map_state2))
    resolution = files.summary.get("minor_state_resolution_angstrom") or 2 * pixel_size_angstrom
    sigma_px = _BLUR_OF_RESOLUTION * resolution / pixel_size_angstrom
    rows = {name: plots.low_passed(np.stack([volume.sum(axis=axis) for axis in range(3)]), sigma_px)
            for name, volume in (("state 1", first), ("state 2", second), ("difference", second - first))}
    return [Picture("Two states", "Projections of the maps of both states along z, y and x, low-pass filtered, and state 2 "
                    "minus state 1: dark where state 2 lacks density. No symmetry is imposed on state 2.",
                    plots.picture_table(rows, [f"along {axis}" for axis in "zyx"]), wide=True)]
