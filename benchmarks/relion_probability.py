"""RELION 3.1's own figure of trust in a particle, rlnMaxValueProbDistribution, for comparison with the engine's measures."""

import os
import subprocess
from pathlib import Path

import numpy as np

from cryoforum_core.particles.table import ParticleTable

COLUMN = "rlnMaxValueProbDistribution"


def relion_probability(star: Path, reference: Path, out: Path, symmetry: str = "c1") -> np.ndarray:
    """(n,) in the order of the stack: one iteration of its 3-D refinement with a global search at 15/7.5 degrees, once.

    ``reference`` is on the images' scale of grey, as simulated sets have it; images need not be normalised.
    """
    found = out / "run_it001_data.star"
    if not found.is_file():
        out.mkdir(parents=True, exist_ok=True)
        table = ParticleTable.read(star)
        box_angstrom = float(table.floats("rlnImageSize")[0] * table.floats("rlnImagePixelSize")[0])
        with open(out / "log.txt", "w") as log:
            subprocess.run(
                ["relion_refine", "--i", star.name, "--ref", reference.resolve(), "--o", out.resolve() / "run", "--iter", "1",
                 "--ini_high", "20", "--ctf", "--K", "1", "--tau2_fudge", "4", "--particle_diameter",
                 str(round(0.9 * box_angstrom)), "--flatten_solvent", "--zero_mask", "--sym", symmetry.upper(), "--norm",
                 "--scale", "--oversampling", "1", "--healpix_order", "2", "--offset_range", "6", "--offset_step", "2",
                 "--pad", "1", "--dont_combine_weights_via_disc", "--dont_check_norm", "--preread_images", "--pool", "30",
                 "--j", "1"],
                cwd=star.parent, check=True, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    table = ParticleTable.read(found)
    number = np.array([int(image.partition("@")[0]) for image in table.strings("rlnImageName")])
    return table.floats(COLUMN)[np.argsort(number)]
